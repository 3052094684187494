"""Many small matrices: one by one, as one stacked parameter, and stacked by the optimizer itself (`foreach`)."""

from __future__ import annotations

import lowrank_torch
import torch
from _peers import ADAMW, DCT_ADAMW, MUON, PEERS, RATE, TRION
from _race import Contender, Effort, race
from _steps import Matrices, contender
from _tables import Column, Findings, Table, Target
from torch.nn import Parameter

SPEED_UP = 2.0


def stacked(count: int, side: int) -> Parameter:
    """Return all matrices as one parameter, with its gradient."""
    generator = torch.Generator().manual_seed(0)
    parameter = Parameter(torch.randn(count, side, side, generator=generator))
    parameter.grad = torch.randn(count, side, side, generator=generator)
    return parameter


def run(effort: Effort, *, quick: bool) -> Findings:
    """Time a step on all of them."""
    count, side, rank = (6, 16, 4) if quick else (200, 256, 64)
    matrices = Matrices([(side, side)] * count)
    contenders = [contender(PEERS[ADAMW], matrices, rank)[0]]
    families = {DCT_ADAMW: lowrank_torch.DCTAdamW, TRION: lowrank_torch.Trion}
    for name, family in families.items():
        for foreach in (False, True):
            label = f"{name}, `foreach={foreach}`"
            options = {"foreach": foreach}
            optimizer = family(matrices.parameters, lr=RATE, rank=rank, **options)
            contenders.append(Contender(label, optimizer.step, before=matrices.restore))
        whole = family([stacked(count, side)], lr=RATE, rank=rank, batch_dims=1)
        contenders.append(Contender(f"{name}, one parameter with `batch_dims=1`", whole.step))
    contenders.append(contender(PEERS[MUON], matrices, rank)[0])
    times = race(contenders, effort)
    table = Table(
        "stack",
        f"One step on {count} matrices of {side} x {side}, rank {rank}",
        (
            Column("optimizer"),
            Column("ms", "ms"),
            Column("over AdamW", "x"),
            Column("one by one over it", "x"),
            Column("remark"),
        ),
    )
    for each in contenders:
        own = times[each.name]
        alone = next(
            (
                times[f"{name}, `foreach=False`"]
                for name in families
                if each.name.startswith(f"{name},")
            ),
            None,
        )
        gain = None if alone is None else alone.ratio(own)
        table.add(each.name, own.seconds(), own.ratio(times[ADAMW]), gain, own.remark())
    targets = []
    for name in families:
        label, alone = f"{name}, `foreach=True`", times[f"{name}, `foreach=False`"]
        what = f"{name}: one by one over stacked, {count} of {side} x {side}"
        targets.append(Target(what, SPEED_UP, alone.ratio(times[label]), at_least=True))
    return Findings([table], targets)
