"""How the cost of a step grows with the rank, with the size of the matrix, and with how often columns are chosen."""

from __future__ import annotations

import math
from functools import partial

import lowrank_torch
from _peers import ADAMW, DCT_ADAMW, PEERS, RATE, SELDOM, TRION
from _race import Contender, Effort, Times, race
from _steps import Matrices, contender
from _tables import Column, Findings, Table, Target

RANKS = (32, 64, 128, 256, 512, 1024)
SIZES = (1024, 2048, 4096, 8192)
PERIODS = (1, 2, 5, 10, 50, 200)
TRANSFORMS = 'DCT-AdamW, `method="fft"`'
RANK_INDEPENDENCE, GROWTH = 1.25, 2.25


def by_rank(side: int, ranks: tuple[int, ...], effort: Effort) -> tuple[Table, list[Target]]:
    """Time DCT-AdamW, as it chooses and by transforms alone, and Trion at several ranks, all in one race."""
    matrices = Matrices([(side, side)])
    contenders = [contender(PEERS[ADAMW], matrices, 1)[0]]
    for name in (DCT_ADAMW, TRION):
        for rank in ranks:
            made, _ = contender(PEERS[name], matrices, rank)
            contenders.append(Contender(f"{name} {rank}", made.step, before=matrices.restore))
    for rank in ranks:
        optimizer = lowrank_torch.DCTAdamW(
            matrices.parameters, lr=RATE, rank=rank, preset=None, residual="discard", method="fft"
        )
        contenders.append(
            Contender(f"{TRANSFORMS} {rank}", optimizer.step, before=matrices.restore)
        )
    times = race(contenders, effort)
    table = Table(
        "rank",
        f"Cost against rank, one {side} x {side} matrix",
        (
            Column("rank", "count"),
            Column("DCT-AdamW, ms", "ms"),
            Column("over the lowest rank", "x"),
            Column(f"{TRANSFORMS}, ms", "ms"),
            Column("over the lowest rank", "x"),
            Column("Trion, ms", "ms"),
            Column("over the lowest rank", "x"),
        ),
        note="Up to a rank that depends on the size, products with few columns are faster than transforms.",
    )
    names = (DCT_ADAMW, TRANSFORMS, TRION)
    first = {name: times[f"{name} {ranks[0]}"] for name in names}
    for rank in ranks:
        cells = [
            number
            for name in names
            for number in (
                times[f"{name} {rank}"].seconds(),
                times[f"{name} {rank}"].ratio(first[name]),
            )
        ]
        table.add(float(rank), *cells)
    high = side // 4
    targets = [
        Target(
            f"{name}, side {side}, rank {high} over rank {ranks[0]}",
            RANK_INDEPENDENCE,
            times[f"{name} {high}"].ratio(first[name]),
        )
        for name in (DCT_ADAMW, TRANSFORMS)
    ]
    return table, targets


def by_size(sizes: tuple[int, ...], rank: int, effort: Effort) -> tuple[Table, Target]:
    """Time matrices of several sizes, all in one race."""
    contenders = []
    for size in sizes:
        matrices = Matrices([(size, size)])
        for name in (DCT_ADAMW, TRION, ADAMW):
            made, _ = contender(PEERS[name], matrices, rank)
            contenders.append(Contender(f"{name} {size}", made.step, before=matrices.restore))
    times = race(contenders, effort)
    table = Table(
        "size",
        f"Cost against size, one square matrix, rank {rank}",
        (
            Column("side", "count"),
            Column("DCT-AdamW, ms", "ms"),
            Column("Trion, ms", "ms"),
            Column("AdamW (fused), ms", "ms"),
            Column("DCT-AdamW over AdamW", "x"),
        ),
    )
    for size in sizes:
        ours, trion, adamw = (times[f"{name} {size}"] for name in (DCT_ADAMW, TRION, ADAMW))
        table.add(float(size), ours.seconds(), trion.seconds(), adamw.seconds(), ours.ratio(adamw))
    low, high = sizes[0], sizes[-1]
    growth = times[f"{DCT_ADAMW} {high}"].ratio(times[f"{DCT_ADAMW} {low}"])
    exponent = math.log(growth) / math.log(high / low)
    name = f"DCT-AdamW, exponent of growth with the side, {low} to {high}"
    return table, Target(name, GROWTH, exponent)


def by_period(side: int, rank: int, effort: Effort) -> Table:
    """Time a step that chooses columns and one that does not, and reckon what periods make of them."""
    matrices = Matrices([(side, side)])
    adamw, _ = contender(PEERS[ADAMW], matrices, rank)
    contenders = [adamw]
    residuals = ("discard", "error_feedback", "normalized")
    for residual in residuals:
        for period in (1, SELDOM):
            optimizer = lowrank_torch.DCTAdamW(
                matrices.parameters,
                lr=RATE,
                rank=rank,
                preset=None,
                residual=residual,
                refresh_every=period,
            )
            name = f"{residual} {period}"
            contenders.append(Contender(name, optimizer.step, before=matrices.restore))
    times = race(contenders, effort)
    table = Table(
        "period",
        f"Cost against the period of choosing columns, one {side} x {side} matrix, rank {rank}, over AdamW (fused)",
        (
            Column("`refresh_every`", "count"),
            *(Column(f'`residual="{residual}"`', "x") for residual in residuals),
        ),
        note="Reckoned from the times of a step that chooses columns and of one that does not.",
    )
    for period in PERIODS:
        spread = partial(_spread, times, adamw.name, period)
        table.add(float(period), *map(spread, residuals))
    return table


def _spread(times: dict[str, Times], reference: str, period: int, residual: str) -> float:
    choosing = times[f"{residual} 1"].ratio(times[reference])
    keeping = times[f"{residual} {SELDOM}"].ratio(times[reference])
    return choosing / period + keeping * (1 - 1 / period)


def run(effort: Effort, *, quick: bool) -> Findings:
    """Time all three."""
    ranks = (2, 4, 8) if quick else RANKS
    sizes = (32, 64) if quick else SIZES
    rank_table, rank_targets = by_rank(32 if quick else 2048, ranks, effort.share(0.35))
    size_table, size_target = by_size(sizes, 8 if quick else 256, effort.share(0.4))
    period_table = by_period(32 if quick else 2048, 8 if quick else 256, effort.share(0.25))
    return Findings([rank_table, size_table, period_table], [*rank_targets, size_target])
