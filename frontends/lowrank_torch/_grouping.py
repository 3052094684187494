"""Which parameters are stepped together: stacks of small matrices of one shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lowrank_core.rules.rule import Rule
from lowrank_torch._plan import Member, Plan
from lowrank_torch._tuning import CPU_STACK, DEVICE_STACK


def grouped(
    members: Sequence[tuple[Member, Plan]], group: Mapping[str, Any], config: Any, rule: Rule
) -> list[tuple[Plan, list[Member]]]:
    """Return the members that are stepped together: of one plan, dtype, device and, if it matters, step count."""
    open_stacks: dict[Any, list[tuple[Any, list[Member]]]] = {}
    stacks = []
    for member, plan in members:
        # Counts that are compared become one for a graph compiler, whose code then lacks one that it only returns.
        parameter = member.parameter
        step = member.state.get("step", 0) if rule.step_dependent else 0
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
    numbers = CPU_STACK if parameter.device.type == "cpu" else DEVICE_STACK
    shards = 1 if plan.sharding is None else plan.sharding.num_shards
    return numbers * shards // max(1, parameter.numel())
