"""Parameters of one kind stepped together: their matrices stacked, stepped by the core at once, and taken apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lowrank_core import LowRankUpdate
from lowrank_core.layout import with_side_of
from lowrank_core.ops import Ops
from lowrank_torch._apply import Dither
from lowrank_torch._division import Matrix, block_length, is_plain, step_divided
from lowrank_torch._exchange import Exchange
from lowrank_torch._matrices import as_matrices, matrix_views, write_matrices
from lowrank_torch._plan import Member, Plan
from lowrank_torch._sharding import local_gradient, local_of
from lowrank_torch._slabs import Move, apply_slabs, as_state, ops_over, placed, to_slab

# Numbers in one stack of gradients: on the CPU as many as make its calls cost little, and leave threads their share;
# elsewhere a launch worth making.
_CPU_STACK = 2**20
_DEVICE_STACK = 2**24
# Numbers in a stack that a thread may step alone while others step others, each holding as much again.
_SMALL = 2**22


class Rule(NamedTuple):
    """The functions of the core that step a matrix."""

    state_type: type[Any]
    init: Callable[..., Any]
    step: Callable[..., tuple[LowRankUpdate, Any]]
    #: Whether the rule draws random numbers, and so wants to know which matrix it is at.
    draws: bool
    #: Whether what it does depends on how many steps there have been: then matrices in step alone are stacked.
    counts: bool = True
    #: What the step has to know of a whole matrix to be done block by block, where the rule has such.
    survey: Any = None
    #: The step on coefficients on the current columns, where the rule has one, and what gives these.
    step_projected: Any = None
    project: Any = None


def stacks_of(
    members: Sequence[tuple[Member, Plan]], group: Mapping[str, Any], config: Any, rule: Rule
) -> list[tuple[Plan, list[Member]]]:
    """Return the members in the stacks they are stepped in: of one plan, dtype, device and, if it counts, step each."""
    open_stacks: dict[Any, list[tuple[Any, list[Member]]]] = {}
    stacks = []
    for member, plan in members:
        # Counts that are compared become one for a graph compiler, whose code then lacks one that it only returns.
        parameter, step = member.parameter, member.state.get("step", 0) if rule.counts else 0
        kind = parameter.dtype, member.gradient_dtype, parameter.device, member.projected is None
        alike = open_stacks.setdefault((plan, *kind), [])
        # The count is no part of the key: a graph compiler would take it for a constant.
        stack = next((stack for count, stack in alike if count == step), None)
        if stack is not None and len(stack) < _most(parameter, plan, group, config):
            stack.append(member)
        else:
            fresh = [member]
            alike.insert(0, (step, fresh))
            stacks.append((plan, fresh))
    return stacks


def _most(parameter: Tensor, plan: Plan, group: Mapping[str, Any], config: Any) -> int:
    """Return the number of parameters like this one that are stacked at most."""
    # Narrow state is rounded at random by the place of each number, which in a stack would be another one.
    if not group["foreach"] or config.state_dtype in ("bfloat16", "float16"):
        return 1
    numbers = _CPU_STACK if parameter.device.type == "cpu" else _DEVICE_STACK
    parts = 1 if plan.spread is None else plan.spread.parts
    return numbers * parts // max(1, parameter.numel())


def make_state(member: Member, plan: Plan, rule: Rule, config: Any, batch_dims: int) -> None:
    """Give a parameter the state before its first step."""
    parameter = member.parameter
    entries: dict[str, Any] = {}
    device = local_of(parameter).device
    for block, shape in enumerate(plan.slabs):
        fitted = plan.fitted(config, block)
        place = {"stream": (member.stream << 8) + block} if rule.draws else {}
        options = {"xp": torch, "dtype": parameter.dtype, "device": device, **place}
        made = rule.init(shape, fitted, **options)
        if getattr(made, "key", None) is not None and plan.spread is not None:
            # Keys are numbered over all matrices of a stack, wherever they are.
            whole = plan.blocks[block]
            axis = fitted.layout(whole).axis
            across, sided = -3 - axis, with_side_of(fitted, axis)
            empty = [*whole[:-2], *(0 if d == across else whole[d] for d in (-2, -1))]
            keys = rule.init(tuple(empty), sided, **options).key
            placements = _placements(plan, fitted, block, keys.shape, batch_dims)
            made = made._replace(key=local_of(placed(keys, plan.spread, placements, "key")))
        entries |= {"step": made.step} | _entries(made, plan, block, fitted, batch_dims)
    member.state.update(entries)


def place_state(state: dict[str, Any], plan: Plan, config: Any, batch_dims: int) -> None:
    """Lay a matrix's loaded state out as its parameter is.

    Raises
    ------
    ValueError
        If it is sharded and should not be, or otherwise.
    """
    for block in range(len(plan.blocks)):
        fitted = plan.fitted(config, block)
        for name in fitted.state_spec(plan.blocks[block]):
            key = plan.key(name, block)
            placements = _placements(plan, fitted, block, state[key].shape, batch_dims)
            state[key] = placed(state[key], plan.spread, placements, key)


def step_stack(
    stack: Sequence[Member],
    plan: Plan,
    rule: Rule,
    config: Any,
    group: Mapping[str, Any],
    ops: Ops,
    exchange: Exchange,
) -> None:
    """Do one step on parameters of one plan, whose states have been made."""
    batch_dims, transposed = group["batch_dims"], group["transposed"]
    # A parameter whose memory is not laid out as matrices (a channels-last convolution) is stepped as a copy.
    locals_ = [local_of(member.parameter) for member in stack]
    wholes = [as_matrices(local, batch_dims, transposed=transposed) for local in locals_]
    targets = [matrix_views(whole, plan.pieces, batch_dims) for whole in wholes]
    gradients = [
        member.projected
        or matrix_views(_matrices(local_gradient(member.parameter), group), plan.pieces, batch_dims)
        for member in stack
    ]
    rate, decay = group["lr"], group["weight_decay"]
    if group["maximize"]:
        # Every rule is odd in the gradient, so going up is going down with the sign turned.
        rate, decay = -rate, -decay
    after: list[dict[str, Any]] = [{} for _ in stack]
    counts = [member.state["step"] + 1 for member in stack]
    divisible = rule.survey is not None and _is_divisible(stack, plan, group)
    for block, shape in enumerate(plan.slabs):
        fitted = plan.fitted(config, block)
        layout = fitted.layout(plan.blocks[block])
        if divisible:
            state = _state_of(stack[0].state, plan, block, rule)
            matrix = Matrix(targets[0][block], gradients[0][block], state, fitted, layout)
            if (length := block_length(matrix, ops)) < layout.across:
                kept = step_divided(matrix, length, rule.survey, rule.step, rate, decay, ops)
                after[0] |= _entries(kept, plan, block, fitted, batch_dims)
                continue
        own_ops = ops_over(ops, layout.axis, layout.across, plan.spread, exchange)
        states = [_state_of(member.state, plan, block, rule) for member in stack]
        parts = [views[block] for views in gradients]
        part = parts[0] if len(parts) == 1 else torch.stack(parts)
        together = shape if len(stack) == 1 else (len(stack), *shape)
        step: Any = rule.step
        if stack[0].projected is None:
            slab = to_slab(part, plan, block, layout.axis, exchange)
        else:
            step, slab = partial(rule.step_projected, shape=together), part
        if len(stack) == 1:
            update, kept = step(slab, states[0], fitted, ops=own_ops)
            new = [kept]
        else:
            before = _stacked(states, fitted.state_spec(together))
            update, kept = step(slab, before, fitted, ops=own_ops)
            new = _taken_apart(kept, len(stack), fitted.state_spec(shape))
        dithers = [
            Dither(member.stream, count, block << 24) if group["stochastic_rounding"] else None
            for member, count in zip(stack, counts, strict=True)
        ]
        own = [views[block] for views in targets]
        apply_slabs(own, update, plan, block, part, Move(rate, decay, dithers), own_ops, exchange)
        for entries, state in zip(after, new, strict=True):
            entries |= _entries(state, plan, block, fitted, batch_dims)
    for member, count, local, whole, entries in zip(
        stack, counts, locals_, wholes, after, strict=True
    ):
        if whole is not local:
            write_matrices(local, whole, transposed=transposed)
        member.state.update(entries, step=count)


def project_blocks(
    member: Member, plan: Plan, rule: Rule, config: Any, group: Mapping[str, Any], ops: Ops
) -> list[Tensor]:
    """Return the coefficients of a parameter's gradient on the current columns of each block."""
    gradient: Any = member.parameter.grad
    return [
        rule.project(
            part, _state_of(member.state, plan, block, rule), plan.fitted(config, block), ops=ops
        )
        for block, part in enumerate(
            matrix_views(_matrices(gradient, group), plan.pieces, group["batch_dims"])
        )
    ]


def held_bytes(stack: Sequence[Member], plan: Plan) -> int:
    """Return about how many bytes a step holds while it waits for others, the same number on every rank."""
    if plan.spread is None or not plan.spread.summed:
        return 0
    # Coefficients and whatever was copied of the gradient, in float32.
    return 8 * len(stack) * stack[0].parameter.numel() // plan.spread.parts


def is_small(stack: Sequence[Member]) -> bool:
    """Return whether a stack is stepped by one thread while others step others."""
    parameter = stack[0].parameter
    return is_plain(parameter) and len(stack) * parameter.numel() <= _SMALL


def _is_divisible(stack: Sequence[Member], plan: Plan, group: Mapping[str, Any]) -> bool:
    """Return whether what is stepped is one whole gradient, and nothing depends on the place of a number in it."""
    member = stack[0]
    whole = len(stack) == 1 and plan.spread is None and member.projected is None
    return whole and is_plain(member.parameter) and not group["stochastic_rounding"]


def _matrices(gradient: Any, group: Mapping[str, Any]) -> Tensor:
    own = as_matrices(gradient, group["batch_dims"], transposed=group["transposed"])
    return own.contiguous()


def _placements(plan: Plan, fitted: Any, block: int, shape: Sequence[int], batch_dims: int) -> Any:
    """Return the placements of an array of state of the given number of dimensions."""
    if plan.spread is None:
        return ()
    whole = plan.blocks[block]
    return plan.spread.placements_of(shape, whole, fitted.layout(whole).axis, batch_dims)


def _entries(state: Any, plan: Plan, block: int, fitted: Any, batch_dims: int) -> dict[str, Any]:
    """Return the arrays of a state of the core as entries of a parameter's state."""
    arrays = {
        name: value
        for name, value in state._asdict().items()
        if value is not None and name != "step"
    }
    entries = {}
    spec = None if plan.spread is None else fitted.state_spec(plan.blocks[block])
    for name, value in arrays.items():
        if spec is not None:
            placements = _placements(plan, fitted, block, spec[name].shape, batch_dims)
            value = as_state(value, spec[name].shape, plan.spread, placements)
        entries[plan.key(name, block)] = value
    return entries


def _state_of(entries: Mapping[str, Any], plan: Plan, block: int, rule: Rule) -> Any:
    """Return the core's state of one block of a parameter."""
    names = [name for name in rule.state_type._fields if name != "step"]
    own = {name: local_of(entries.get(plan.key(name, block))) for name in names}
    return rule.state_type(step=entries["step"], **own)


def _stacked(states: Sequence[Any], spec: Mapping[str, Any]) -> Any:
    """Return states of same-shaped matrices as one state of their stack, whose arrays are as ``spec`` says."""
    arrays = {
        name: torch.stack([getattr(state, name) for state in states]).view(spec[name].shape)
        for name in spec
    }
    return states[0]._replace(**arrays)


def _taken_apart(state: Any, count: int, spec: Mapping[str, Any]) -> list[Any]:
    """Return the state of a stack as the states of its ``count`` parts, whose arrays are as ``spec`` says."""
    parts = {name: getattr(state, name).view(count, *spec[name].shape).unbind() for name in spec}
    return [
        state._replace(**{name: values[index] for name, values in parts.items()})
        for index in range(count)
    ]
