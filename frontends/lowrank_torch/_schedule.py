"""What a step does: which parameters are stepped together, and with what. Kept while steps are alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from lowrank_core.rules.rule import Rule
from lowrank_torch._plan import Member, Place, Plan
from lowrank_torch._planner import Planner
from lowrank_torch._sharding import Sharding
from lowrank_torch._stack import Stack, is_plain
from lowrank_torch._tuning import CPU_STACK, DEVICE_STACK, SMALL_STACK


class Schedule:
    """The stacks of a step, small matrices of one shape together, and what gets AdamW.

    It knows parameters and their states by their places alone, so that it keeps none of them alive.

    Parameters
    ----------
    key
        What it depends on: groups, configurations, parameters, states, how much their step counts differ, and kinds of
        gradients. A schedule holds for every step whose key is equal.
    rule
        The rule that steps matrices.
    """

    def __init__(self, key: list[Any], rule: Rule) -> None:
        self.key, self._rule = key, rule
        self._stacks: list[tuple[Stack, list[Place]]] = []
        #: How many of the stacks one thread can step while others step others.
        self.small = 0
        #: What gets AdamW: by group and by how it is shared out.
        self.adamw: list[tuple[Mapping[str, Any], list[Place], Sharding | None]] = []
        #: Whether any parameter lies on several ranks, or its work is shared.
        self.is_sharded = False
        # Alive, so that none of another step is in the place of one of these in memory.
        self._alive: list[Any] = []

    def add(
        self,
        members: Sequence[tuple[Member, Plan]],
        group: Mapping[str, Any],
        config: Any,
        planner: Planner,
    ) -> None:
        """Add the members of a group, which have state."""
        self._alive += [group, config]
        adamw: dict[Sharding | None, list[Place]] = {}
        matrices = []
        for member, plan in members:
            if plan.sharding is not None:
                self.is_sharded = True
            if plan.uses_adamw:
                adamw.setdefault(plan.sharding, []).append(member.place)
            else:
                matrices.append((member, plan))
        for sharding, places in adamw.items():
            self.adamw.append((group, places, sharding))
        for plan, own in grouped(matrices, group, config, self._rule):
            parameter, held = own[0].parameter, _held_bytes(own, plan.sharding)
            small = is_plain(parameter) and len(own) * parameter.numel() <= SMALL_STACK
            bound = planner.bound(plan, config, parameter.device)
            has_kernels = planner.ops.may_have_row_kernels(parameter)
            by_rows = has_kernels and self._rule.passes is not None
            stack = Stack((), plan, bound, self._rule, group, small, by_rows, held, set())
            self._stacks.append((stack, [member.place for member in own]))
            self.small += small

    def stacks_of(self, members: Mapping[Place, Member]) -> Iterator[Stack]:
        """Yield the stacks, made of these members."""
        for stack, places in self._stacks:
            yield stack._replace(members=[*map(members.__getitem__, places)])


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
        if isinstance(step, Tensor):
            # Whether two counts of a device are equal the host cannot see.
            stacks.append((plan, [member]))
            continue
        given: Any = parameter.grad if member.projected is None else member.projected[0]
        kind = parameter.dtype, given.dtype, parameter.device, member.projected is None
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


def _held_bytes(members: Sequence[Member], sharding: Sharding | None) -> int:
    """Return about how many bytes a step of ``members`` holds while it waits for other ranks."""
    if sharding is None or not sharding.reduce_dims:
        return 0
    # Coefficients and whatever was copied of the gradient, in float32.
    return 8 * len(members) * members[0].parameter.numel() // sharding.num_shards


def _most(parameter: Tensor, plan: Plan, group: Mapping[str, Any], config: Any) -> int:
    """Return the number of parameters like this one that are stacked at most."""
    # Narrow state is rounded at random by the place of each number, which in a stack would be another one.
    if not group["foreach"] or config.state_dtype in ("bfloat16", "float16"):
        return 1
    numbers = CPU_STACK if parameter.device.type == "cpu" else DEVICE_STACK
    shards = 1 if plan.sharding is None else plan.sharding.num_shards
    return numbers * shards // max(1, parameter.numel())
