"""Many small matrices: what a step costs for each, beside AdamW's; stacked by the optimizer, and one by one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import lowrank_torch
from _peers import DEFAULT, RATE, TRION
from _race import Contender, Effort, race
from _steps import Matrices
from _tables import Column, Findings, Table, Target
from torch.optim import AdamW, Optimizer

#: Times PyTorch's AdamW by lists of tensors.
ALLOWED = 2.0
#: One by one over stacked, of the largest stack.
SPEED_UP = 2.0
ALONE = ", `foreach=False`"
FOREACH, FUSED = "AdamW, `foreach=True`", "AdamW, `fused=True`"
DCT_ADAMW: Callable[..., Optimizer] = lowrank_torch.DCTAdamW
BUILDS: dict[str, Callable[..., Optimizer]] = {
    FOREACH: partial(AdamW, foreach=True),
    FUSED: partial(AdamW, fused=True),
    DEFAULT: partial(DCT_ADAMW, rank=0.25),
    DEFAULT + ALONE: partial(DCT_ADAMW, rank=0.25, foreach=False),
    "DCT-AdamW, residual dropped": partial(DCT_ADAMW, rank=0.25, preset=None, residual="discard"),
    TRION: partial(lowrank_torch.Trion, rank=0.25),
    TRION + ALONE: partial(lowrank_torch.Trion, rank=0.25, foreach=False),
}
#: How many, and of what shape.
STACKS = ((16, (64, 256)), (64, (64, 256)), (256, (64, 256)), (200, (256, 256)))


def run(effort: Effort, *, quick: bool) -> Findings:
    """Time a step on all of each stack."""
    found = Findings()
    for count, shape in [(6, (16, 16))] if quick else STACKS:
        matrices = Matrices([shape] * count)
        own: dict[str, Any] = {
            name: build(matrices.parameters, lr=RATE) for name, build in BUILDS.items()
        }
        contenders = [
            Contender(name, optimizer.step, before=matrices.restore)
            for name, optimizer in own.items()
        ]
        times = race(contenders, effort.share(1 / len(STACKS)))
        what = f"{count} of {shape[0]} x {shape[1]}"
        table = Table(
            f"stack-{count}-{shape[0]}",
            f"One step on {what}, rank 1/4",
            (
                Column("optimizer"),
                Column("ms", "ms"),
                Column("microseconds a matrix"),
                Column("over AdamW, `foreach=True`", "x"),
                Column("over AdamW, `fused=True`", "x"),
                Column("remark"),
            ),
        )
        for name, taken in times.items():
            each = f"{1e6 * taken.seconds() / count:.0f}"
            ratios = taken.ratio(times[FOREACH]), taken.ratio(times[FUSED])
            table.add(name, taken.seconds(), each, *ratios, taken.remark())
        found.tables.append(table)
        ratio = times[DEFAULT].ratio(times[FOREACH])
        found.targets.append(Target(f"{DEFAULT} over AdamW by lists, {what}", ALLOWED, ratio))
    for name in (DEFAULT, TRION):
        gain, label = times[name + ALONE].ratio(times[name]), f"{name}: one by one over stacked"
        found.targets.append(Target(f"{label}, {what}", SPEED_UP, gain, at_least=True))
    return found
