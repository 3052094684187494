"""`torch.compile` of an optimizer's step: what compiling takes, and what a step takes after it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import lowrank_torch
import torch
from _peers import RATE
from _race import Contender, Effort, race
from _steps import Matrices, Shapes
from _tables import Column, Findings, Table

#: Name: matrices and rank.
CASES: dict[str, tuple[Shapes, int]] = {
    "one of 2048 x 2048": ([(2048, 2048)], 256),
    "8 of 256 x 256": ([(256, 256)] * 8, 64),
}
# More than one: a stack returns as many counts as it has matrices.
QUICK_CASES: dict[str, tuple[Shapes, int]] = {"2 of 32 x 32": ([(32, 32)] * 2, 8)}


def optimizers() -> dict[str, Callable[..., Any]]:
    """Return what is compiled, by name."""
    dct_adamw, trion = lowrank_torch.DCTAdamW, lowrank_torch.Trion
    return {
        "AdamW": lambda parameters, rank: torch.optim.AdamW(parameters, lr=RATE, foreach=True),
        "DCT-AdamW": lambda parameters, rank: dct_adamw(
            parameters, lr=torch.tensor(RATE), rank=rank, preset=None, residual="discard"
        ),
        "DCT-AdamW, sign of the residual": lambda parameters, rank: dct_adamw(
            parameters, lr=torch.tensor(RATE), rank=rank, preset=None
        ),
        "Trion": lambda parameters, rank: trion(parameters, lr=torch.tensor(RATE), rank=rank),
    }


def run(effort: Effort, *, quick: bool) -> Findings:
    """Compile the steps whole, and time them beside those that are not compiled."""
    table = Table(
        "compile",
        "`torch.compile(optimizer.step)`",
        (
            Column("matrices"),
            Column("optimizer"),
            Column("not compiled, ms", "ms"),
            Column("compiled, ms", "ms"),
            Column("compiled over not", "x"),
            Column("compilation, s", "s"),
            Column("remark"),
        ),
        note="With `fullgraph=True`, by which a break in the graph is an error; AdamW, which has one, without.",
    )
    cases = QUICK_CASES if quick else CASES
    for label, (shapes, rank) in cases.items():
        for name, make in optimizers().items():
            matrices = Matrices(shapes)
            plain = make(matrices.parameters, rank)
            wrapped = make(matrices.parameters, rank)
            plain.step()
            wrapped.step()
            torch._dynamo.reset()
            # PyTorch's own optimizers break the graph on purpose, where they switch gradients off.
            compiled = torch.compile(wrapped.step, fullgraph=name != "AdamW")
            begin = time.perf_counter()
            for _ in range(3):
                matrices.restore()
                compiled()
            seconds = time.perf_counter() - begin
            contenders = [
                Contender("plain", plain.step, before=matrices.restore),
                Contender("compiled", compiled, before=matrices.restore),
            ]
            times = race(contenders, effort.share(1 / (4 * len(cases))))
            before, after = times["plain"], times["compiled"]
            over, remark = after.ratio(before), after.remark()
            table.add(label, name, before.seconds(), after.seconds(), over, seconds, remark)
    return Findings([table], [])
