"""A large matrix on the CPU stepped block by block, blocks side by side, with no array of its size but one.

What follows the choice of columns treats every row alone. So the whole is surveyed once, to choose; then each block
stays with one thread from its coefficients to the parameter and the state, which are written in place.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from lowrank_core.layout import Layout, with_side_of
from lowrank_core.ops import Ops
from lowrank_torch._apply import apply_update

# Numbers that a step makes of a block: enough that its calls cost little beside the work, few enough to be small
# temporaries beside a large matrix.
_BLOCK = 3 * 2**18
# Numbers of a matrix below which blocks are twice as large: it has few of them.
_LARGE = 2**23
# Numbers of a block for each thread below which side by side costs more than it gains.
_LEAST = 2**18
# Dtypes of state that comes out the same however a matrix is divided: half precision is rounded at random by the place
# of a number.
_DIVISIBLE = {"float64", "float32", "int32", "uint8"}


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
    layout = matrix.layout
    spec = matrix.config.state_spec(layout.shape)
    across, numbers = layout.across, matrix.gradient.numel()
    grain = matrix.config.grain(layout.axis)
    if grain is None or any(a.dtype not in _DIVISIBLE for a in spec.values()):
        return across
    threads = ops.workers() if numbers >= _LEAST * ops.workers() else 1
    # Coefficients, two moments and a direction are as wide as the rank.
    made = numbers + 4 * numbers * layout.rank // layout.size
    block = _BLOCK if numbers >= _LARGE else 2 * _BLOCK
    # As many for each thread.
    count = threads * max(1, math.ceil(made / (threads * block)))
    length = grain * math.ceil(across / (count * grain))
    return min(length, across)


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
    config = with_side_of(matrix.config, layout.axis)
    seen = survey(matrix.gradient, matrix.state, config, ops=ops)
    gradients, targets = (torch.split(x, length, dim) for x in (matrix.gradient, matrix.target))
    cuts = {
        name: torch.split(getattr(matrix.state, name), *cut)
        for name, cut in _cuts(config, layout, length).items()
    }
    kept: list[Any] = []

    def work(place: int) -> None:
        parts = {name: blocks[place] for name, blocks in cuts.items()}
        before = matrix.state._replace(**parts)
        block = seen.across(slice(place * length, min((place + 1) * length, layout.across)))
        update, new = step(gradients[place], before, config, survey=block, ops=ops)
        apply_update(targets[place], update, rate=rate, decay=decay, dither=None, ops=ops)
        for name, own in parts.items():
            own.copy_(getattr(new, name))
        kept.append(new._replace(**{name: getattr(matrix.state, name) for name in parts}))

    ops.for_each(work, range(len(gradients)))
    # What is not cut is the same in all.
    return kept[0]


def _cuts(config: Any, layout: Layout, length: int) -> dict[str, tuple[int, int]]:
    """Return the arrays of state that blocks have parts of: how long a block's part is, and in which dimension."""
    whole = config.state_spec(layout.shape)
    block = config.state_spec(layout._replace(across=length).shape)
    return {
        name: (own, dim)
        for name, spec in whole.items()
        for dim, (own, all_) in enumerate(zip(block[name].shape, spec.shape, strict=True))
        if own != all_
    }
