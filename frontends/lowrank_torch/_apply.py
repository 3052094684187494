"""Adding an update into a parameter in place, block by block, in float32 arithmetic at least."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lowrank_core.numerics.random import fold
from lowrank_core.numerics.rounding import round_stochastically
from lowrank_core.ops.standard import Ops
from lowrank_core.subspace.update import LowRankUpdate, slice_rows, whole_of
from lowrank_torch._commit import Done, at_once
from lowrank_torch._input import followed
from lowrank_torch._tuning import CPU_BLOCK, DEVICE_BLOCK


class Dither(NamedTuple):
    """What makes the random rounding of one write its own: a stream for each parameter, the step, and the place."""

    stream: int
    step: int | Tensor
    place: int = 0


class Write(NamedTuple):
    """How an update is written into parameters: ``W <- (1 - lr * weight_decay) W - lr * update``."""

    lr: float | Tensor
    weight_decay: float | Tensor
    ops: Ops
    #: For each parameter what rounds its write at random, or ``None``.
    dithers: Sequence[Dither | None]
    #: What has been written, to be skipped.
    done: Done
    #: The number of the stack of matrices, and of the part of it.
    key: tuple[int, ...]


def rates_of(group: Mapping[str, Any]) -> tuple[float | Tensor, float | Tensor]:
    """Return the rate and the weight decay that an update of a group is written with."""
    lr, weight_decay = followed(group["lr"]), group["weight_decay"]
    # Every rule is odd in the gradient, so going up is going down with the sign turned.
    return (-lr, -weight_decay) if group["maximize"] else (lr, weight_decay)


def apply_update(targets: Sequence[Tensor], update: LowRankUpdate, write: Write) -> None:
    """Write ``update`` into ``targets`` in place: matrices of one parameter, or of each of several stacked.

    Into one it is written block by block, so that it is never there as a whole.
    """
    target, dither = targets[0], write.dithers[0]
    dim = -2 if update.axis == -1 else -1
    numbers = CPU_BLOCK if target.device.type == "cpu" else DEVICE_BLOCK
    rows = target.shape[dim]
    width = max(1, numbers * rows // max(1, target.numel()))
    if len(targets) > 1 or width >= rows:
        whole: Any = whole_of(update, write.ops)
        add_delta(targets, whole, write, write.dithers)
        return

    def add(start: int) -> None:
        if (*write.key, start) in write.done.blocks:
            return
        length = min(width, rows - start)
        part: Any = whole_of(slice_rows(update, slice(start, start + length)), write.ops)
        own = None if dither is None else dither._replace(place=dither.place + start)
        add_delta([target.narrow(dim, start, length)], part, write, [own], start)

    starts = range(0, rows, width)
    if target.device.type == "cpu":
        write.ops.for_each(add, starts)
    else:
        for start in starts:
            add(start)


def add_delta(
    targets: Sequence[Tensor],
    delta: Tensor,
    write: Write,
    dithers: Sequence[Dither | None],
    place: int = 0,
) -> None:
    """Do ``target <- (1 - lr * weight_decay) * target - lr * delta`` in place, unless it has been done.

    Of several targets ``delta`` is a stack, an entry for each. It may be changed too; ``place`` is that of the targets
    among the numbers of the write.
    """
    lr, weight_decay, ops, _, done, key = write
    block = (*key, place)
    if block in done.blocks:
        return
    deltas = [delta] if len(targets) == 1 else delta.unbind()
    narrow = targets[0].dtype != delta.dtype
    exact = [target.to(delta.dtype) for target in targets] if narrow else targets
    calls: list[Callable[[], object]] = []
    # Of a tensor nobody asks here if it is zero.
    decays = isinstance(weight_decay, Tensor) or weight_decay != 0
    if isinstance(lr, Tensor) or isinstance(weight_decay, Tensor):
        # It may be another device's, which what PyTorch does to lists of tensors does not take.
        for own, step in zip(exact, deltas, strict=True):
            if decays:
                calls.append(partial(own.mul_, 1 - lr * weight_decay))
            calls.append(partial(own.sub_, step.mul_(lr)))
    else:
        if decays:
            calls.append(partial(torch._foreach_mul_, exact, 1 - lr * weight_decay))
        calls.append(partial(torch._foreach_sub_, exact, deltas, alpha=lr))
    if narrow:
        at_once(calls)
        calls = [
            partial(target.copy_, rounded(own, target.dtype, dither, ops))
            for target, own, dither in zip(targets, exact, dithers, strict=True)
        ]
    at_once([*calls, partial(done.blocks.add, block)])


def rounded(exact: Tensor, dtype: torch.dtype, dither: Dither | None, ops: Ops) -> Tensor:
    """Return ``exact`` as it is written into a narrower ``dtype``, with a ``dither`` rounded at random."""
    if dither is None:
        return exact
    key: Any = torch.full((1,), dither.stream, dtype=torch.int32, device=exact.device)
    key = fold(fold(key, dither.step), dither.place)
    result: Any = round_stochastically(exact, dtype, key, ops)
    own: Tensor = result
    return own
