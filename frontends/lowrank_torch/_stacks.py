"""Parameters of one kind stepped together: their matrices stacked, stepped by the core at once, and taken apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lowrank_core import LowRankUpdate
from lowrank_core.layout import with_fitting_rank
from lowrank_core.ops import Ops
from lowrank_torch._apply import Dither, apply_stacked, apply_update
from lowrank_torch._matrices import as_matrices, matrix_views
from lowrank_torch._plan import Member, Plan

# Numbers in one stack of gradients: what fits a core's cache on the CPU, a launch worth making elsewhere.
_CPU_STACK = 2**20
_DEVICE_STACK = 2**24


class Rule(NamedTuple):
    """The functions of the core that step a matrix."""

    state_type: type[Any]
    init: Callable[..., Any]
    step: Callable[..., tuple[LowRankUpdate, Any]]
    #: Whether the rule draws random numbers, and so wants to know which matrix it is at.
    draws: bool
    #: The step on coefficients on the current columns, where the rule has one, and what gives these.
    step_projected: Any = None
    project: Any = None


def stacks_of(
    members: Sequence[tuple[Member, Plan]], group: Mapping[str, Any], config: Any
) -> list[tuple[Plan, list[Member]]]:
    """Return the members in the stacks they are stepped in: of one plan, dtype, device and step count each."""
    open_stacks: dict[Any, list[tuple[Any, list[Member]]]] = {}
    stacks = []
    for member, plan in members:
        parameter, step = member.parameter, member.state.get("step", 0)
        kind = parameter.dtype, member.gradient_dtype, parameter.device, member.projected is None
        alike = open_stacks.setdefault((plan, *kind), [])
        # The count is no part of the key: a graph compiler would take it for a constant.
        stack = next((stack for count, stack in alike if count == step), None)
        if stack is not None and len(stack) < _most(parameter, group, config):
            stack.append(member)
        else:
            fresh = [member]
            alike.insert(0, (step, fresh))
            stacks.append((plan, fresh))
    return stacks


def _most(parameter: Tensor, group: Mapping[str, Any], config: Any) -> int:
    """Return the number of parameters like this one that are stacked at most."""
    # Narrow state is rounded at random by the place of each number, which in a stack would be another one.
    if not group["foreach"] or config.state_dtype in ("bfloat16", "float16"):
        return 1
    numbers = _CPU_STACK if parameter.device.type == "cpu" else _DEVICE_STACK
    return numbers // max(1, parameter.numel())


def make_state(member: Member, plan: Plan, rule: Rule, config: Any) -> None:
    """Give a parameter the state before its first step."""
    parameter = member.parameter
    entries: dict[str, Any] = {}
    for block, shape in enumerate(plan.blocks):
        place = {"stream": (member.stream << 8) + block} if rule.draws else {}
        fitted = with_fitting_rank(config, shape)
        made = rule.init(
            shape, fitted, xp=torch, dtype=parameter.dtype, device=parameter.device, **place
        )
        entries |= _entries(made, plan, block)
    member.state.update(entries)


def step_stack(
    stack: Sequence[Member],
    plan: Plan,
    rule: Rule,
    config: Any,
    group: Mapping[str, Any],
    ops: Ops,
) -> None:
    """Do one step on parameters of one plan, whose states have been made."""
    batch_dims = group["batch_dims"]
    # A parameter whose memory is not laid out as matrices (a channels-last convolution) is stepped as a copy.
    wholes = [as_matrices(member.parameter, batch_dims) for member in stack]
    targets = [matrix_views(whole, group) for whole in wholes]
    gradients = [
        member.projected or matrix_views(_matrices(member.parameter.grad, batch_dims), group)
        for member in stack
    ]
    rate, decay = group["lr"], group["weight_decay"]
    if group["maximize"]:
        # Every rule is odd in the gradient, so going up is going down with the sign turned.
        rate, decay = -rate, -decay
    after: list[dict[str, Any]] = [{} for _ in stack]
    for block, shape in enumerate(plan.blocks):
        fitted = with_fitting_rank(config, shape)
        states = [_state_of(member.state, plan, block, rule) for member in stack]
        parts = [views[block] for views in gradients]
        together = shape if len(stack) == 1 else (len(stack), *shape)
        step: Any = rule.step
        if stack[0].projected is not None:
            step = partial(rule.step_projected, shape=together)
        if len(stack) == 1:
            update, kept = step(parts[0], states[0], fitted, ops=ops)
            new = [kept]
        else:
            before = _stacked(states, fitted.state_spec(together))
            update, kept = step(torch.stack(parts), before, fitted, ops=ops)
            new = _taken_apart(kept, len(stack), fitted.state_spec(shape))
        dithers = [
            Dither(member.stream, kept.step, block << 24) if group["stochastic_rounding"] else None
            for member in stack
        ]
        own = [views[block] for views in targets]
        if len(stack) == 1:
            apply_update(own[0], update, rate=rate, decay=decay, dither=dithers[0], ops=ops)
        else:
            apply_stacked(own, update, rate=rate, decay=decay, dithers=dithers, ops=ops)
        for entries, state in zip(after, new, strict=True):
            entries |= _entries(state, plan, block)
    for member, whole, entries in zip(stack, wholes, after, strict=True):
        if whole is not member.parameter:
            # Costs nothing where the matrices are a view: PyTorch copies no tensor onto itself.
            member.parameter.copy_(whole.view(member.parameter.shape))
        member.state.update(entries)


def project_blocks(
    member: Member, plan: Plan, rule: Rule, config: Any, group: Mapping[str, Any], ops: Ops
) -> list[Tensor]:
    """Return the coefficients of a parameter's gradient on the current columns of each block."""
    batch_dims = group["batch_dims"]
    gradients = matrix_views(_matrices(member.parameter.grad, batch_dims), group)
    return [
        rule.project(
            gradient,
            _state_of(member.state, plan, block, rule),
            with_fitting_rank(config, plan.blocks[block]),
            ops=ops,
        )
        for block, gradient in enumerate(gradients)
    ]


def _matrices(gradient: Any, batch_dims: int) -> Tensor:
    return as_matrices(gradient, batch_dims).contiguous()


def _entries(state: Any, plan: Plan, block: int) -> dict[str, Any]:
    """Return a state of the core as entries of a parameter's state."""
    arrays = {name: value for name, value in state._asdict().items() if value is not None}
    step = arrays.pop("step")
    return {"step": step} | {plan.key(name, block): value for name, value in arrays.items()}


def _state_of(entries: Mapping[str, Any], plan: Plan, block: int, rule: Rule) -> Any:
    """Return the core's state of one block of a parameter."""
    names = [name for name in rule.state_type._fields if name != "step"]
    own = {name: entries.get(plan.key(name, block)) for name in names}
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
