"""A second moment kept as its means over rows and over columns, ``m + n`` numbers instead of ``m n``.

With ``p_i`` the running mean square of row ``i`` of the coefficients and ``c_j`` that of column ``j``, over all ``n``
columns, chosen or not, the second moment of coefficient ``ij`` is taken to be ``p_i c_j / mean(c)``: of all matrices of
rank one the one with these means.

References
----------
N. Shazeer and M. Stern, "Adafactor: adaptive learning rates with sublinear memory cost", arXiv 1804.04235, section 3.
"""

from __future__ import annotations

from typing import NamedTuple

from lowrank_core._typing import Array, Scalar
from lowrank_core.layout import on_axis
from lowrank_core.ops.standard import Ops
from lowrank_core.subspace.empty import infinite_where, is_rounding


class Roots(NamedTuple):
    """Roots of a factored second moment: that of coefficient ``ij`` is the product of two, in the gradient's units."""

    #: ``sqrt(p)``, ``(..., m, 1)`` (axis -1) or ``(..., 1, n)`` (axis -2).
    rows: Array
    #: ``sqrt(c / mean(c))``, ``(..., size)``, dimensionless.
    columns: Array

    def of_all(self, eps: Scalar, axis: int, ops: Ops) -> Array:
        """Return the roots for all coefficients plus ``eps``; infinite in columns of nothing but rounding."""
        rounding = is_rounding(self.columns, ops)
        added = on_axis(infinite_where(rounding, eps, self.columns, ops), axis)
        full: Array = self.rows * on_axis(self.columns, axis)
        # In its own memory, where arrays can be written to.
        full += added
        return full

    def of_columns(self, indices: Array, axis: int, ops: Ops) -> Array:
        """Return the roots for the columns ``indices`` ``(..., r)``."""
        chosen: Array = self.rows * on_axis(ops.take_along(self.columns, indices), axis)
        return chosen


def row_squares(x: Array, axis: int, ops: Ops) -> Array:
    """Return the sum of squares of every row (axis -1) or column (axis -2), ``axis`` kept with length one.

    Of a matrix or of its coefficients in an orthonormal basis: it is the same.
    """
    sums = ops.column_sums(x, axis=-3 - axis, norm="l2")
    kept: Array = sums[..., None] if axis == -1 else sums[..., None, :]
    return kept


def factored_roots(row_energy: Array, energy: Array, ops: Ops) -> Roots:
    """Return the roots of the second moment with these mean squares of rows and of columns."""
    return Roots(ops.xp.sqrt(row_energy), column_shares(energy, ops))


def column_shares(energy: Array, ops: Ops) -> Array:
    """Return ``sqrt(c / mean(c))`` of mean squares ``c`` of columns, ``(..., size)``, dimensionless."""
    xp = ops.xp
    mean = xp.mean(energy, axis=-1, keepdims=True)
    # A gradient of zeros has no share to divide.
    shares: Array = xp.sqrt(energy / xp.where(mean > 0, mean, xp.ones_like(mean)))
    return shares
