"""A stack's step in two passes over memory, in place, where the adapter has kernels for it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lowrank_core.numerics.random import fold
from lowrank_core.ops.rows import RowMoments, RowStep, RowWrite
from lowrank_core.ops.standard import Ops
from lowrank_core.rules.dct_adamw_rows import dct_adamw_rows
from lowrank_core.rules.reductions import run
from lowrank_torch._apply import Dither, Write
from lowrank_torch._commit import at_once
from lowrank_torch._plan import BoundMatrices
from lowrank_torch._stack import Stack
from lowrank_torch._state import stacked, unstacked
from lowrank_torch._tuning import SMALL_MEMBER

# The arrays of the state that have rows; they stay where they are.
_ROWS = ("first_moment", "second_moment", "row_energy")


def takes_rows(
    stack: Stack,
    bound: BoundMatrices,
    targets: Sequence[Tensor],
    gradients: Sequence[Tensor],
    states: Sequence[Any],
    ops: Ops,
) -> bool:
    """Return whether `step_rows` does the step of these matrices, of a stack that may be stepped so."""
    fits: Any = stack.rule.fits_rows
    if torch.compiler.is_compiling() or any(m.projected is not None for m in stack.members):
        return False
    if type(states[0].step) is not int and _draws(targets, states, stack):
        return False
    axis = bound.step.layout.axis
    rows = (_as_rows(x, axis) for x in (gradients, targets))
    moments = (_moments_of(state, axis) for state in states)
    return all(map(ops.has_row_kernels, *rows, moments)) and fits(bound.step)


def _draws(targets: Sequence[Tensor], states: Sequence[Any], stack: Stack) -> bool:
    """Return whether anything is rounded at random, by keys that the kernels get as numbers of the host."""
    narrow = stack.group["stochastic_rounding"] and targets[0].dtype != torch.float32
    return narrow or states[0].first_moment.dtype != torch.float32


def step_rows(
    bound: BoundMatrices,
    targets: Sequence[Tensor],
    gradients: Sequence[Tensor],
    states: Sequence[Any],
    due: Any,
    write: Write,
) -> list[Any]:
    """Step matrices; return their new states.

    Columns are chosen for all members at once. Small members are stepped as one stack, a copy, in as many launches as
    one. The rows of others are one call each, in place, which notes what it has written: a step that is interrupted and
    done again passes it over.
    """
    matrix, ops, axis = bound.step, write.ops, bound.step.layout.axis
    norms, sums = matrix.config.norms(due is not False), None
    targets, gradients = _as_rows(targets, axis), _as_rows(gradients, axis)
    copied = _is_better_copied(targets, write)
    if copied:
        gradients = [torch.stack(list(gradients))]
    if norms:
        own = [ops.dct_sums(gradient, norms=norms) for gradient in gradients]
        sums = own[0] if len(own) == 1 else torch.stack(own, 1)
    light = [state._replace(**dict.fromkeys(_ROWS)) for state in states]
    before = stacked(light, matrix.layout.batch)
    job, after = run(dct_adamw_rows(sums, before, matrix, due))
    if copied:
        return _step_copy(targets, gradients[0], states, (job, after), axis, write)
    members = zip(targets, gradients, states, write.dithers, strict=True)
    for place, (target, gradient, state, dither) in enumerate(members):
        one = job if len(states) == 1 else job.of(place)
        name = (*write.key, place)
        how = RowWrite(write.lr, write.weight_decay, _key(target, dither), write.done.blocks, name)
        ops.step_rows(target, gradient, _moments_of(state, axis), one, how)
    kept = zip(unstacked(after, light), states, strict=True)
    return [new._replace(**_rows_of(state)) for new, state in kept]


def _is_better_copied(targets: Sequence[Tensor], write: Write) -> bool:
    """Return whether members are stepped as one stack: each is a matrix for which launches cost more than a copy."""
    first = targets[0]
    small = len(targets) > 1 and first.ndim == 2 and first.numel() <= SMALL_MEMBER
    # There may be kernels for matrices alone. Of a stack, draws would be numbered otherwise.
    return (
        small
        and write.ops.has_row_kernels(first[None], first[None])
        and all(_key(target, d) is None for target, d in zip(targets, write.dithers, strict=True))
    )


def _step_copy(
    targets: Sequence[Tensor],
    gradient: Tensor,
    states: Sequence[Any],
    chosen: tuple[RowStep, Any],
    axis: int,
    write: Write,
) -> list[Any]:
    """Step the members of a stack as one copy of them all, written back at once."""
    job, after = chosen
    whole = torch.stack([*targets])
    rows = stacked(states, ())
    how = RowWrite(write.lr, write.weight_decay)
    write.ops.step_rows(whole, gradient, _moments_of(rows, axis), job, how)
    block = (*write.key, 0)
    if block not in write.done.blocks:
        back = partial(torch._foreach_copy_, [*targets], [*whole.unbind()])
        at_once([back, partial(write.done.blocks.add, block)])
    return unstacked(after._replace(**_rows_of(rows)), states)


def _as_rows(matrices: Sequence[Tensor], axis: int) -> Sequence[Tensor]:
    """Return views whose rows are transformed."""
    return matrices if axis == -1 else [matrix.mT for matrix in matrices]


def _moments_of(state: Any, axis: int) -> RowMoments:
    """Return views of the state of rows."""
    own = (state.first_moment, state.second_moment, state.row_energy)
    return RowMoments(*(x if x is None or axis == -1 else x.mT for x in own))


def _rows_of(state: Any) -> dict[str, Any]:
    return {name: getattr(state, name) for name in _ROWS}


def _key(target: Tensor, dither: Dither | None) -> int | None:
    """Return the key of the draws that a parameter is rounded by, as `apply_update` has it for its first block."""
    if dither is None or target.dtype == torch.float32:
        return None
    key: Any = torch.full((1,), dither.stream, dtype=torch.int32, device="cpu")
    return int(fold(fold(key, dither.step), dither.place))
