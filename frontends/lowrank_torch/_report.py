"""How one parameter is stepped, as an optimizer reports it."""

from __future__ import annotations

import math
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


class Summary(list[ParameterSummary]):
    """A `ParameterSummary` for every parameter, in the order of the groups; as text, a table with totals."""

    @property
    def state_bytes(self) -> int:
        """Bytes of the state of all parameters."""
        return sum(row.state_bytes for row in self)

    @property
    def adamw_bytes(self) -> int:
        """Bytes of AdamW's state of the same parameters, in float32."""
        return sum(map(_adamw_bytes, self))

    def __str__(self) -> str:
        """Return the table, the bytes of state beside those of AdamW."""
        head = ("name", "shape", "algorithm", "rank", "axis", "state", "AdamW's", "")
        rows = [head, *map(_cells, self)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        numbers = sum(math.prod(row.shape) for row in self)
        state, adamw = self.state_bytes, self.adamw_bytes
        matrices = [row for row in self if row.algorithm != "adamw"]
        low_rank = sum(math.prod(row.shape) for row in matrices)
        share = f", {100 * state / adamw:.0f} % of" if adamw else ","
        count = f"{len(matrices)} of {len(self)}"
        lines += [
            f"{low_rank:,} of {numbers:,} numbers, in {count} parameters, are stepped at low rank",
            f"state {state:,} bytes{share} AdamW's {adamw:,}",
        ]
        return "\n".join(lines)


def _adamw_bytes(row: ParameterSummary) -> int:
    """Return the bytes of AdamW's two float32 moments."""
    return 8 * math.prod(row.shape)


def _cells(row: ParameterSummary) -> tuple[str, ...]:
    """Return the cells of a row of the table."""
    shape = " x ".join(map(str, row.shape)) or "scalar"
    rank, axis = ("-" if value is None else str(value) for value in (row.rank, row.axis))
    sizes = f"{row.state_bytes:,}", f"{_adamw_bytes(row):,}"
    return row.name, shape, row.algorithm, rank, axis, *sizes, row.reason


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
