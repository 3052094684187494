"""Adding an update into a parameter in place, block by block, in float32 arithmetic at least."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lowrank_core import LowRankUpdate, materialize
from lowrank_core.ops import Ops
from lowrank_core.random import fold
from lowrank_core.rounding import round_stochastically
from lowrank_core.update import slice_across, with_vectors

# Numbers in one block of the temporary that holds the update: the cores' caches on the CPU, a launch worth
# making elsewhere.
_CPU_BLOCK = 2**18
_DEVICE_BLOCK = 2**24


class Dither(NamedTuple):
    """What makes the random rounding of one write its own: a stream for each parameter, the step, and the place."""

    stream: int
    step: int | Tensor
    place: int = 0


def apply_update(
    matrices: Tensor,
    update: LowRankUpdate,
    *,
    rate: float | Tensor,
    decay: float,
    dither: Dither | None,
    ops: Ops,
) -> None:
    """Do ``matrices <- (1 - rate * decay) * matrices - rate * update`` in place, with bounded temporaries."""
    dim = -2 if update.axis == -1 else -1
    numbers = _CPU_BLOCK if matrices.device.type == "cpu" else _DEVICE_BLOCK
    update = with_vectors(update, "auto", ops)
    width = max(1, numbers * matrices.shape[dim] // max(1, matrices.numel()))

    def add(start: int) -> None:
        length = min(width, matrices.shape[dim] - start)
        target = matrices.narrow(dim, start, length)
        delta: Any = materialize(slice_across(update, slice(start, start + length)), ops=ops)
        place = None if dither is None else dither._replace(place=dither.place + start)
        move(target, delta, rate, decay, place, ops)

    starts = range(0, matrices.shape[dim], width)
    if matrices.device.type == "cpu":
        ops.for_each(add, starts)
    else:
        for start in starts:
            add(start)


def apply_stacked(
    targets: Sequence[Tensor],
    update: LowRankUpdate,
    *,
    rate: float | Tensor,
    decay: float,
    dithers: Sequence[Dither | None],
    ops: Ops,
) -> None:
    """Do what `apply_update` does for each of ``targets`` with its part of the ``update`` of their stack."""
    deltas: Any = materialize(update, ops=ops)
    for target, delta, dither in zip(targets, deltas.unbind(), dithers, strict=True):
        move(target, delta, rate, decay, dither, ops)


def move(
    target: Tensor,
    delta: Tensor,
    rate: float | Tensor,
    decay: float,
    dither: Dither | None,
    ops: Ops,
) -> None:
    """Do ``target <- (1 - rate * decay) * target - rate * delta`` in place; ``delta`` may be changed too."""
    exact = target if target.dtype == delta.dtype else target.to(delta.dtype)
    if decay:
        exact.mul_(1 - rate * decay)
    if isinstance(rate, Tensor):
        exact.sub_(delta.mul_(rate))
    else:
        exact.sub_(delta, alpha=rate)
    if exact is not target:
        write(target, exact, dither, ops)


def write(target: Tensor, exact: Tensor, dither: Dither | None, ops: Ops) -> None:
    """Write ``exact`` into the narrower ``target``, rounded to nearest or, with a ``dither``, at random."""
    if dither is None:
        target.copy_(exact)
        return
    key: Any = torch.full((1,), dither.stream, dtype=torch.int32, device=exact.device)
    key = fold(fold(key, dither.step), dither.place)
    rounded: Any = round_stochastically(exact, target.dtype, key, ops)
    target.copy_(rounded)
