"""Which rule of update reaches the lowest loss for the state it keeps: a table of runs, each a line of JSON.

    python docs/examples/study.py --table equal

trains the same small model from the same weights on the same text by one method after the other, each at several
rates, and writes a line a run to `study.jsonl`: what was run, on what, and what came of it. A run that has its line is
not run again, so that a study may be stopped at any moment. `--report` prints a table for each size that is there: for
every method its best rate, the mean over seeds, and the difference to AdamW, paired by seed, with its standard error.

Tables and vectors get AdamW at the one rate `--other-lr`, whatever steps the hidden matrices, so that rates of hidden
matrices alone differ. Nothing decays.
"""

import argparse
import json
import math
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lowrank_torch
import torch
from _job import BETAS, CLIP_NORM, VALIDATION_WINDOWS, rate_factor
from _llama import Llama, next_byte_loss
from _packages import MissingPackageError, Packaged, apollo, galore, paper, stable_spam
from _rivals import Apollo, Dion, Foam, Racs, Rival, Scale, adam
from _study_table import read, report
from _text import Corpus, load
from _weights import first_weights
from rich.console import Console
from torch import Tensor, nn
from torch.optim import Optimizer

Build = Callable[[Any, float], Optimizer]

#: Steps whose training losses are one number of a run's curve.
STRETCH = 10


def ours(**options: Any) -> Build:
    """DCT-AdamW with these options."""
    keywords = {"betas": BETAS, "weight_decay": 0.0, "rank": 0.25, "preset": None, **options}
    return lambda groups, lr: lowrank_torch.DCTAdamW(groups, lr=lr, **keywords)


def trion(**options: Any) -> Build:
    """Trion with these options."""
    keywords = {"weight_decay": 0.0, "rank": 0.5, "scale": "spectral", **options}
    return lambda groups, lr: lowrank_torch.Trion(groups, lr=lr, **keywords)


def best(groups: Any, lr: float) -> Optimizer:
    """Trion's preset, whose rates are AdamW's, on all columns."""
    return lowrank_torch.Trion(groups, lr=lr, weight_decay=0.0, rank=1.0, preset="best")


def rival(kind: type[Rival]) -> Build:
    """A plain version of another optimizer."""
    return lambda groups, lr: kind(groups, lr, BETAS)


def packaged(make: Callable[..., Optimizer]) -> Build:
    """Another's own package."""
    return lambda groups, lr: Packaged(make, groups, lr, BETAS)


class AdamW(Rival):
    """Adam's direction for every matrix."""

    def direction(self, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """Adam's direction."""
        return adam(gradient, state, group)


class Muon(Rival):
    """Orthonormalised momentum (K. Jordan et al., 2024), by the library's own Newton-Schulz."""

    def direction(self, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """The momentum with its singular values near one."""
        from lowrank_core import orthogonalize

        buffer = state.setdefault("first", torch.zeros_like(gradient)).mul_(0.95).add_(gradient)
        rows, columns = gradient.shape
        return orthogonalize(gradient + 0.95 * buffer) * max(1.0, rows / columns) ** 0.5


# With updates as they come, so that rates are those of all rules alike.
FACTORED: dict[str, Any] = {"preset": "factored", "update_scale": 1.0}
METHODS: dict[str, Build] = {
    "adamw": rival(AdamW),
    "foam": rival(Foam),
    "apollo": rival(Apollo),
    "scale": rival(Scale),
    "racs": rival(Racs),
    "dion": rival(Dion),
    "muon": rival(Muon),
    "galore-torch": packaged(galore),
    "apollo-torch": packaged(apollo),
    "stable-spam": packaged(stable_spam),
    "paper": packaged(paper),
    "galore": ours(basis="svd", refresh_every=50, residual="discard"),
    "fira": ours(basis="svd", refresh_every=50, residual="scaled"),
    "ldadam": ours(basis="power", refresh_every=1, residual="error_feedback"),
    "frugal": ours(basis="svd", refresh_every=50, residual="sign"),
    "sign": ours(),
    "factored": ours(**FACTORED),
    "factored, 8 bits": ours(**FACTORED, moment_bits=8),
    "factored, rank 1/2": ours(**FACTORED, rank=0.5),
    "factored, dropped": ours(**FACTORED, residual="discard"),
    "factored, identity": ours(**FACTORED, basis="identity"),
    "factored, local": ours(**FACTORED, basis="local_dct"),
    "factored, random": ours(**FACTORED, basis="random"),
    "factored, rank 1/16": ours(**FACTORED, rank=0.0625),
    "factored, every step": ours(**FACTORED, refresh_every=1),
    "factored, sign": ours(**FACTORED, residual="sign"),
    "trion": trion(),
    "trion, 8 bits": trion(momentum_bits=8),
    "trion, all columns, 8 bits": trion(rank=1.0, momentum_bits=8),
    "trion, even rows, 8 bits": trion(momentum_bits=8, row_decay=0.95),
    "trion, all columns, even rows, 8 bits": trion(rank=1.0, momentum_bits=8, row_decay=0.95),
    "best": best,
}
# What each table runs: methods, and the rates that each is tried at.
TABLES: dict[str, Mapping[str, tuple[float, ...]]] = {
    "equal": {
        "adamw": (3.5e-4, 7e-4, 1e-3, 1.4e-3, 2e-3),
        "factored": (1e-3, 1.4e-3, 2e-3, 2.8e-3),
        "sign": (1e-3, 1.4e-3, 2e-3, 2.8e-3),
        "foam": (9e-4, 1.3e-3, 1.8e-3, 2.5e-3, 3.5e-3),
        "apollo": (3.5e-3, 7e-3, 1.4e-2, 2.8e-2),
        "galore": (1.4e-3, 2e-3, 2.8e-3, 4e-3),
        "fira": (1e-3, 1.4e-3, 2e-3, 2.8e-3),
        "ldadam": (1e-3, 1.4e-3, 2e-3, 2.8e-3),
        "scale": (4e-3, 8e-3, 1.6e-2, 3.2e-2),
        "racs": (3.5e-4, 7e-4, 1.4e-3, 2.8e-3),
        "dion": (5e-3, 1e-2, 2e-2, 4e-2),
        "frugal": (1.4e-3, 2e-3, 2.8e-3, 4e-3),
        "galore-torch": (2e-3, 2.8e-3, 4e-3, 5.6e-3),
        "apollo-torch": (3.5e-3, 7e-3, 1.4e-2, 2.8e-2),
        "stable-spam": (5e-4, 7e-4, 1e-3, 1.4e-3),
        "paper": (3.5e-4, 7e-4, 1.4e-3, 2.8e-3),
    },
    "least": {
        "factored, 8 bits": (1e-3, 1.4e-3, 2e-3, 2.8e-3),
        "trion": (1e-2, 2e-2, 4e-2, 8e-2),
        "trion, 8 bits": (1e-2, 2e-2, 4e-2, 8e-2),
        "trion, all columns, 8 bits": (1e-2, 2e-2, 4e-2),
        "trion, even rows, 8 bits": (1e-2, 2e-2, 4e-2),
        "trion, all columns, even rows, 8 bits": (1e-2, 2e-2, 4e-2),
        "best": (7e-4, 1e-3, 1.4e-3, 2e-3),
        "muon": (1e-2, 2e-2, 4e-2, 8e-2),
    },
    "parts": {
        "factored": (2.8e-3,),
        "factored, dropped": (2.8e-3,),
        "factored, sign": (2.8e-3,),
        "factored, every step": (2.8e-3,),
        "factored, identity": (2.8e-3,),
        "factored, local": (2.8e-3,),
        "factored, random": (2.8e-3,),
        "factored, rank 1/2": (2.8e-3,),
        "factored, rank 1/16": (2.8e-3,),
    },
}


@dataclass(frozen=True)
class Run:
    """What decides on a run's numbers."""

    method: str
    lr: float
    seed: int
    steps: int
    width: int
    layers: int
    batch: int
    length: int
    other_lr: float


def train(run: Run, corpus: Corpus) -> dict[str, Any]:
    """Train by one method; what came of it."""
    torch.manual_seed(run.seed)
    model = Llama(run.width, run.layers, 4, run.length)
    own = dict(model.named_parameters())
    first = first_weights(None, {n: p.detach().numpy() for n, p in own.items()})
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(torch.tensor(first[name]))
    groups = lowrank_torch.matrix_groups(model, other={"lr": run.other_lr})
    hidden = [p for g in groups if g.get("algorithm") != "adamw" for _, p in g["params"]]
    optimizer = METHODS[run.method](groups, run.lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: rate_factor(step, steps=run.steps)
    )
    window, begun, optimizing = run.length + 1, time.perf_counter(), 0.0
    losses: list[float] = []
    for step in range(run.steps):
        windows = corpus.batch(step, seed=run.seed, count=run.batch, window=window)
        loss = next_byte_loss(model, torch.as_tensor(windows))
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        before = time.perf_counter()
        optimizer.step()
        optimizing += time.perf_counter() - before
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            break
    seconds = time.perf_counter() - begun
    held_out = torch.as_tensor(corpus.validation(count=VALIDATION_WINDOWS, window=window))
    with torch.no_grad():
        parts = torch.split(held_out, run.batch)
        total = sum(next_byte_loss(model, part).item() * len(part) for part in parts)
    states = [optimizer.state[p] for p in hidden]
    return {
        "loss": total / len(held_out),
        "curve": [round(statistics.fmean(part), 4) for part in stretches(losses)],
        "hidden_state_bytes": held(states),
        "state_bytes": held(optimizer.state.values()),
        "numbers_per_weight": held(states) / 4 / sum(p.numel() for p in hidden),
        "parameters": sum(p.numel() for p in model.parameters()),
        "ms_per_step": 1e3 * seconds / run.steps,
        "optimizer_ms_per_step": 1e3 * optimizing / run.steps,
    }


def stretches(losses: list[float]) -> Iterator[list[float]]:
    """The losses of all steps in runs of `STRETCH`."""
    return (losses[start : start + STRETCH] for start in range(0, len(losses), STRETCH))


def command_of(run: Run, given: argparse.Namespace) -> str:
    """The command that does one run."""
    options = {
        "method": run.method, "lr": f"{run.lr:g}", "seeds": run.seed, "steps": run.steps,
        "d-model": run.width, "layers": run.layers, "batch": run.batch, "seq-len": run.length,
        "other-lr": f"{run.other_lr:g}", "threads": given.threads,
    }  # fmt: skip
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    text = ["--text", *map(str, given.text)] if given.text else []
    return shlex.join(["study.py", *words, *text])


def held(states: Iterable[Mapping[str, Any]]) -> int:
    """Bytes of the tensors of parameters' states and of what other packages keep there, each counted once."""
    tensors: dict[int, Tensor] = {}
    for state in states:
        for value in state.values():
            within = (
                [value] if isinstance(value, Tensor) else getattr(value, "__dict__", {}).values()
            )
            tensors |= {id(x): x for x in within if isinstance(x, Tensor)}
    return sum(tensor.nbytes for tensor in tensors.values())


def machine() -> dict[str, Any]:
    """What a run's times and rounding depend on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    return {
        "cpu": cpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
        # Processes that ran or wanted to during the last minute: times beside others say little.
        **({"load": round(os.getloadavg()[0], 2)} if hasattr(os, "getloadavg") else {}),
    }


def main(arguments: list[str] | None = None) -> int:
    """Run what has no line yet, or report."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--table", choices=list(TABLES), default="equal", help="which methods and rates")
    add("--method", nargs="+", choices=list(METHODS), help="of the table, these methods alone")
    add("--lr", nargs="+", type=float, help="these rates in the place of the table's")
    add("--seeds", nargs="+", type=int, default=[0], help="of first weights and data order")
    add("--steps", type=int, default=200)
    add("--d-model", type=int, default=256)
    add("--layers", type=int, default=4)
    add("--batch", type=int, default=8, help="windows a step")
    add("--seq-len", type=int, default=256, help="bytes a window")
    add("--other-lr", type=float, default=8e-3, help="of tables and vectors, by AdamW")
    add("--text", nargs="+", type=Path, default=[], help="files or folders to train on")
    add("--threads", type=int, default=1)
    add("--out", type=Path, default=Path("study.jsonl"))
    add("--report", action="store_true", help="print the table of what is there, and run nothing")
    given = parser.parse_args(arguments)
    console, lines = Console(), read(given.out)
    if given.report:
        report(lines, console)
        return 0
    torch.set_num_threads(given.threads)
    corpus = load(given.text)
    rates = TABLES[given.table]
    methods = given.method or list(rates)
    missing = set()
    for seed in given.seeds:
        for method in methods:
            for lr in given.lr or rates[method]:
                run = Run(
                    method, lr, seed, given.steps, given.d_model, given.layers, given.batch,
                    given.seq_len, given.other_lr,
                )  # fmt: skip
                wanted = asdict(run) | {"text": corpus.fingerprint}
                if any(wanted.items() <= line.items() for line in lines):
                    continue
                try:
                    result = train(run, corpus)
                except MissingPackageError as error:
                    missing.add(f"{method}: {error}")
                    continue
                line = wanted | result | machine() | {"threads": given.threads}
                line["command"] = command_of(run, given)
                with given.out.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                lines.append(line)
                console.print(f"{method}, rate {lr:g}, seed {seed}: {result['loss']:.4f}")
    for message in sorted(missing):
        console.print(message)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
