"""Coefficients that are never kept: a pass over the rows of matrices makes them anew for every question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic

from lowrank_core._typing import A


@dataclass(frozen=True)
class PassedRows(Generic[A]):
    """Rows of matrices ``(..., m, n)`` that have passed over them `StandardOps.dct_sums` and `StandardOps.dct_columns`.

    Several matrices are answered for as one stack of them.
    """

    #: The gradient of each.
    gradients: Sequence[A]
    #: What is added to each before it is transformed, or ``None``.
    added: Sequence[A | None]
    #: Operations of the array library.
    ops: Any

    def sums(self, norms: Sequence[str]) -> A:
        """Return the sums over the columns of the coefficients, for each norm: ``(norms, ..., n)``."""
        pairs = zip(self.gradients, self.added, strict=True)
        own = [self.ops.dct_sums(x, norms=norms, plus=plus) for x, plus in pairs]
        return self._together(own, 1)

    def take(self, indices: A) -> A:
        """Return the columns ``indices`` ``(..., r)`` of the coefficients, ``(..., m, r)``."""
        places: Sequence[Any] = [indices] if len(self.gradients) == 1 else indices  # type: ignore[assignment]
        triples = zip(self.gradients, places, self.added, strict=True)
        own = [self.ops.dct_columns(x, place, plus=plus) for x, place, plus in triples]
        return self._together(own, 0)

    def _together(self, own: Sequence[A], axis: int) -> A:
        stack: A = own[0] if len(own) == 1 else self.ops.xp.stack(own, axis=axis)
        return stack
