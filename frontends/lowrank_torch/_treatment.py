"""How one parameter is stepped, as an optimizer reports it."""

from __future__ import annotations

from typing import NamedTuple


class Treatment(NamedTuple):
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
