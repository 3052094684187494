"""Redistribution around a sharded step: parameter layout -> compute layout -> parameter layout.

Where a rank has the shard that it steps, nothing moves but sums. Where every rank has all, each steps a shard and
gathers the others' factors, or what they have written. Where rows and columns are both sharded, ranks exchange parts of
one dimension for parts of the other, and exchange back what the parameter moves by. At two ranks that moves as many
bytes as if both gathered whole rows, at four half as many; and it divides work and state, which gathering does not.

Everything here is a generator of the collectives that it needs (see `lowrank_torch._collectives`).
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lowrank_core.subspace.update import LowRankUpdate, SignRest, whole_of
from lowrank_torch._apply import Dither, Write, add_delta, apply_update
from lowrank_torch._collectives import ShardedSteps, all_gathered, all_to_all
from lowrank_torch._plan import Plan
from lowrank_torch._sharding import Sharding, chunk, chunks


class Redistribution(NamedTuple):
    """The layouts of one stack of matrices of a plan: how it lies on ranks, and how it is stepped by them."""

    sharding: Sharding
    #: Shape of the whole matrices.
    whole: tuple[int, ...]
    #: Shape of what this rank steps of them.
    shard: tuple[int, ...]
    #: The transformed axis, -1 or -2.
    axis: int

    @property
    def rows(self) -> int:
        """The dimension that is not transformed, of which ranks step parts."""
        return -3 - self.axis

    def to_compute(self, local: Tensor) -> ShardedSteps[Tensor]:
        """Return what this rank steps of ``local``, which is what it has of the matrices (of several, stacked)."""
        sharding = self.sharding
        if sharding.replicated:
            return self._own(local)
        if sharding.all_to_all_dim is None:
            return local
        axis, rows = self.axis, self.rows
        count = sharding.mesh.size(sharding.all_to_all_dim)
        given = _split(local, chunks(local.shape[rows], count), rows)
        shape = list(local.shape)
        shape[rows] = self.shard[rows]
        widths = chunks(self.whole[axis], count)
        shapes = [[*shape] for _ in widths]
        for one, width in zip(shapes, widths, strict=True):
            one[axis] = width
        return torch.cat((yield from self._exchange(given, shapes)), dim=axis)

    def write(
        self, targets: Sequence[Tensor], update: LowRankUpdate, local: Tensor, write: Write
    ) -> ShardedSteps[None]:
        """Write the update of the shards that were stepped into ``targets``, what this rank has of the matrices.

        ``local`` is what it has of their gradients.
        """
        sharding = self.sharding
        own = write
        if any(write.dithers):
            own = write._replace(dithers=self._own_dithers(write.dithers))
        if sharding.all_to_all_dim is not None:
            full: Any = whole_of(update, write.ops)
            delta = yield from self._to_parameter(full, targets[0])
            add_delta(targets, delta, write, own.dithers)
        elif not sharding.replicated:
            apply_update(targets, update, own)
        elif self._gathers_factors(targets[0], update):
            apply_update(targets, (yield from self._gathered(update, local)), write)
        else:
            mine = [self._own(target) for target in targets]
            apply_update(mine, update, own)
            together = mine[0] if len(mine) == 1 else torch.stack(mine)
            whole = yield from self._gather(together)
            parts = [whole] if len(mine) == 1 else whole.unbind()
            for target, values in zip(targets, parts, strict=True):
                target.copy_(values)

    def _gathers_factors(self, target: Tensor, update: LowRankUpdate) -> bool:
        """Return whether the low-rank factors of an update are fewer bytes than the parameter's own rows."""
        if update.rest is not None and not isinstance(update.rest, SignRest):
            return False
        sent = sum(x.itemsize * x.shape[self.axis] for x in _factors(update))
        return sent <= target.itemsize * update.size

    def _gathered(self, update: LowRankUpdate, local: Tensor) -> ShardedSteps[LowRankUpdate]:
        """Return the update of the whole matrices, from the updates of all ranks' shards."""
        whole = yield from self._gather(torch.cat(_factors(update), self.axis))
        factor, *projected = torch.split(whole, update.factor.shape[self.axis], dim=self.axis)
        rest = update.rest
        if isinstance(rest, SignRest):
            # Every rank has the gradient, and with the coefficients what these leave of it.
            rest = rest._replace(gradient=local.to(factor.dtype), projected=projected[0])
        return dataclasses.replace(update, factor=factor, rest=rest)

    def _own_dithers(self, dithers: Sequence[Dither | None]) -> list[Dither | None]:
        # So that shards round at random by numbers of their own.
        own = b"%d" % self.sharding.shard_index
        return [
            d if d is None else d._replace(stream=zlib.crc32(own, d.stream) & 0x7FFFFFFF)
            for d in dithers
        ]

    def _own(self, whole: Tensor) -> Tensor:
        """Return this rank's shard of what it has whole."""
        sharding, rows = self.sharding, self.rows
        count, place = sharding.shards_per_matrix, sharding.shard_index
        start, length = chunk(whole.shape[rows], count, place)
        return whole.narrow(rows, start, length)

    def _gather(self, own: Tensor) -> ShardedSteps[Tensor]:
        """Return the shards of all ranks, put together."""
        sharding, rows = self.sharding, self.rows
        lengths = chunks(self.whole[rows], sharding.shards_per_matrix)
        shapes = [list(own.shape) for _ in lengths]
        for shape, length in zip(shapes, lengths, strict=True):
            shape[rows] = length
        numbers = [torch.Size(shape).numel() for shape in shapes]
        parts = yield from all_gathered(own.contiguous(), sharding.group, numbers)
        return torch.cat([p.view(s) for p, s in zip(parts, shapes, strict=True)], dim=rows)

    def _to_parameter(self, full: Tensor, target: Tensor) -> ShardedSteps[Tensor]:
        """Return this rank's part of what all ranks of an all-to-all have of a matrix, each a shard."""
        axis, rows = self.axis, self.rows
        count = self.sharding.mesh.size(self.sharding.all_to_all_dim)
        given = _split(full, chunks(full.shape[axis], count), axis)
        shapes = [list(full.shape) for _ in range(count)]
        for shape, length in zip(shapes, chunks(target.shape[rows], count), strict=True):
            shape[rows], shape[axis] = length, target.shape[axis]
        return torch.cat((yield from self._exchange(given, shapes)), dim=rows)

    def _exchange(
        self, given: Sequence[Tensor], shapes: Sequence[Sequence[int]]
    ) -> ShardedSteps[list[Tensor]]:
        """Give each rank of the all-to-all its tensor; return those of ``shapes`` that they give."""
        group = self.sharding.mesh.get_group(self.sharding.all_to_all_dim)
        lengths = [torch.Size(shape).numel() for shape in shapes]
        parts = yield from all_to_all(given, group, lengths)
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def redistribution(plan: Plan, number: int, axis: int) -> Redistribution:
    """Return the redistribution of stack ``number`` of a plan whose parameter is sharded or shared out."""
    if plan.sharding is None:
        raise ValueError("plan must be of a sharded parameter, got one without sharding")
    return Redistribution(plan.sharding, plan.matrices[number], plan.shard_shapes[number], axis)


def gather_rows(parameter: Tensor, sharding: Sharding) -> ShardedSteps[None]:
    """Fill a parameter that every rank has, each of which has written its chunk of the first dimension."""
    own = own_rows(parameter, sharding)
    count = sharding.shards_per_matrix
    lengths = [length * parameter[0].numel() for length in chunks(len(parameter), count)]
    parts = yield from all_gathered(own.contiguous(), sharding.group, lengths)
    parameter.copy_(torch.cat(parts).view(parameter.shape))


def own_rows(tensor: Tensor, sharding: Sharding) -> Tensor:
    """Return this rank's chunk of the first dimension."""
    start, length = chunk(len(tensor), sharding.shards_per_matrix, sharding.shard_index)
    return tensor.narrow(0, start, length)


def _factors(update: LowRankUpdate) -> list[Any]:
    """Return the low-rank arrays that an update consists of."""
    rest = update.rest
    return [update.factor, rest.projected] if isinstance(rest, SignRest) else [update.factor]


def _split(x: Tensor, lengths: Sequence[int], dim: int) -> list[Tensor]:
    return [part.contiguous() for part in torch.split(x, list(lengths), dim=dim)]
