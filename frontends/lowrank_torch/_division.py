"""A large matrix on the CPU stepped block by block, blocks side by side, with no array of its size but one.

What follows the choice of columns treats every row alone. So the whole is surveyed once, to choose; then each block
stays with one thread from its coefficients to the parameter and the state, which are written in place.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import Parameter

from lowrank_core.layout import Layout
from lowrank_core.ops import Ops
from lowrank_torch._apply import apply_update
from lowrank_torch._sharding import SIDES

# Numbers that a step makes of a block: enough that its calls cost little beside the work, few enough to be small
# temporaries.
_BLOCK = 3 * 2**19
# Numbers of a block for each thread below which side by side costs more than it gains.
_LEAST = 2**18
# Dtypes of state that comes out the same however a matrix is divided: half precision is rounded at random by the place
# of a number.
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


def block_length(matrix: Matrix, ops: Ops) -> int:
    """Return how many rows (or columns) to step at a time; all of them where it is not to be divided."""
    spec = matrix.config.state_spec(matrix.layout.shape)
    layout = matrix.layout
    across, numbers = layout.across, matrix.gradient.numel()
    if not matrix.config.divisible or any(a.dtype not in _DIVISIBLE for a in spec.values()):
        return across
    threads = ops.workers() if numbers >= _LEAST * ops.workers() else 1
    # Coefficients, two moments and a direction are as wide as the rank.
    made = numbers + 4 * numbers * layout.rank // layout.size
    # As many for each thread.
    count = threads * max(1, math.ceil(made / (threads * _BLOCK)))
    return math.ceil(across / count)


def step_divided(
    matrix: Matrix,
    length: int,
    survey: Any,
    step: Any,
    rate: float | Tensor,
    decay: float,
    ops: Ops,
) -> Any:
    """Step blocks of ``length`` by a rule's ``survey`` and ``step``; return the new state, written in place."""
    layout = matrix.layout
    dim = -3 - layout.axis
    config = dataclasses.replace(matrix.config, side=SIDES[layout.axis], rank=layout.rank)
    whole = config.state_spec(layout.shape)
    seen = survey(matrix.gradient, matrix.state, config, ops=ops)
    kept: list[Any] = []

    def work(block: slice) -> None:
        def part(x: Tensor, cut: int) -> Tensor:
            return x.narrow(cut, block.start, block.stop - block.start)

        gradient, target = part(matrix.gradient, dim), part(matrix.target, dim)
        cuts = _cuts(whole, config.state_spec(tuple(gradient.shape)))
        parts = {name: part(getattr(matrix.state, name), cut) for name, cut in cuts.items()}
        before = matrix.state._replace(**parts)
        update, new = step(gradient, before, config, survey=seen.across(block), ops=ops)
        apply_update(target, update, rate=rate, decay=decay, dither=None, ops=ops)
        for name, own in parts.items():
            own.copy_(getattr(new, name))
        kept.append(new._replace(**{name: getattr(matrix.state, name) for name in parts}))

    starts = range(0, layout.across, length)
    ops.for_each(work, [slice(at, min(at + length, layout.across)) for at in starts])
    # What is not cut is the same in all.
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
