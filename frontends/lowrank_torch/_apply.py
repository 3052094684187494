"""Adding an update into a parameter in place, block by block, in float32 arithmetic at least."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lowrank_core import LowRankUpdate, materialize
from lowrank_core.numerics.random import fold
from lowrank_core.numerics.rounding import round_stochastically
from lowrank_core.ops.standard import Ops
from lowrank_core.subspace.update import slice_rows
from lowrank_torch._tuning import CPU_BLOCK, DEVICE_BLOCK


class Dither(NamedTuple):
    """What makes the random rounding of one write its own: a stream for each parameter, the step, and the place."""

    stream: int
    step: int | Tensor
    place: int = 0


class Write(NamedTuple):
    """How an update is written into parameters: ``W <- (1 - lr * weight_decay) W - lr * update``."""

    lr: float | Tensor
    weight_decay: float
    ops: Ops
    #: For each parameter what rounds its write at random, or ``None``.
    dithers: Sequence[Dither | None] = (None,)


def apply_update(targets: Sequence[Tensor], update: LowRankUpdate, write: Write) -> None:
    """Write ``update`` into ``targets`` in place: matrices of one parameter, or of each of several stacked.

    Into one it is written block by block, so that it is never there as a whole.
    """
    if len(targets) > 1:
        deltas: Any = materialize(update, ops=write.ops)
        for target, delta, dither in zip(targets, deltas.unbind(), write.dithers, strict=True):
            add_delta(target, delta, write, dither)
        return
    (target,) = targets
    dim = -2 if update.axis == -1 else -1
    numbers = CPU_BLOCK if target.device.type == "cpu" else DEVICE_BLOCK
    rows, (dither,) = target.shape[dim], write.dithers
    width = max(1, numbers * rows // max(1, target.numel()))
    if width >= rows:
        whole: Any = materialize(update, ops=write.ops)
        add_delta(target, whole, write, dither)
        return

    def add(start: int) -> None:
        length = min(width, rows - start)
        part: Any = materialize(slice_rows(update, slice(start, start + length)), ops=write.ops)
        place = None if dither is None else dither._replace(place=dither.place + start)
        add_delta(target.narrow(dim, start, length), part, write, place)

    starts = range(0, rows, width)
    if target.device.type == "cpu":
        write.ops.for_each(add, starts)
    else:
        for start in starts:
            add(start)


def add_delta(target: Tensor, delta: Tensor, write: Write, dither: Dither | None) -> None:
    """Do ``target <- (1 - lr * weight_decay) * target - lr * delta`` in place; ``delta`` may be changed too."""
    lr, weight_decay, ops, _ = write
    exact = target if target.dtype == delta.dtype else target.to(delta.dtype)
    if weight_decay:
        exact.mul_(1 - lr * weight_decay)
    if isinstance(lr, Tensor):
        exact.sub_(delta.mul_(lr))
    else:
        exact.sub_(delta, alpha=lr)
    if exact is not target:
        write_rounded(target, exact, dither, ops)


def write_rounded(target: Tensor, exact: Tensor, dither: Dither | None, ops: Ops) -> None:
    """Write ``exact`` into the narrower ``target``, rounded to nearest or, with a ``dither``, at random."""
    if dither is None:
        target.copy_(exact)
        return
    key: Any = torch.full((1,), dither.stream, dtype=torch.int32, device=exact.device)
    key = fold(fold(key, dither.step), dither.place)
    rounded: Any = round_stochastically(exact, target.dtype, key, ops)
    target.copy_(rounded)
