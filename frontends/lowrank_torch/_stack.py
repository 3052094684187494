"""What is stepped together: parameters of one plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import Parameter

from lowrank_core.rules.rule import Rule
from lowrank_torch._plan import BoundMatrices, Member, Plan


class Stack(NamedTuple):
    """Parameters of one plan, stepped together: each one's matrices, stacked."""

    members: Sequence[Member]
    plan: Plan
    #: Each stack of matrices of the plan, bound.
    matrices: Sequence[BoundMatrices]
    rule: Rule
    #: The options of their group.
    group: Mapping[str, Any]
    #: Whether one thread can step it while others step others.
    is_small: bool
    #: Whether it may be stepped by kernels that take whole rows: the rule has such a step, and the device kernels.
    by_rows: bool
    #: About how many bytes a step holds while it waits for other ranks, the same number on every rank.
    held_bytes: int
    #: The stacks of matrices, by number, that are known to have columns chosen for every matrix.
    decided: set[int]


def is_plain(parameter: Tensor) -> bool:
    """Return whether other threads can work on a parameter: it has memory of its own, on the CPU."""
    return parameter.device.type == "cpu" and type(parameter) in (Tensor, Parameter)
