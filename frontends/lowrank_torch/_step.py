"""One stack of parameters: views in, the core's step driven, the update written out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lowrank_core.ops.standard import Ops
from lowrank_core.rules.reductions import run
from lowrank_core.rules.rule import Rule
from lowrank_core.subspace.empty import as_chosen
from lowrank_torch._apply import Dither, Write, apply_update, rates_of
from lowrank_torch._capturable import keeping
from lowrank_torch._collectives import ShardedSteps, all_reduced
from lowrank_torch._commit import ALL, Done, at_once, to_the_end
from lowrank_torch._matrices import as_matrices, from_matrices, matrix_views
from lowrank_torch._parts import parts_of, rows_per_part, step_part, step_parts
from lowrank_torch._plan import BoundMatrices, Plan
from lowrank_torch._redistribute import redistribution
from lowrank_torch._rows import Members, rows_of, step_rows
from lowrank_torch._sharding import local_gradient, local_of
from lowrank_torch._stack import Stack
from lowrank_torch._state import entries_of, stacked, state_of, unstacked


def step_here(stack: Stack, ops: Ops) -> None:
    """Do one step on parameters that this process has whole; their states have been made."""
    views, done = _views_of(stack), Done()
    to_the_end(partial(_step_views, stack, views, done, ops), done)


def _step_views(stack: Stack, views: _Views, done: Done, ops: Ops) -> None:
    """Do of a step what has not been ``done``."""
    after = []
    for bound, targets, gradients in zip(
        stack.matrices, views.targets, views.gradients, strict=True
    ):
        write = _write_of(stack, bound.number, done, ops)
        after.append(_step_matrices(stack, bound, targets, gradients, write))
    _keep(stack, views, after, done)


def step_sharded(stack: Stack, ops: Ops) -> ShardedSteps[None]:
    """Do what `step_here` does on parameters that lie on several ranks, or whose work ranks share: a generator."""
    views, done, after = _views_of(stack), Done(), []
    for bound, targets, gradients in zip(
        stack.matrices, views.targets, views.gradients, strict=True
    ):
        write = _write_of(stack, bound.number, done, ops)
        gradient = together(gradients)
        after.append((yield from _step_shards(stack, bound, targets, gradient, write)))
    _keep(stack, views, after, done)


class _Views(NamedTuple):
    """What a stack is stepped on: for each stack of matrices of its plan, what this rank has of every member's."""

    #: Views of the parameters, to be written to.
    targets: list[tuple[Tensor, ...]]
    #: The gradients, or the coefficients that were kept of them.
    gradients: list[tuple[Tensor, ...]]
    #: Each parameter on this rank, and the same laid out as matrices: a copy where its memory is laid out otherwise.
    wholes: list[tuple[Tensor, Tensor]]


def _views_of(stack: Stack) -> _Views:
    plan, batch_dims, transposed = stack.plan, stack.plan.batch_dims, stack.plan.transposed
    targets, gradients, wholes = [], [], []
    for member in stack.members:
        local: Tensor = member.parameter
        gradient: Any = local.grad
        if plan.sharding is not None:
            local, gradient = local_of(local), local_gradient(member.parameter)
        whole = as_matrices(local, batch_dims, transposed=transposed)
        wholes.append((local, whole))
        targets.append(matrix_views(whole, plan.local_shapes, batch_dims))
        if member.projected is not None:
            gradients.append(member.projected)
            continue
        gradients.append(gradients_of(gradient, plan))
    return _Views(list(zip(*targets, strict=True)), list(zip(*gradients, strict=True)), wholes)


def together(gradients: Sequence[Tensor]) -> Tensor:
    """Return the gradients of several members as one stack, that of one as it is."""
    return gradients[0] if len(gradients) == 1 else torch.stack(list(gradients))


def _keep(stack: Stack, views: _Views, after: Sequence[Sequence[Any]], done: Done) -> None:
    """Keep the states ``after`` a step, and write to parameters what was stepped as a copy."""
    calls: list[Any] = []
    for place, (member, (local, whole)) in enumerate(zip(stack.members, views.wholes, strict=True)):
        if whole is not local:
            own = from_matrices(whole, local.shape, transposed=stack.plan.transposed)
            calls.append(partial(local.copy_, own))
        entries: dict[str, Any] = {"step": member.state["step"] + 1}
        for bound, states in zip(stack.matrices, after, strict=True):
            entries |= entries_of(states[place], bound, stack.plan.sharding)
        calls += keeping(member.state, entries)
    at_once([*calls, partial(done.blocks.add, ALL)])


def _step_matrices(
    stack: Stack,
    bound: BoundMatrices,
    targets: Sequence[Tensor],
    gradients: Sequence[Tensor],
    write: Write,
) -> list[Any]:
    """Step matrices that this process has all of; return their new states."""
    matrix, rule, ops = bound.step, stack.rule, write.ops
    states = [state_of(member.state, bound, rule) for member in stack.members]
    due = _due(stack, bound, states)
    members = Members(targets, gradients, states)
    if stack.by_rows and (rows := rows_of(stack, bound, members, ops)) is not None:
        return step_rows(rows, bound, states, due, write)
    gradient = together(gradients)
    if (length := rows_per_part(stack, matrix, ops)) < matrix.layout.rows:
        parts = parts_of(targets[0], gradient, states[0], matrix, length)
        after = step_parts(parts, partial(step_part, matrix, rule, due), write)
        # What is not cut is the same in all; what is has been written in place.
        cut = parts[0].state_views
        return [after._replace(**{name: getattr(states[0], name) for name in cut})]
    before = stacked(states, matrix.layout.batch)
    if torch.compiler.is_compiling() and not isinstance(before.step, Tensor):
        # The compiler would take a host number that goes through `math` for a constant, and compile every step anew.
        # A tensor it follows; whether to refresh is the one thing that two graphs are for. `int` keeps the number among
        # the graph's inputs: the counts of a stack were compared, and of those that are equal it keeps what is used.
        before = before._replace(step=torch.tensor(int(before.step), device=gradient.device))
        # See `_due`.
        before = as_chosen(before, matrix.layout.size, ops)
    if stack.members[0].projected is not None:
        update, after = rule.step_projected(gradient, before, matrix)  # type: ignore[misc]
    else:
        update, after = run(rule.steps(gradient, before, matrix, due))
    apply_update(targets, update, write)
    return unstacked(after, states)


def _step_shards(
    stack: Stack,
    bound: BoundMatrices,
    targets: Sequence[Tensor],
    gradient: Tensor,
    write: Write,
) -> ShardedSteps[list[Any]]:
    """Step matrices that lie on several ranks, or whose work they share; return this rank's new states."""
    matrix, rule = bound.step, stack.rule
    states = [state_of(member.state, bound, rule) for member in stack.members]
    due = _due(stack, bound, states)
    around = redistribution(stack.plan, bound.number, matrix.layout.axis)
    shard = yield from around.to_compute(gradient)
    before = stacked(states, matrix.layout.batch)
    steps = rule.steps(shard, before, matrix, due)
    if matrix.in_parts:
        update, after = yield from all_reduced(steps, around.sharding.group)
    else:
        update, after = run(steps)
    yield from around.write(targets, update, gradient, write)
    return unstacked(after, states)


def _due(stack: Stack, bound: BoundMatrices, states: Sequence[Any]) -> Any:
    """Return whether a step chooses columns: a host boolean, or booleans that say of which matrices.

    Whether there are matrices for which none were chosen yet is read until there are none, and not at every step: where
    the numbers are a device's, the host waits for them. Where the count is one of these every step makes a choice,
    which stands for the matrices that it is due for.
    """
    if isinstance(states[0].step, Tensor):
        return stack.rule.due(states[0], bound.step)
    if bool(bound.step.config.refreshes(states[0].step + 1)):
        return True
    if bound.number in stack.decided or torch.compiler.is_compiling():
        # A graph cannot branch on what it computes: compiled, columns are chosen when they are due.
        return False
    masks = [stack.rule.due(state, bound.step) for state in states]
    due = masks[0] if len(masks) == 1 else torch.stack(masks)
    fake = type(due) is not Tensor or due.device.type == "meta"
    if fake or bool(due.any()):
        return due
    stack.decided.add(bound.number)
    return False


def _write_of(stack: Stack, number: int, done: Done, ops: Ops) -> Write:
    """Return how updates of stack ``number`` of matrices are written."""
    group = stack.group
    lr, weight_decay = rates_of(group)
    dithers: list[Dither | None] = [None] * len(stack.members)
    if group["stochastic_rounding"]:
        place = number << 24
        dithers = [Dither(m.stream, m.state["step"] + 1, place) for m in stack.members]
    return Write(lr, weight_decay, ops, dithers, done, (number,))


class Projection(NamedTuple):
    """Projects gradients of one parameter, whose state this is, on its current columns.

    It holds neither the parameter nor its group: what it makes is kept by the parameter.
    """

    state: Mapping[str, Any]
    plan: Plan
    matrices: Sequence[BoundMatrices]
    rule: Rule

    def __call__(self, gradient: Tensor) -> list[Tensor]:
        """Return the coefficients of a gradient on the current columns of each stack of matrices."""
        project: Any = self.rule.project
        return [
            project(view, state_of(self.state, bound, self.rule), bound.step)
            for view, bound in zip(gradients_of(gradient, self.plan), self.matrices, strict=True)
        ]

    @property
    def step(self) -> int:
        """The step that the columns are of."""
        step: int = self.state["step"]
        return step


def gradients_of(gradient: Tensor, plan: Plan) -> list[Tensor]:
    """Return each stack of matrices of what this rank has of a gradient."""
    own = as_matrices(gradient, plan.batch_dims, transposed=plan.transposed)
    return matrix_views(own.contiguous(), plan.local_shapes, plan.batch_dims)
