"""How one parameter is stepped, as an optimizer reports it."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lowrank_core import state_bytes
from lowrank_torch._plan import Plan


class ParameterSummary(NamedTuple):
    """How one parameter is stepped, a row of an optimizer's ``summary()``."""

    #: The parameter's name, or its place among the groups.
    name: str
    #: Its shape.
    shape: tuple[int, ...]
    #: ``"dct_adamw"``, ``"trion"`` or ``"adamw"``.
    algorithm: str
    #: Basis vectors kept; ``None`` for ``"adamw"``.
    rank: int | None
    #: The transformed axis of the parameter as a matrix, -1 or -2; ``None`` for ``"adamw"``.
    axis: int | None
    #: Bytes of its optimizer state.
    state_bytes: int
    #: Why, where a parameter of a low-rank group gets ``"adamw"``; empty otherwise.
    reason: str


def summarize(
    parameter: Tensor, plan: Plan, config: Any, algorithm: str, name: str
) -> ParameterSummary:
    """Return how a parameter is stepped by its plan."""
    shape = tuple(parameter.shape)
    dtype = "float64" if parameter.dtype == torch.float64 else "float32"
    if plan.uses_adamw:
        size = 2 * parameter.numel() * (8 if dtype == "float64" else 4)
        return ParameterSummary(name, shape, "adamw", None, None, size, plan.reason)
    fitted = [plan.fitted(config, number) for number in range(len(plan.matrices))]
    size = sum(map(partial(state_bytes, dtype=dtype), plan.matrices, fitted))
    layout = fitted[0].layout(plan.matrices[0])
    return ParameterSummary(name, shape, algorithm, layout.rank, layout.axis, size, "")
