"""Parts of a large matrix, stepped side by side on a CPU's threads."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lowrank_core.layout import cut_rows, with_side_of
from lowrank_core.ops.standard import Ops
from lowrank_core.rules.reductions import Steps, replay, run_parts
from lowrank_core.rules.rule import MatrixStep, Rule
from lowrank_torch._apply import Write, apply_update
from lowrank_torch._commit import at_once
from lowrank_torch._stack import Stack, is_plain
from lowrank_torch._tuning import LARGE_MATRIX, LEAST_PART, PART

# Dtypes of state that comes out the same however a matrix is divided: half precision is rounded at random by the place
# of a number.
_DIVISIBLE = {"float64", "float32", "int32", "uint8"}


class Part(NamedTuple):
    """Some rows of a matrix: views of the parameter, of its gradient and of its state."""

    target: Tensor
    gradient: Tensor
    state: Any
    #: The arrays of the state that have rows, by name; written in place.
    state_views: dict[str, Tensor]


def rows_per_part(stack: Stack, matrix: MatrixStep[Any], ops: Ops) -> int:
    """Return how many rows of a matrix to step at a time on a CPU's threads; all where it is not to be divided."""
    layout, member = matrix.layout, stack.members[0]
    numbers = math.prod(layout.batch) * layout.rows * layout.size
    threads = ops.num_threads() if numbers >= LEAST_PART else 1
    if numbers < LEAST_PART * threads:
        threads = 1
    # Coefficients, two moments and a direction are as wide as the rank.
    made = numbers + 4 * numbers * layout.rank // layout.size
    block = PART if numbers >= LARGE_MATRIX else 2 * PART
    # As many for each thread.
    count = threads * max(1, math.ceil(made / (threads * block)))
    if count == 1 or len(stack.members) > 1 or stack.group["stochastic_rounding"]:
        return layout.rows
    if stack.plan.sharding or member.projected or not is_plain(member.parameter):
        return layout.rows
    multiple = matrix.config.part_multiple(layout)
    spec = matrix.config.state_spec(layout.shape)
    if multiple is None or any(array.dtype not in _DIVISIBLE for array in spec.values()):
        return layout.rows
    length: int = multiple * math.ceil(layout.rows / (count * multiple))
    return min(length, layout.rows)


def parts_of(
    target: Tensor, gradient: Tensor, state: Any, matrix: MatrixStep[Any], length: int
) -> list[Part]:
    """Return parts of ``length`` rows."""
    layout = matrix.layout
    config = with_side_of(matrix.config, layout.axis)
    whole = config.state_spec(layout.shape)
    part = config.state_spec(layout._replace(rows=length).shape)
    cuts = {
        name: torch.split(getattr(state, name), own, dim)
        for name, spec in whole.items()
        for dim, (own, all_) in enumerate(zip(part[name].shape, spec.shape, strict=True))
        if own != all_
    }
    parts = []
    for place, start in enumerate(range(0, layout.rows, length)):
        rows = slice(start, start + length)
        views = {name: pieces[place] for name, pieces in cuts.items()}
        own_target, own_gradient = (cut_rows(x, rows, layout.axis) for x in (target, gradient))
        parts.append(Part(own_target, own_gradient, state._replace(**views), views))
    return parts


def step_parts(parts: Sequence[Part], step: Callable[..., Steps[Any]], write: Write) -> Any:
    """Step the parts of a matrix that have not been, each by ``step``; return the state of one of them."""
    done, (number,), for_each = write.done, write.key, write.ops.for_each

    def begin(place: int) -> Steps[Any]:
        return step(parts[place], write._replace(key=(number, place)))

    everything = range(len(parts))
    if any(block[0] == number for block in done.blocks):
        # The sums are known, of state that is no longer there.
        answers = done.answers[number]
        left = [place for place in everything if (number, place) not in done.parts]
        for_each(lambda place: replay(begin(place), answers), left)
    else:
        answers = done.answers[number] = []
        run_parts([begin(place) for place in everything], for_each, answers)
    return done.parts[number, 0]


def step_part(
    matrix: MatrixStep[Any], rule: Rule, due: Any, part: Part, write: Write
) -> Steps[None]:
    """Step some rows of a matrix; they stay with one thread from their coefficients to parameter and state."""
    update, new = yield from rule.steps(part.gradient, part.state, matrix, due)
    apply_update([part.target], update, write)
    views = part.state_views
    calls = [partial(own.copy_, getattr(new, name)) for name, own in views.items()]
    after = new._replace(**views)
    at_once([*calls, partial(write.done.parts.__setitem__, write.key, after)])
