"""The whole training step of the documentation's main job: forward, backward, clipping, optimizer."""

from __future__ import annotations

import importlib
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _race import Contender, Effort, race
from _tables import Column, Findings, Table, Target

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
ADDED = 1.15
RATE = 1e-6


def run(effort: Effort, *, quick: bool) -> Findings:
    """Time training steps of every optimizer of the job, each on a model of its own and the same batch."""
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

    labels = {name: job.OPTIMIZERS[name].label for name in names}
    contenders = [Contender(labels[name], partial(step, name)) for name in names]
    times = race(contenders, effort)
    parameters = sum(parameter.numel() for parameter in jobs[names[0]].model.parameters())
    table = Table(
        "training",
        f"One training step: {parameters / 1e6:.1f}M parameters, {settings.batch} x {settings.length} bytes",
        (
            Column("optimizer"),
            Column("step, ms", "ms"),
            Column("of it the optimizer, ms", "ms"),
            Column("whole step over AdamW", "x"),
            Column("state, MB", "MB"),
        ),
        note="As in `docs/examples/pretrain_lm.py`, with its model, batch, groups and ranks; AdamW is fused.",
    )
    reference = times[labels["adamw"]]
    for name in names:
        own: Any = times[labels[name]]
        alone = sorted(spent[name])[len(spent[name]) // 2]
        table.add(
            labels[name],
            own.seconds(),
            alone,
            own.ratio(reference),
            float(jobs[name].state_bytes()),
        )
    target = Target(
        "DCT-AdamW's whole training step over AdamW's",
        ADDED,
        times[labels["dct-adamw"]].ratio(reference),
    )
    return Findings([table], [target])
