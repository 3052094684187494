"""What surrounds a step of the core where matrices are spread over ranks: to what a rank steps, and back.

Where a rank has the slab that it steps, nothing moves but sums. Where every rank has all, each steps a slab and
gathers the others' factors, or what they have written. Where rows and columns are both sharded, ranks swap parts of one
dimension for parts of the other, and swap back what the parameter moves by. At two ranks that moves as many bytes as if
both gathered whole rows, at four half as many; and it divides work and state, which gathering does not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lowrank_core import LowRankUpdate, materialize
from lowrank_core.ops import Ops
from lowrank_torch._apply import Dither, apply_stacked, apply_update, move
from lowrank_torch._exchange import Exchange
from lowrank_torch._plan import Plan
from lowrank_torch._sharding import Spread, chunk, chunks, is_sharded

# So that shards round at random by numbers of their own: more streams than parameters there are.
_STREAMS = 2**20


class _Shards:
    """What an adapter is told of shards; mixed into its class."""

    def over(self, axis: int, across: int, spread: Spread, exchange: Exchange) -> None:
        self.sharded_axis = -3 - axis
        self._across, self._spread, self._exchange = across, spread, exchange

    def count_shards(self, length: int) -> int:
        return self._across

    def sum_shards(self, partial: Tensor) -> Tensor:
        return self._exchange.total(partial, self._spread.group)


_types: dict[type, Any] = {}


def ops_over(ops: Ops, axis: int, across: int, spread: Spread | None, exchange: Exchange) -> Ops:
    """Return operations that sum over the slabs of a matrix, ``across`` long in all in the dimension that is cut."""
    if spread is None or not spread.summed:
        return ops
    base = type(ops)
    if base not in _types:
        _types[base] = type(f"Sharded{base.__name__}", (_Shards, base), {})
    sharded: Any = _types[base](ops.xp, ops.constants)
    sharded.over(axis, across, spread, exchange)
    return sharded


class Move(NamedTuple):
    """What a parameter's step is besides its direction."""

    rate: float | Tensor
    decay: float
    dithers: Sequence[Dither | None]


def to_slab(part: Tensor, plan: Plan, block: int, axis: int, exchange: Exchange) -> Tensor:
    """Return what this rank steps of ``part``, which is what it has of a block (of several, stacked)."""
    spread = plan.spread
    if spread is None or not (spread.replicated or spread.swapped is not None):
        return part
    if spread.replicated:
        return _own(part, spread, axis)
    across = -3 - axis
    count = spread.mesh.size(spread.swapped)
    given = _split(part, chunks(part.shape[across], count), across)
    slab = list(part.shape)
    slab[across] = plan.slabs[block][across]
    widths = chunks(plan.blocks[block][axis], count)
    shapes = [[*slab] for _ in widths]
    for shape, width in zip(shapes, widths, strict=True):
        shape[axis] = width
    return torch.cat(_swap(given, shapes, spread, exchange), dim=axis)


def apply_slabs(
    targets: Sequence[Tensor],
    update: LowRankUpdate,
    plan: Plan,
    block: int,
    part: Tensor,
    how: Move,
    ops: Ops,
    exchange: Exchange,
) -> None:
    """Move ``targets``, what this rank has of same-shaped blocks, by the update of the slabs that it stepped of them.

    In ``part`` is what it has of their gradients.
    """
    spread, axis = plan.spread, update.axis
    if spread is None:
        _apply(targets, update, how, ops)
        return
    if spread.swapped is not None:
        full: Any = materialize(update, ops=ops)
        delta = _back(full, targets[0], spread, axis, exchange)
        deltas = [delta] if len(targets) == 1 else delta.unbind()
        for target, own, dither in zip(targets, deltas, _own_dithers(how, spread), strict=True):
            move(target, own, how.rate, how.decay, dither, ops)
        return
    if not spread.replicated:
        _apply(targets, update, how._replace(dithers=_own_dithers(how, spread)), ops)
        return
    sent: list[Any] = [x for x in (update.factor, update.projected) if x is not None]
    dense = update.residual is not None or update.complement is not None
    low_rank = sum(x.itemsize * x.shape[axis] for x in sent)
    if not dense and low_rank <= targets[0].itemsize * update.size:
        whole = _gather(torch.cat(sent, axis), plan.blocks[block], spread, axis, exchange)
        parts = torch.split(whole, update.factor.shape[axis], dim=axis)
        update = dataclasses.replace(update, factor=parts[0])
        if update.gradient is not None:
            # Every rank has the gradient, and with the coefficients what these leave of it.
            gradient = part.to(parts[1].dtype)
            update = dataclasses.replace(update, gradient=gradient, projected=parts[1])
        _apply(targets, update, how, ops)
        return
    mine = [_own(target, spread, axis) for target in targets]
    _apply(mine, update, how._replace(dithers=_own_dithers(how, spread)), ops)
    stacked = mine[0] if len(mine) == 1 else torch.stack(mine)
    whole = _gather(stacked, plan.blocks[block], spread, axis, exchange)
    for target, values in zip(targets, [whole] if len(mine) == 1 else whole.unbind(), strict=True):
        target.copy_(values)


def gather_rows(parameter: Tensor, spread: Spread, exchange: Exchange) -> None:
    """Fill a parameter that every rank has, each of which has written its chunk of the first dimension."""
    own = own_rows(parameter, spread)
    lengths = [length * parameter[0].numel() for length in chunks(len(parameter), spread.slabs)]
    parts = exchange.gathered(own.contiguous(), spread.group, lengths)
    parameter.copy_(torch.cat(parts).view(parameter.shape))


def own_rows(tensor: Tensor, spread: Spread) -> Tensor:
    """Return this rank's chunk of the first dimension."""
    start, length = chunk(len(tensor), spread.slabs, spread.part)
    return tensor.narrow(0, start, length)


def _apply(targets: Sequence[Tensor], update: LowRankUpdate, how: Move, ops: Ops) -> None:
    if len(targets) == 1:
        (dither,) = how.dithers
        apply_update(targets[0], update, rate=how.rate, decay=how.decay, dither=dither, ops=ops)
    else:
        apply_stacked(targets, update, rate=how.rate, decay=how.decay, dithers=how.dithers, ops=ops)


def _own_dithers(how: Move, spread: Spread) -> list[Dither | None]:
    own = (spread.part + 1) * _STREAMS
    return [d if d is None else d._replace(stream=d.stream + own) for d in how.dithers]


def _own(whole: Tensor, spread: Spread, axis: int) -> Tensor:
    """Return this rank's slab of what it has whole."""
    across = -3 - axis
    start, length = chunk(whole.shape[across], spread.slabs, spread.part)
    return whole.narrow(across, start, length)


def _gather(
    own: Tensor, block: Sequence[int], spread: Spread, axis: int, exchange: Exchange
) -> Tensor:
    """Return the slabs of all ranks, put together."""
    across = -3 - axis
    shapes = [list(own.shape) for _ in range(spread.slabs)]
    for shape, length in zip(shapes, chunks(block[across], spread.slabs), strict=True):
        shape[across] = length
    lengths = [torch.Size(shape).numel() for shape in shapes]
    parts = exchange.gathered(own.contiguous(), spread.group, lengths)
    return torch.cat([p.view(s) for p, s in zip(parts, shapes, strict=True)], dim=across)


def _back(full: Tensor, target: Tensor, spread: Spread, axis: int, exchange: Exchange) -> Tensor:
    """Return this rank's part of what all ranks of the swapped dimension have of a matrix, each a slab."""
    across = -3 - axis
    count = spread.mesh.size(spread.swapped)
    given = _split(full, chunks(full.shape[axis], count), axis)
    shapes = [list(full.shape) for _ in range(count)]
    for shape, length in zip(shapes, chunks(target.shape[across], count), strict=True):
        shape[across], shape[axis] = length, target.shape[axis]
    return torch.cat(_swap(given, shapes, spread, exchange), dim=across)


def _split(x: Tensor, lengths: Sequence[int], dim: int) -> list[Tensor]:
    return [part.contiguous() for part in torch.split(x, list(lengths), dim=dim)]


def _swap(
    given: Sequence[Tensor], shapes: Sequence[Sequence[int]], spread: Spread, exchange: Exchange
) -> list[Tensor]:
    """Give each rank of the swapped dimension its tensor; return those of ``shapes`` that they give."""
    lengths = [torch.Size(shape).numel() for shape in shapes]
    group = spread.mesh.get_group(spread.swapped)
    parts = exchange.swapped(given, group, lengths)
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


# -- state -----------------------------------------------------------------------------------------


def as_state(local: Any, shape: Sequence[int], spread: Spread | None, placements: Any) -> Any:
    """Return what this rank has of an array of ``shape`` as it is kept: a DTensor where ranks have different parts."""
    if spread is None or all(p.is_replicate() for p in placements):
        return local
    from torch.distributed.tensor import DTensor

    stride = torch.empty(tuple(shape), device="meta").stride()
    return DTensor.from_local(
        local, spread.mesh, placements, run_check=False, shape=torch.Size(shape), stride=stride
    )


def placed(value: Any, spread: Spread | None, placements: Any, name: str) -> Any:
    """Return an array of state that was loaded as it is kept.

    Raises
    ------
    ValueError
        If it is sharded and should not be, or otherwise.
    """
    kept_whole = all(p.is_replicate() for p in placements)
    if is_sharded(value):
        if (
            spread is not None
            and not kept_whole
            and value.device_mesh == spread.mesh
            and value.placements == placements
        ):
            return value
        raise ValueError(
            f"{name} of the loaded state is sharded otherwise than its parameter; load it with "
            f"torch.distributed.checkpoint.state_dict, which shards it anew"
        )
    if spread is None or kept_whole:
        return value
    from torch.distributed.tensor import DTensor, Replicate

    everywhere = [Replicate()] * spread.mesh.ndim
    whole = DTensor.from_local(value, spread.mesh, everywhere, run_check=False)
    return whole.redistribute(placements=placements)
