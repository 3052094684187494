"""A stack's step in passes over memory, in place, where the adapter has kernels for it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lowrank_core.numerics.random import fold
from lowrank_core.ops.rows import RowWrite
from lowrank_core.ops.standard import Ops
from lowrank_core.rules.reductions import run
from lowrank_torch._apply import Dither, Write
from lowrank_torch._commit import at_once
from lowrank_torch._plan import BoundMatrices
from lowrank_torch._stack import Stack
from lowrank_torch._state import stacked, unstacked
from lowrank_torch._tuning import SMALL_MEMBER


class Members(NamedTuple):
    """Matrices of each member of a stack, the gradients that step them, and their states."""

    targets: Sequence[Tensor]
    gradients: Sequence[Tensor]
    states: Sequence[Any]

    def as_rows(self, passes: Any, axis: int) -> Members:
        """Return views whose rows are transformed."""
        if axis == -1:
            return self
        return Members(
            [x.mT for x in self.targets],
            [x.mT for x in self.gradients],
            [state._replace(**_rows_of(passes, state, axis)) for state in self.states],
        )


class Rows(NamedTuple):
    """Members laid out as rows, what the rule asks of them, and the kernels that do it."""

    members: Members
    passes: Any
    kernels: Any


def rows_of(stack: Stack, bound: BoundMatrices, members: Members, ops: Ops) -> Rows | None:
    """Return the rows of matrices, of a stack that may be stepped so, if there are kernels for them."""
    passes: Any = stack.rule.passes
    if torch.compiler.is_compiling() or not passes.fits(bound.step):
        return None
    if any(member.projected is not None for member in stack.members):
        return None
    if type(members.states[0].step) is not int and _draws(passes, members, stack):
        return None
    own = members.as_rows(passes, bound.step.layout.axis)
    states = [passes.of_rows(state).values() for state in own.states]
    kernels = ops.row_kernels(own.gradients, own.targets, states)
    return None if kernels is None else Rows(own, passes, kernels)


def _draws(passes: Any, members: Members, stack: Stack) -> bool:
    """Return whether anything is rounded at random, by keys that the kernels get as numbers of the host."""
    rows = passes.of_rows(members.states[0]).values()
    narrow = stack.group["stochastic_rounding"] and members.targets[0].dtype != torch.float32
    return narrow or any(x is not None and x.dtype != torch.float32 for x in rows)


def step_rows(
    rows: Rows, bound: BoundMatrices, states: Sequence[Any], due: Any, write: Write
) -> list[Any]:
    """Step matrices by passes over their ``rows``; return their new ``states``.

    Columns are chosen for all members at once. Small members are stepped as one stack, a copy, where there are kernels
    for stacks, in as many launches as one. The last pass over the rows of others is done in place, and notes what it
    has written. A step that is interrupted and done again passes that over, and takes what the last pass needs as it
    was.
    """
    noted, number, axis = write.done.passes, bound.number, bound.step.layout.axis
    if number in noted and noted[number][0] is None:
        return noted[number][1]
    (targets, gradients, held), passes, kernels = rows
    light = [state._replace(**dict.fromkeys(passes.arrays)) for state in states]
    own: Sequence[Tensor] = targets
    copied = _is_better_copied(targets, write)
    if copied:
        gradients, held = [torch.stack(list(gradients))], [stacked(held, ())]
        own = [torch.stack([*targets])]
    added = [passes.of_rows(state).get(passes.added) for state in held]
    passed = kernels(gradients, own, added, write.ops)
    if number not in noted:
        before = stacked(light, bound.step.layout.batch)
        noted[number] = run(passes.steps(passed, before, bound.step, due))
    job, after = noted[number]
    if copied:
        passes.write(passed, held, bound.step, job, [RowWrite(write.lr, write.weight_decay)])
        _copy_back(targets, own[0], write)
        new = unstacked(after._replace(**_rows_of(passes, held[0], axis)), states)
    else:
        writes = [
            RowWrite(
                write.lr, write.weight_decay, _key(target, dither), write.done.blocks,
                (*write.key, place),
            )
            for place, (target, dither) in enumerate(zip(targets, write.dithers, strict=True))
        ]  # fmt: skip
        passes.write(passed, held, bound.step, job, writes)
        kept = zip(unstacked(after, light), states, strict=True)
        new = [own._replace(**passes.of_rows(state)) for own, state in kept]
    noted[number] = None, new
    return new


def _is_better_copied(targets: Sequence[Tensor], write: Write) -> bool:
    """Return whether members are stepped as one stack: each is a matrix for which launches cost more than a copy."""
    first = targets[0]
    small = len(targets) > 1 and first.ndim == 2 and first.numel() <= SMALL_MEMBER
    # There may be kernels for matrices alone. Of a stack, draws would be numbered otherwise.
    return (
        small
        and write.ops.row_kernels([first[None]], [first[None]], [()]) is not None
        and all(_key(target, d) is None for target, d in zip(targets, write.dithers, strict=True))
    )


def _copy_back(targets: Sequence[Tensor], whole: Tensor, write: Write) -> None:
    """Write to the members of a stack what one copy of them all is after the step."""
    block = (*write.key, 0)
    if block not in write.done.blocks:
        back = partial(torch._foreach_copy_, [*targets], [*whole.unbind()])
        at_once([back, partial(write.done.blocks.add, block)])


def _rows_of(passes: Any, state: Any, axis: int) -> dict[str, Any]:
    """Return the arrays of a state that have rows, with these as `Members.as_rows` has them, or back."""
    arrays: dict[str, Any] = passes.of_rows(state)
    return {name: x if x is None or axis == -1 else x.mT for name, x in arrays.items()}


def _key(target: Tensor, dither: Dither | None) -> int | None:
    """Return the key of the draws that a parameter is rounded by, as `apply_update` has it for its first block."""
    if dither is None or target.dtype == torch.float32:
        return None
    key: Any = torch.full((1,), dither.stream, dtype=torch.int32, device="cpu")
    return int(fold(fold(key, dither.step), dither.place))
