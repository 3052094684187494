"""Train a small language model with AdamW and with DCT-AdamW, and compare them.

    python docs/examples/pretrain_lm.py

reads the sources of Python's standard library, trains the same Llama-style model on them with one
optimizer after the other, and shows what each reached and how much memory it held: a table, and
the loss curves in `pretrain_lm.png`. `--help` lists what can be changed; `--checkpoint PATH` makes
a run that can be stopped at any moment and goes on exactly where it was. The parts that are not
about optimizers lie beside this file: `_llama.py` (model), `_text.py` (data), `_settings.py`
(command line), `_report.py` (progress, table, picture).

Needs `pip install 'lowrank-core[examples]'`.
"""

import math
import os
import pickle
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Self

# OpenMP reads this as PyTorch loads it. Threads that wait by spinning take the processor from the
# one they wait for as soon as anything else runs on the machine, and steps become ten times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import lowrank_torch
import torch
from _llama import Llama, next_byte_loss
from _muon import MuonWithAdamW
from _report import LiveReport, Run, aside, draw, table, tell_apart, write_json
from _settings import Settings, make_parser, settings_from
from _text import Corpus, TextError, load
from rich.console import Console
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.1
CLIP_NORM = 1.0
VALIDATIONS = 10
VALIDATION_WINDOWS = 64
PICTURE = "pretrain_lm.png"
# What shells report for a program that Ctrl-C ended.
INTERRUPTED = 130


class UsageError(Exception):
    """The command line asks for something that cannot be done; the message is one line."""


def adamw(model: nn.Module, lr: float, _settings: Settings) -> Optimizer:
    """PyTorch's AdamW; vectors (norms) are not decayed."""
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p.ndim >= 2]},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True)


@dataclass(frozen=True)
class LowRank:
    """Build one of the library's optimizers: low rank for the hidden matrices, AdamW for the rest.

    `rest` holds what the rest does otherwise: a rate of its own where the matrices' means something else.

    `--option` reaches any keyword of the constructor, over the ones given here.
    """

    constructor: Callable[..., Optimizer]
    keywords: Mapping[str, Any]
    rest: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, model: nn.Module, lr: float, settings: Settings) -> Optimizer:
        keywords = {"weight_decay": WEIGHT_DECAY, **self.keywords, **settings.options}
        groups = lowrank_torch.matrix_groups(model, other=self.rest)
        try:
            return self.constructor(groups, lr=lr, rank=settings.rank, **keywords)
        except (TypeError, ValueError) as error:
            blamed = f"argument --option: {error}" if settings.options else str(error)
            raise UsageError(blamed) from error


@dataclass(frozen=True)
class Recipe:
    """How an optimizer is called, built and, unless `--lr` says otherwise, how fast it learns."""

    label: str
    build: Callable[[nn.Module, float, Settings], Optimizer]
    lr: float


def muon(model: nn.Module, lr: float, _settings: Settings) -> Optimizer:
    """PyTorch's Muon for hidden matrices, its AdamW at its own best rate for the rest."""
    matrices = {"lr": lr, "momentum": 0.95, "weight_decay": WEIGHT_DECAY, "nesterov": False}
    rest = {"lr": ADAMW_RATE, "betas": BETAS, "weight_decay": WEIGHT_DECAY}
    return MuonWithAdamW(model, matrices=matrices, rest=rest)


# Rates of adamw and dct-adamw: the best mean of a small sweep on the default job with three seeds; of the
# others, the best of the few tried with one.
ADAMW_RATE = 7e-4
GALORE = {"betas": BETAS, "basis": "svd", "refresh_every": 200}
OPTIMIZERS = {
    "adamw": Recipe("AdamW", adamw, lr=ADAMW_RATE),
    "dct-adamw": Recipe("DCT-AdamW", LowRank(lowrank_torch.DCTAdamW, {"betas": BETAS}), lr=2.8e-3),
    "galore": Recipe("GaLore (SVD)", LowRank(lowrank_torch.DCTAdamW, GALORE), lr=4e-3),
    "muon": Recipe("Muon", muon, lr=0.02),
    "trion": Recipe(
        "Trion", LowRank(lowrank_torch.Trion, {"betas": BETAS}, rest={"lr": ADAMW_RATE}), lr=0.02
    ),
}


def rate_factor(step: int, *, steps: int) -> float:
    """Linear warm-up over a twentieth of the run, then a cosine down to a tenth of the peak."""
    warm_up = max(1, steps // 20)
    if step < warm_up:
        return (step + 1) / warm_up
    progress = (step - warm_up) / max(1, steps - warm_up)
    return 0.55 + 0.45 * math.cos(math.pi * min(progress, 1.0))


class Training:
    """One optimizer at work: everything that changes from step to step, and can be saved."""

    def __init__(self, name: str, lr: float, settings: Settings) -> None:
        torch.manual_seed(settings.seed)
        self.model = Llama(settings.width, settings.layers, settings.heads, settings.length)
        self.optimizer = OPTIMIZERS[name].build(self.model, lr, settings)
        self.schedule = LambdaLR(self.optimizer, partial(rate_factor, steps=settings.steps))

    def step(self, windows: Tensor) -> tuple[float, float]:
        """Train on a batch; the loss, and the seconds spent in the optimizer alone."""
        loss = next_byte_loss(self.model, windows)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        start = time.perf_counter()
        self.optimizer.step()
        seconds = time.perf_counter() - start
        self.optimizer.zero_grad()
        self.schedule.step()
        return loss.item(), seconds

    @torch.no_grad()
    def validate(self, windows: Tensor, batch: int) -> float:
        """Mean loss over the held-out windows."""
        parts = torch.split(windows, batch)
        total = sum(next_byte_loss(self.model, part).item() * len(part) for part in parts)
        return total / len(windows)

    def state_bytes(self) -> int:
        """Bytes of every tensor in the optimizer's state."""
        return sum(tensor.nbytes for tensor in _tensors(self.optimizer.state))

    def state_dict(self) -> dict[str, Any]:
        """All of it, in tensors, numbers and strings."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random": torch.get_rng_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to where `state_dict` was called."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["random"])


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(part)


class Interruption:
    """Turns the first Ctrl-C into a wish to stop, so that no step is left half done."""

    def __init__(self) -> None:
        self.wished = False

    def __enter__(self) -> Self:
        self.previous = signal.signal(signal.SIGINT, self._wish)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self.previous)

    def _wish(self, _signal: int, _frame: FrameType | None) -> None:
        self.wished = True
        # A second Ctrl-C does not wait for the step to end.
        signal.signal(signal.SIGINT, signal.default_int_handler)


def save(path: Path, settings: dict[str, Any], runs: list[Run], training: Training) -> None:
    """Write a checkpoint aside, then give it its name: the file there is whole at any moment."""
    content = {
        "settings": settings,
        "runs": [asdict(run) for run in runs if run.training],
        "training": training.state_dict(),
    }
    try:
        torch.save(content, aside(path))
        aside(path).replace(path)
    except (OSError, RuntimeError) as error:  # PyTorch reports a full disk as the latter
        sys.exit(f"could not write the checkpoint {path}: {error}")


def restore(path: Path, settings: dict[str, Any]) -> tuple[list[Run], Mapping[str, Any]]:
    """Read the runs so far and the state of the last of them; refuse another configuration."""
    try:
        content = torch.load(path, weights_only=True)
        saved, runs = content["settings"], [Run(**run) for run in content["runs"]]
        state = content["training"]
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, TypeError) as error:
        raise UsageError(
            f"argument --checkpoint: must be a file that this program saved, got {path} "
            f"({type(error).__name__})"
        ) from None
    for name, value in settings.items():
        if saved.get(name) != value:
            raise UsageError(
                f"argument --checkpoint: {path} belongs to a run with {name} {saved.get(name)}, "
                f"this one has {value}; give it the same or choose another file"
            )
    return runs, state


class Job:
    """All the optimizers asked for, one after the other."""

    def __init__(self, settings: Settings, corpus: Corpus) -> None:
        self.settings, self.corpus = settings, corpus
        self.decisive = {**settings.decisive(), "--text": corpus.fingerprint}
        self.runs = [
            Run(name, OPTIMIZERS[name].label, lr)
            for name, lr in zip(settings.optimizers, settings.rates, strict=True)
        ]
        tell_apart(self.runs)
        self.resumed: Mapping[str, Any] | None = None
        # Wrong options show now, not when the optimizers before have done their work.
        for run in self.runs:
            model = Training(run.optimizer, run.learning_rate, settings).model
            self.parameters = sum(parameter.numel() for parameter in model.parameters())
        if settings.checkpoint and settings.checkpoint.exists():
            done, self.resumed = restore(settings.checkpoint, self.decisive)
            self.runs[: len(done)] = done

    def work(self, live: LiveReport, interruption: Interruption) -> bool:
        """Train until all is done or an interruption is wished; whether all is done."""
        settings = self.settings
        started = [run for run in self.runs if run.training]
        for run in self.runs[max(0, len(started) - 1) :]:
            training = Training(run.optimizer, run.learning_rate, settings)
            if self.resumed is not None:
                training.load_state_dict(self.resumed)
                self.resumed = None
            self._work_on(run, training, live, interruption)
            if interruption.wished:
                break
        return all(run.step == settings.steps for run in self.runs)

    def _work_on(
        self, run: Run, training: Training, live: LiveReport, interruption: Interruption
    ) -> None:
        settings = self.settings
        window = settings.length + 1
        held_out = torch.from_numpy(self.corpus.validation(count=VALIDATION_WINDOWS, window=window))
        validate_every = math.ceil(settings.steps / VALIDATIONS)
        clock = time.perf_counter()
        while run.step < settings.steps and not interruption.wished:
            windows = self.corpus.batch(
                run.step, seed=settings.seed, count=settings.batch, window=window
            )
            loss, seconds = training.step(torch.from_numpy(windows))
            if not math.isfinite(loss):
                sys.exit(
                    f"{run.label}: the loss is {loss} at step {run.step + 1}; try an --lr below "
                    f"{run.learning_rate:g}"
                )
            run.training.append(loss)
            run.optimizer_seconds.append(seconds)
            if run.step % validate_every == 0 or run.step == settings.steps:
                run.validation.append((run.step, training.validate(held_out, settings.batch)))
                run.state_bytes = training.state_bytes()
            now = time.perf_counter()
            run.seconds, clock = run.seconds + now - clock, now
            live.show(run)
            if settings.checkpoint and run.step % settings.checkpoint_every == 0:
                save(settings.checkpoint, self.decisive, self.runs, training)
        if settings.checkpoint and run.training:
            save(settings.checkpoint, self.decisive, self.runs, training)


def check_options(settings: Settings) -> None:
    """Refuse options that nobody would read, and those that have an argument of their own."""
    if settings.options and not any(
        isinstance(OPTIMIZERS[name].build, LowRank) for name in settings.optimizers
    ):
        raise UsageError(
            "argument --option: needs a low-rank optimizer in --optimizer, got "
            + ", ".join(settings.options)
        )
    for option in settings.options.keys() & {"params", "lr", "rank"}:
        raise UsageError(f"argument --option: must not set what has its own argument, got {option}")


def caption(settings: Settings, parameters: int) -> str:
    """One line on what was trained."""
    return (
        f"{parameters / 1e6:.1f}M parameters, rank {settings.rank:g}, {settings.steps} steps of "
        f"{settings.batch} x {settings.length} bytes, seed {settings.seed}, PyTorch "
        f"{torch.__version__}, {torch.get_num_threads()} threads"
    )


def tell_how_to_go_on(job: Job, tell: Callable[[str], None]) -> None:
    """Say where the run stopped and how it goes on."""
    at_work = next((run for run in reversed(job.runs) if run.training), None)
    if at_work is None:
        tell("Stopped before the first step.")
        return
    tell(f"Stopped after step {at_work.step} of {job.settings.steps} of {at_work.label}.")
    if job.settings.checkpoint:
        again = shlex.join([Path(sys.executable).name, *sys.argv])
        tell(f"Saved to {job.settings.checkpoint}. The same command goes on:\n  {again}")
    else:
        tell("Nothing was saved: a run with --checkpoint PATH can go on where it stopped.")


def run(arguments: list[str] | None) -> int:
    """Do what the command line asks for; the exit status."""
    parser = make_parser(
        "Train a small language model and compare optimizers.", OPTIMIZERS, PICTURE
    )
    settings = settings_from(
        parser, arguments, {name: recipe.lr for name, recipe in OPTIMIZERS.items()}
    )
    console = Console()
    try:
        check_options(settings)
        corpus = load(settings.text)
        corpus.require(settings.length + 1)
        job = Job(settings, corpus)
    except TextError as error:
        parser.error(f"argument --text: {error}")
    except UsageError as error:
        parser.error(str(error))
    tell = partial(console.print, soft_wrap=True, highlight=False, markup=False)
    sizes = [len(part) / 1e6 for part in (corpus.training, corpus.held_out)]
    tell(f"{sizes[0]:.2f} MB to train on, {sizes[1]:.2f} MB held out, from {corpus.source}")
    tokens_per_step = settings.batch * settings.length
    live = LiveReport(
        job.runs, steps=settings.steps, tokens_per_step=tokens_per_step, console=console
    )
    with Interruption() as interruption, live:
        done = job.work(live, interruption)
    if not done:
        tell_how_to_go_on(job, tell)
        return INTERRUPTED
    about = caption(settings, job.parameters)
    console.print(table(job.runs))
    tell(about)
    draw(settings.output, job.runs, about)
    tell(f"Loss curves: {settings.output}")
    if settings.json:
        write_json(settings.json, job.runs, job.decisive | {"text": corpus.source})
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the job of a command line; the exit status."""
    try:
        return run(arguments)
    except KeyboardInterrupt:
        # Before training, or a second one that would not wait for the step to end.
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
