"""A large matrix on the CPU divided among threads: each steps a slab, and they meet only to sum over the whole.

What follows the choice of columns treats every row alone, so that a slab stays with one thread from the transform to
the parameter. Divided one operation at a time, threads would meet at each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from threading import Barrier, BrokenBarrierError
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import Parameter

from lowrank_core.layout import Layout
from lowrank_core.ops import Ops
from lowrank_torch._apply import apply_update
from lowrank_torch._sharding import SIDES, chunk

# Numbers of a slab below which meeting costs more than it gains.
_LEAST = 2**18
# Dtypes of state that comes out the same however a matrix is divided. Codes share scales, half precision is rounded at
# random by the place of a number, and stored vectors come of products of the whole matrix.
_DIVISIBLE = {"float64", "float32", "int32"}


class Matrix(NamedTuple):
    """What a step on one matrix, or a stack of them in one parameter, needs."""

    target: Tensor
    gradient: Tensor
    state: Any
    config: Any
    layout: Layout


def is_plain(parameter: Tensor) -> bool:
    """Return whether other threads can work on a parameter: it has memory of its own, on the CPU."""
    return parameter.device.type == "cpu" and type(parameter) in (Tensor, Parameter)


def slab_count(matrix: Matrix, ops: Ops) -> int:
    """Return among how many threads to divide the step of a matrix: one does it whole."""
    spec = matrix.config.state_spec(matrix.layout.shape)
    if "vectors" in spec or any(array.dtype not in _DIVISIBLE for array in spec.values()):
        return 1
    return max(1, min(ops.workers(), matrix.layout.across, matrix.gradient.numel() // _LEAST))


def step_divided(
    matrix: Matrix, count: int, step: Any, rate: float | Tensor, decay: float, ops: Ops
) -> Any:
    """Do a step of the rule ``step`` on ``count`` slabs at once; return the new state, what is large of it in place."""
    layout = matrix.layout
    dim = -3 - layout.axis
    config = dataclasses.replace(matrix.config, side=SIDES[layout.axis], rank=layout.rank)
    whole = config.state_spec(layout.shape)
    meeting = _Meeting(count)
    kept: list[Any] = [None] * count

    def work(place: int) -> None:
        start, length = chunk(layout.across, count, place)
        shape = list(layout.shape)
        shape[dim] = length
        cuts = _cuts(whole, config.state_spec(tuple(shape)))
        parts = {
            name: getattr(matrix.state, name).narrow(cut, start, length)
            for name, cut in cuts.items()
        }
        own_ops = _slab_ops(ops, layout, meeting, place)
        gradient = matrix.gradient.narrow(dim, start, length)
        update, new = step(gradient, matrix.state._replace(**parts), config, ops=own_ops)
        target = matrix.target.narrow(dim, start, length)
        apply_update(target, update, rate=rate, decay=decay, dither=None, ops=ops)
        for name, part in parts.items():
            part.copy_(getattr(new, name))
        kept[place] = new._replace(**{name: getattr(matrix.state, name) for name in parts})

    ops.for_each(meeting.attended(work), range(count))
    return kept[0]


def _cuts(whole: Mapping[str, Any], slab: Mapping[str, Any]) -> dict[str, int]:
    """Return the arrays of state that slabs have parts of, and the dimension they are cut in."""
    return {
        name: next(
            d for d, (a, b) in enumerate(zip(spec.shape, slab[name].shape, strict=True)) if a != b
        )
        for name, spec in whole.items()
        if spec.shape != slab[name].shape
    }


class _Meeting:
    """Where the threads of one matrix wait for one another."""

    def __init__(self, count: int) -> None:
        self._barrier = Barrier(count)
        self._given: list[Tensor] = [Tensor()] * count

    def total(self, partial: Tensor, place: int) -> Tensor:
        """Return the sum of what all give, to each the same bits."""
        self._given[place] = partial
        self._barrier.wait()
        total = self._given[0].clone()
        for other in self._given[1:]:
            total += other
        # Nobody gives anew before all have read.
        self._barrier.wait()
        return total

    def attended(self, work: Any) -> Any:
        """Return ``work`` such that nobody waits for one that has failed."""

        def attend(place: int) -> None:
            try:
                work(place)
            except BrokenBarrierError:  # the error is another's
                return
            except BaseException:
                self._barrier.abort()
                raise

        return attend


class _Slab:
    """What an adapter is told of the slab of a thread; mixed into its class."""

    def at(self, layout: Layout, meeting: _Meeting, place: int) -> None:
        self.sharded_axis = -3 - layout.axis
        self._across, self._meeting, self._place = layout.across, meeting, place

    def count_shards(self, length: int) -> int:
        return self._across

    def sum_shards(self, partial: Tensor) -> Tensor:
        return self._meeting.total(partial, self._place)


_types: dict[type, Any] = {}


def _slab_ops(ops: Ops, layout: Layout, meeting: _Meeting, place: int) -> Ops:
    base = type(ops)
    if base not in _types:
        _types[base] = type(f"Slab{base.__name__}", (_Slab, base), {})
    own: Any = _types[base](ops.xp, ops.constants)
    own.at(layout, meeting, place)
    return own
