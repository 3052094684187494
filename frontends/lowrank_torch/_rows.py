"""A stack's step in two passes over memory, in place, where the adapter has kernels for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lowrank_core.numerics.random import fold
from lowrank_core.ops.rows import RowMoments, RowWrite
from lowrank_core.ops.standard import Ops
from lowrank_core.rules.dct_adamw_rows import dct_adamw_rows, norms_due
from lowrank_core.rules.reductions import run
from lowrank_torch._apply import Dither, Write
from lowrank_torch._plan import BoundMatrices
from lowrank_torch._stack import Stack
from lowrank_torch._state import stacked, unstacked

# The arrays of the state that have rows; they stay where they are.
_ROWS = ("first_moment", "second_moment", "row_energy")


def takes_rows(
    stack: Stack,
    bound: BoundMatrices,
    targets: Sequence[Tensor],
    gradients: Sequence[Tensor],
    ops: Ops,
) -> bool:
    """Return whether `step_rows` does the step of these matrices."""
    fits = stack.rule.fits_rows
    return (
        fits is not None
        and not torch.compiler.is_compiling()
        and all(member.projected is None for member in stack.members)
        and all(map(ops.has_row_kernels, gradients, targets))
        and fits(bound.step)
    )


def step_rows(
    bound: BoundMatrices,
    targets: Sequence[Tensor],
    gradients: Sequence[Tensor],
    states: Sequence[Any],
    due: Any,
    write: Write,
) -> list[Any]:
    """Step matrices in place; return their new states, whose arrays of rows are those of before, written to.

    Columns are chosen for all members at once. The rows of each are one call, and noted as written with the next
    instruction: a step that is interrupted and done again passes them over.
    """
    matrix, ops, done = bound.step, write.ops, write.done
    norms = norms_due(matrix.config, due)
    sums = None
    if norms:
        own = [ops.dct_sums(gradient, norms=norms) for gradient in gradients]
        sums = own[0] if len(own) == 1 else torch.stack(own, 1)
    light = [state._replace(**dict.fromkeys(_ROWS)) for state in states]
    before = stacked(light, matrix.layout.batch)
    job, after = run(dct_adamw_rows(sums, before, matrix, due))
    members = zip(targets, gradients, states, write.dithers, strict=True)
    for place, (target, gradient, state, dither) in enumerate(members):
        if (*write.key, place) in done.blocks:
            continue
        moments = RowMoments(state.first_moment, state.second_moment, state.row_energy)
        how = RowWrite(write.lr, write.weight_decay, _key(target, dither))
        one = job if len(states) == 1 else job.of(place)
        ops.step_rows(target, gradient, moments, one, how)
        done.blocks.add((*write.key, place))
    kept = zip(unstacked(after, light), states, strict=True)
    return [new._replace(**{name: getattr(state, name) for name in _ROWS}) for new, state in kept]


def _key(target: Tensor, dither: Dither | None) -> int | None:
    """Return the key of the draws that a parameter is rounded by, as `apply_update` has it for its first block."""
    if dither is None or target.dtype == torch.float32:
        return None
    key: Any = torch.full((1,), dither.stream, dtype=torch.int32, device="cpu")
    return int(fold(fold(key, dither.step), dither.place))
