"""One stack of parameters: views in, the core's step driven, the update written out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from lowrank_core.layout import cut_rows, with_side_of
from lowrank_core.ops.standard import Ops
from lowrank_core.rules.reductions import Steps, run, run_parts
from lowrank_core.rules.rule import MatrixStep, Rule
from lowrank_torch._apply import Dither, Write, apply_update
from lowrank_torch._collectives import ShardedSteps, all_reduced
from lowrank_torch._input import followed
from lowrank_torch._matrices import as_matrices, matrix_views, write_matrices
from lowrank_torch._plan import Member, Plan
from lowrank_torch._redistribute import redistribution
from lowrank_torch._sharding import local_gradient, local_of
from lowrank_torch._state import entries_of, stacked, state_of, unstacked
from lowrank_torch._tuning import LARGE_MATRIX, LEAST_PART, PART, SMALL_STACK

# Dtypes of state that comes out the same however a matrix is divided: half precision is rounded at random by the place
# of a number.
_DIVISIBLE = {"float64", "float32", "int32", "uint8"}


class Stack(NamedTuple):
    """Parameters of one plan, stepped together: each one's matrices, stacked."""

    members: Sequence[Member]
    plan: Plan
    #: What the steps of each stack of matrices of the plan are bound to.
    matrices: Sequence[MatrixStep[Any]]
    rule: Rule
    #: The options of their group.
    group: Mapping[str, Any]

    @property
    def is_small(self) -> bool:
        """Whether one thread steps it while others step others."""
        parameter = self.members[0].parameter
        return is_plain(parameter) and len(self.members) * parameter.numel() <= SMALL_STACK

    @property
    def held_bytes(self) -> int:
        """About how many bytes a step holds while it waits for other ranks, the same number on every rank."""
        sharding = self.plan.sharding
        if sharding is None or not sharding.reduce_dims:
            return 0
        # Coefficients and whatever was copied of the gradient, in float32.
        numbers = len(self.members) * self.members[0].parameter.numel()
        return 8 * numbers // sharding.num_shards


def is_plain(parameter: Tensor) -> bool:
    """Return whether other threads can work on a parameter: it has memory of its own, on the CPU."""
    return parameter.device.type == "cpu" and type(parameter) in (Tensor, Parameter)


def step_stack(stack: Stack, ops: Ops) -> ShardedSteps[None]:
    """Do one step on parameters whose states have been made: a generator of the collectives it needs, if any."""
    members, plan, group = stack.members, stack.plan, stack.group
    counts = [member.state["step"] + 1 for member in members]
    batch_dims, transposed = group["batch_dims"], group["transposed"]
    # A parameter whose memory is not laid out as matrices (a channels-last convolution) is stepped as a copy.
    locals_ = [local_of(member.parameter) for member in members]
    wholes = [as_matrices(local, batch_dims, transposed=transposed) for local in locals_]
    targets = [matrix_views(whole, plan.local_shapes, batch_dims) for whole in wholes]
    gradients = [_gradients(member, plan, group) for member in members]
    after: list[dict[str, Any]] = [{} for _ in members]
    for number, matrix in enumerate(stack.matrices):
        own_targets, own_gradients = ([v[number] for v in views] for views in (targets, gradients))
        given = _Matrices(stack, number, own_targets, own_gradients, ops)
        if plan.sharding is None:
            new = _step_here(given)
        else:
            new = yield from _step_sharded(given)
        for entries, state in zip(after, new, strict=True):
            entries |= entries_of(state, plan, number, matrix.config, batch_dims)
    for member, count, local, whole, entries in zip(
        members, counts, locals_, wholes, after, strict=True
    ):
        if whole is not local:
            write_matrices(local, whole, transposed=transposed)
        member.state.update(entries, step=count)


class _Matrices(NamedTuple):
    """Stack ``number`` of matrices of each parameter of a stack: what is stepped by one call of the core."""

    stack: Stack
    number: int
    targets: list[Tensor]
    gradients: list[Tensor]
    ops: Ops

    @property
    def matrix(self) -> MatrixStep[Any]:
        """What its steps are bound to."""
        return self.stack.matrices[self.number]

    def states(self) -> list[Any]:
        """Return the core's state of each parameter's matrices."""
        stack = self.stack
        return [state_of(m.state, stack.plan, self.number, stack.rule) for m in stack.members]

    def together(self) -> Tensor:
        """Return the gradients as one stack."""
        return self.gradients[0] if len(self.gradients) == 1 else torch.stack(self.gradients)


def _step_here(given: _Matrices) -> list[Any]:
    """Step matrices that this process has all of; return their new states."""
    stack, matrix, rule = given.stack, given.matrix, given.stack.rule
    states = given.states()
    write = _write_of(stack, given.number, given.ops)
    refresh = bool(matrix.config.refreshes(states[0].step + 1))
    if (length := _rows_per_part(stack, matrix, given.ops)) < matrix.layout.rows:
        parts = _parts(given.targets[0], given.gradients[0], states[0], matrix, length)
        steps = [_step_part(part, matrix, rule, refresh, write) for part in parts]
        kept = run_parts(steps, given.ops.for_each)
        # What is not cut is the same in all; what is has been written in place.
        cut = parts[0].state_views
        return [kept[0]._replace(**{name: getattr(states[0], name) for name in cut})]
    local, before = given.together(), stacked(states, matrix.layout.batch)
    if torch.compiler.is_compiling():
        # The compiler would take a host number that goes through `math` for a constant, and compile every step anew.
        # A tensor it follows; whether to refresh is the one thing that two graphs are for. `int` keeps the number among
        # the graph's inputs: the counts of a stack were compared, and of those that are equal it keeps what is used.
        before = before._replace(step=torch.tensor(int(before.step), device=local.device))
    if stack.members[0].projected is not None:
        update, after = rule.step_projected(local, before, matrix)  # type: ignore[misc]
    else:
        update, after = run(rule.steps(local, before, matrix, refresh))
    apply_update(given.targets, update, write)
    return unstacked(after, states)


def _step_sharded(given: _Matrices) -> ShardedSteps[list[Any]]:
    """Step matrices that lie on several ranks, or whose work they share; return this rank's new states."""
    stack, matrix = given.stack, given.matrix
    states, local = given.states(), given.together()
    write = _write_of(stack, given.number, given.ops)
    refresh = bool(matrix.config.refreshes(states[0].step + 1))
    around = redistribution(stack.plan, given.number, matrix.layout.axis)
    shard = yield from around.to_compute(local)
    before = stacked(states, matrix.layout.batch)
    steps = stack.rule.steps(shard, before, matrix, refresh)
    if stack.plan.reduces:
        update, after = yield from all_reduced(steps, around.sharding.group)
    else:
        update, after = run(steps)
    yield from around.write(given.targets, update, local, write)
    return unstacked(after, states)


def _write_of(stack: Stack, number: int, ops: Ops) -> Write:
    """Return how updates of stack ``number`` of matrices are written."""
    group = stack.group
    lr, weight_decay = followed(group["lr"]), group["weight_decay"]
    if group["maximize"]:
        # Every rule is odd in the gradient, so going up is going down with the sign turned.
        lr, weight_decay = -lr, -weight_decay
    dithers: list[Dither | None] = [None for _ in stack.members]
    if group["stochastic_rounding"]:
        place = number << 24
        dithers = [Dither(m.stream, m.state["step"] + 1, place) for m in stack.members]
    return Write(lr, weight_decay, ops, dithers)


class Projection(NamedTuple):
    """Projects gradients of one parameter, whose state this is, on its current columns.

    It holds neither the parameter nor its group: what it makes is kept by the parameter.
    """

    state: Mapping[str, Any]
    plan: Plan
    matrices: Sequence[MatrixStep[Any]]
    rule: Rule
    #: The options of the group that say how a parameter lies as matrices.
    layout: Mapping[str, Any]

    def __call__(self, gradient: Tensor) -> list[Tensor]:
        """Return the coefficients of a gradient on the current columns of each stack of matrices."""
        project: Any = self.rule.project
        return [
            project(view, state_of(self.state, self.plan, number, self.rule), matrix)
            for number, (view, matrix) in enumerate(
                zip(_views(gradient, self.plan, self.layout), self.matrices, strict=True)
            )
        ]

    @property
    def step(self) -> int:
        """The step that the columns are of."""
        step: int = self.state["step"]
        return step


def _gradients(member: Member, plan: Plan, group: Mapping[str, Any]) -> Sequence[Tensor]:
    """Return what this rank has of the gradient of each stack of matrices, or its kept coefficients."""
    if member.projected is not None:
        return member.projected
    return _views(local_gradient(member.parameter), plan, group)


def _views(gradient: Tensor, plan: Plan, group: Mapping[str, Any]) -> Sequence[Tensor]:
    """Return each stack of matrices of a gradient."""
    batch_dims, transposed = group["batch_dims"], group["transposed"]
    own = as_matrices(gradient, batch_dims, transposed=transposed)
    return matrix_views(own.contiguous(), plan.local_shapes, batch_dims)


# -- parts of a large matrix, side by side -----------------------------------------------------


class _Part(NamedTuple):
    """Some rows of a matrix: views of the parameter, of its gradient and of its state."""

    target: Tensor
    gradient: Tensor
    state: Any
    #: The arrays of the state that have rows, by name; written in place.
    state_views: dict[str, Tensor]


def _rows_per_part(stack: Stack, matrix: MatrixStep[Any], ops: Ops) -> int:
    """Return how many rows of a matrix to step at a time on a CPU's threads; all where it is not to be divided."""
    layout, member = matrix.layout, stack.members[0]
    numbers = math.prod(layout.shape)
    threads = ops.num_threads() if numbers >= LEAST_PART * ops.num_threads() else 1
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


def _parts(
    target: Tensor, gradient: Tensor, state: Any, matrix: MatrixStep[Any], length: int
) -> list[_Part]:
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
        parts.append(_Part(own_target, own_gradient, state._replace(**views), views))
    return parts


def _step_part(
    part: _Part, matrix: MatrixStep[Any], rule: Rule, refresh: bool, write: Write
) -> Steps[Any]:
    """Step some rows of a matrix; they stay with one thread from their coefficients to parameter and state."""
    update, new = yield from rule.steps(part.gradient, part.state, matrix, refresh)
    apply_update([part.target], update, write)
    for name, own in part.state_views.items():
        own.copy_(getattr(new, name))
    return new._replace(**part.state_views)
