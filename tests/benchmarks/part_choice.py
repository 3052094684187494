"""The choice between transforms and products: a step as the library chooses, and with either forced."""

from __future__ import annotations

import lowrank_torch
from _peers import RATE
from _race import Contender, Effort, race
from _steps import Matrices
from _tables import Column, Findings, Table, Target

SLOWER = 1.10
#: Rows, columns, rank, and how many such matrices.
CASES = (
    (256, 256, 16, 32),
    (256, 256, 64, 32),
    (1024, 1024, 32, 4),
    (1024, 1024, 256, 4),
    (1024, 4096, 256, 1),
    (2048, 2048, 64, 1),
    (2048, 2048, 512, 1),
    (4096, 4096, 128, 1),
)
QUICK_CASES = ((32, 32, 4, 2), (48, 40, 12, 1))
METHODS = ("auto", "fft", "matmul")


def run(effort: Effort, *, quick: bool) -> Findings:
    """Time steps that choose columns and steps that keep them, by every method."""
    table = Table(
        "choice",
        "One step of DCT-AdamW by the method chosen and by those forced",
        (
            Column("matrices"),
            Column("rank", "count"),
            Column("columns"),
            Column("`auto`, ms", "ms"),
            Column("`fft`, ms", "ms"),
            Column("`matmul`, ms", "ms"),
            Column("`auto` over the best", "x"),
            Column("remark"),
        ),
        note="By the defaults, without `lowrank_core.calibrate`.",
    )
    worst = 0.0
    cases = QUICK_CASES if quick else CASES
    for rows, columns, rank, count in cases:
        matrices = Matrices([(rows, columns)] * count)
        for kept, period in (("chosen", 1), ("kept", 10**9)):
            contenders = []
            for method in METHODS:
                optimizer = lowrank_torch.DCTAdamW(
                    matrices.parameters,
                    lr=RATE,
                    rank=rank,
                    method=method,
                    refresh_every=period,
                    preset=None,
                    residual="discard",
                )
                optimizer.step()
                contenders.append(Contender(method, optimizer.step, before=matrices.restore))
            times = race(contenders, effort.share(1 / (2 * len(cases))))
            auto = times["auto"]
            over = max(auto.ratio(times[method]) for method in METHODS)
            worst = max(worst, over)
            seconds = (times[method].seconds() for method in METHODS)
            label = f"{count} of {rows} x {columns}" if count > 1 else f"{rows} x {columns}"
            remarks = (f"{name}: {own.remark()}" for name, own in times.items() if own.remark())
            table.add(label, float(rank), kept, *seconds, over, "; ".join(remarks))
    return Findings(
        [table], [Target("a chosen path over the best of those forced, at worst", SLOWER, worst)]
    )
