"""The whole training step of the documentation's main job: forward, backward, clipping, optimizer.

    python tests/benchmarks/part_training.py SECONDS [--quick]

is a process of its own for one of OpenMP's ways of waiting, which it takes from the environment, and prints what it
found as JSON.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from _child import found_by
from _race import QUICK, Contender, Effort, race
from _tables import Column, Findings, Table, Target

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
ADDED = 1.15
RATE = 1e-6
#: What OpenMP's threads do while they wait, and the environment that has them do so.
WAITING: dict[str, dict[str, str]] = {"spin a while": {}, "sleep": {"OMP_WAIT_POLICY": "PASSIVE"}}


def measure(effort: Effort, *, quick: bool) -> dict[str, Any]:
    """Time training steps of every optimizer of the job, each on a model of its own and the same batch."""
    # Before the example, which would have it that threads sleep.
    import torch

    sys.path.insert(0, str(EXAMPLES))
    job: Any = importlib.import_module("pretrain_lm")
    load: Any = importlib.import_module("_text").load
    settings_module: Any = importlib.import_module("_settings")

    small = ["--d-model", "32", "--layers", "1", "--heads", "2", "--batch", "2", "--seq-len", "16"]
    rates = {name: recipe.lr for name, recipe in job.OPTIMIZERS.items()}
    parser = settings_module.make_parser("", job.OPTIMIZERS, job.PICTURE)
    settings = settings_module.settings_from(parser, small if quick else [], rates)
    # The text is the example's own code: what is read does not matter, and how much there is does not either.
    batch = load([EXAMPLES]).batch(0, seed=0, count=settings.batch, window=settings.length + 1)
    windows = torch.from_numpy(batch)
    names = [name for name in job.OPTIMIZERS if name != "galore"]
    jobs = {name: job.Training(name, RATE, settings) for name in names}
    spent: dict[str, list[float]] = {name: [] for name in names}

    def step(name: str) -> None:
        _, seconds = jobs[name].step(windows)
        spent[name].append(seconds)

    times = race([Contender(name, partial(step, name)) for name in names], effort)
    parameters = sum(parameter.numel() for parameter in jobs[names[0]].model.parameters())
    rows = {}
    for name in names:
        alone = sorted(spent[name])[len(spent[name]) // 2]
        ratio = times[name].ratio(times["adamw"])
        cells = [times[name].seconds(), alone, ratio, float(jobs[name].state_bytes())]
        rows[name] = [job.OPTIMIZERS[name].label, *cells]
    title = f"{parameters / 1e6:.1f}M parameters, {settings.batch} x {settings.length} bytes"
    return {"job": title, "rows": rows}


def child(environment: dict[str, str], effort: Effort, *, quick: bool) -> dict[str, Any]:
    """Return what `measure` says in a fresh process."""
    others = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    found: dict[str, Any] = found_by(
        __file__,
        effort.seconds,
        *(["--quick"] if quick else []),
        environment=others | environment,
    )
    return found


def run(effort: Effort, *, quick: bool) -> Findings:
    """Time the job's steps under both ways of waiting."""
    share = effort.share(1 / len(WAITING))
    found = {way: child(environment, share, quick=quick) for way, environment in WAITING.items()}
    table = Table(
        "training",
        f"One training step: {next(iter(found.values()))['job']}",
        (
            Column("threads that wait"),
            Column("optimizer"),
            Column("step, ms", "ms"),
            Column("of it the optimizer, ms", "ms"),
            Column("whole step over AdamW", "x"),
            Column("state, MB", "MB"),
        ),
        note="As in `docs/examples/pretrain_lm.py`, with its model, batch, groups and ranks; AdamW is fused. "
        "Threads spin unless OpenMP is told otherwise; the example tells it `OMP_WAIT_POLICY=PASSIVE`.",
    )
    targets = []
    for way, each in found.items():
        for row in each["rows"].values():
            table.add(way, *row)
        ratio = each["rows"]["dct-adamw"][3]
        what = f"DCT-AdamW's whole training step over AdamW's, threads that wait {way}"
        targets.append(Target(what, ADDED, ratio))
    return Findings([table], targets)


def main() -> None:
    """Measure in this process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("seconds", type=float)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    effort = QUICK if options.quick else Effort(options.seconds)
    print(json.dumps(measure(effort, quick=options.quick)))


if __name__ == "__main__":
    main()
