"""The command line of the training examples, and the checks that keep its errors to one line."""

import argparse
import ast
import math
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

PICTURES = (".pdf", ".png", ".svg")


class OneLineParser(argparse.ArgumentParser):
    """Errors say what is wrong with which argument, without the list of all the others."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: error: {message}", file=sys.stderr)
        raise SystemExit(2)


@dataclass(frozen=True)
class Settings:
    """A checked command line."""

    optimizers: tuple[str, ...]
    rates: tuple[float, ...]
    rank: int | float
    options: Mapping[str, Any]
    steps: int
    width: int
    layers: int
    heads: int
    batch: int
    length: int
    seed: int
    text: tuple[Path, ...]
    weights: Path | None
    output: Path
    json: Path | None
    checkpoint: Path | None
    checkpoint_every: int
    parallel: str | None = None

    def decisive(self) -> dict[str, Any]:
        """What a run's numbers depend on, by argument; made of what JSON can hold."""
        return {
            "--optimizer": list(self.optimizers),
            "--lr": list(self.rates),
            "--rank": self.rank,
            "--option": {name: repr(value) for name, value in sorted(self.options.items())},
            "--steps": self.steps,
            "--d-model": self.width,
            "--layers": self.layers,
            "--heads": self.heads,
            "--batch": self.batch,
            "--seq-len": self.length,
            "--seed": self.seed,
            **({"--parallel": self.parallel} if self.parallel else {}),
        }


def whole(least: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"must be a whole number >= {least}, got {text!r}")
        return value

    return convert


def learning_rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return value


def rank(text: str) -> int | float:
    try:
        return whole(1)(text)
    except argparse.ArgumentTypeError:
        pass
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(
            f"must be a whole number >= 1 or a fraction between 0 and 1, got {text!r}"
        )
    return value


def _option(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not separator or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"must be KEY=VALUE, got {text!r}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _writable(text: str) -> Path:
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"must lie in an existing folder, got {text!r}")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"must name a file, got the folder {text!r}")
    try:
        # Training that cannot write down what came of it had better not begin.
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise argparse.ArgumentTypeError(
            f"must lie in a folder that can be written to, got {text!r} ({error.strerror})"
        ) from None
    return path


def _picture(text: str) -> Path:
    path = _writable(text)
    if path.suffix not in PICTURES:
        raise argparse.ArgumentTypeError(f"must end in {', '.join(PICTURES)}, got {text!r}")
    return path


def make_parser(
    description: str, optimizers: Iterable[str], picture: str, ways: Iterable[str] = ()
) -> OneLineParser:
    """The arguments that every training example takes, and how to train on several processes if it can."""
    names = list(optimizers)
    parser = OneLineParser(
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument_group("optimizer").add_argument
    add(
        "--optimizer",
        nargs="+",
        choices=names,
        default=names[:2],
        metavar="NAME",
        help=f"one after the other, from the same weights and data order: {', '.join(names)}",
    )
    add(
        "--lr",
        nargs="+",
        type=learning_rate,
        metavar="RATE",
        help="one peak learning rate for all optimizers, or one for each "
        "(default: each optimizer's own)",
        default=argparse.SUPPRESS,
    )
    add(
        "--rank",
        type=rank,
        default=0.25,
        help="of the low-rank optimizers: columns kept of each matrix, or the fraction of its "
        "shorter side",
    )
    add(
        "--option",
        action="append",
        type=_option,
        metavar="KEY=VALUE",
        default=argparse.SUPPRESS,
        help="pass a keyword to the low-rank optimizers, such as score=l1; may be repeated",
    )
    add = parser.add_argument_group("model and data").add_argument
    add("--steps", type=whole(1), default=300, help="training steps")
    add("--d-model", type=whole(1), default=256, help="width of the model")
    add("--layers", type=whole(1), default=4, help="number of blocks")
    add("--heads", type=whole(1), default=4, help="attention heads of a block")
    add("--batch", type=whole(1), default=8, help="windows of text in a step")
    add("--seq-len", type=whole(1), default=128, help="bytes in a window")
    add("--seed", type=whole(0), default=0, help="of the first weights and the data order")
    add(
        "--text",
        nargs="+",
        type=Path,
        metavar="PATH",
        default=argparse.SUPPRESS,
        help="files or folders to train on (default: the sources of Python's standard library)",
    )
    add(
        "--weights",
        type=_writable,
        metavar="PATH",
        default=argparse.SUPPRESS,
        help="start from the weights in this safetensors file; where there is none yet, write the "
        "first weights there, for another framework to start from",
    )
    if ways:
        parser.add_argument_group("processes").add_argument(
            "--parallel",
            choices=list(ways),
            default=argparse.SUPPRESS,
            help="share the work among the processes that torchrun started: data parallelism, the "
            "same with sharded weights, or tensor parallelism",
        )
    add = parser.add_argument_group("results").add_argument
    add("--output", type=_picture, default=picture, metavar="PATH", help="picture to write")
    add(
        "--json",
        type=_writable,
        metavar="PATH",
        default=argparse.SUPPRESS,
        help="also write all figures to this file",
    )
    add(
        "--checkpoint",
        type=_writable,
        metavar="PATH",
        default=argparse.SUPPRESS,
        help="save to this file, and go on from it if it exists; also after Ctrl-C",
    )
    add(
        "--checkpoint-every",
        type=whole(1),
        default=25,
        metavar="STEPS",
        help="steps between savings",
    )
    return parser


def settings_from(
    parser: OneLineParser, arguments: list[str] | None, default_rates: Mapping[str, float]
) -> Settings:
    """Parse, and check what concerns more than one argument."""
    given = parser.parse_args(arguments)
    rates = getattr(given, "lr", None) or [default_rates[name] for name in given.optimizer]
    if len(rates) == 1:
        rates *= len(given.optimizer)
    if len(rates) != len(given.optimizer):
        parser.error(
            f"argument --lr: must be one rate, or one for each of the {len(given.optimizer)} "
            f"optimizers, got {len(rates)}"
        )
    if given.d_model % given.heads or given.d_model // given.heads % 2:
        parser.error(
            f"argument --heads: must divide --d-model = {given.d_model} into heads of even width, "
            f"got {given.heads}"
        )
    columns = given.rank if isinstance(given.rank, int) else int(given.rank * given.d_model)
    if not 0 < columns < given.d_model:
        parser.error(
            f"argument --rank: must leave at least 1 and fewer than --d-model = {given.d_model} "
            f"columns, got {given.rank}"
        )
    return Settings(
        optimizers=tuple(given.optimizer),
        rates=tuple(rates),
        rank=given.rank,
        options=dict(getattr(given, "option", [])),
        steps=given.steps,
        width=given.d_model,
        layers=given.layers,
        heads=given.heads,
        batch=given.batch,
        length=given.seq_len,
        seed=given.seed,
        text=tuple(getattr(given, "text", [])),
        weights=getattr(given, "weights", None),
        output=Path(given.output),
        json=getattr(given, "json", None),
        checkpoint=getattr(given, "checkpoint", None),
        checkpoint_every=given.checkpoint_every,
        parallel=getattr(given, "parallel", None),
    )
