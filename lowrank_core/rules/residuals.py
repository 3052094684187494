"""What becomes of the part of a gradient outside the chosen subspace.

==================  ============================================================================================
``discard``         dropped, as in GaLore (J. Zhao et al., arXiv 2403.03507)
``error_feedback``  added to the next gradient (F. Seide et al., Interspeech 2014; for low-rank Adam, LDAdam,
                    arXiv 2410.16103), in full precision or quantised
``sign``            stepped along its sign, with a rate of its own (FRUGAL, P. Zmushko et al., arXiv 2411.07837)
``scaled``          stepped along itself, each row by the ratio its low-rank part was scaled by (Fira, X. Chen et al.,
                    arXiv 2410.01623)
``normalized``      each unchosen column of coefficients stepped along itself, divided by its running root mean square
``bounded``         each unchosen coefficient stepped along itself, divided by the root of its factored second moment
                    and its own square, so that none is stepped further than the scale
==================  ============================================================================================
"""

from __future__ import annotations

from typing import get_args

from lowrank_core._typing import Array, Scalar
from lowrank_core.layout import on_axis
from lowrank_core.ops.standard import Ops
from lowrank_core.option_types import Residual
from lowrank_core.subspace.empty import infinite_where, is_rounding

RESIDUALS = get_args(Residual)

#: The share of the step's rate that the residual part moves with, unless told otherwise.
DEFAULT_SCALE = {"sign": 0.2, "scaled": 1.0, "normalized": 0.3, "bounded": 0.5}

#: A scaled residual may grow by this factor from step to step (Fira's limiter).
GROWTH_LIMIT = 1.01


def row_ratios(factor: Array, low_rank: Array, ops: Ops, *, axis: int) -> Array:
    """Return ``||u_i|| / ||a_i||`` for every row (axis -1) or column (axis -2), ``axis`` kept with length one."""
    norms = [ops.xp.sqrt(ops.xp.sum(x * x, axis=axis, keepdims=True)) for x in (factor, low_rank)]
    safe = ops.xp.where(norms[1] == 0, ops.xp.ones_like(norms[1]), norms[1])
    return ops.xp.where(norms[1] == 0, ops.xp.zeros_like(norms[0]), norms[0] / safe)


def limit_growth(previous: Array, ops: Ops, square: Array) -> tuple[Array, Array]:
    """Return what to multiply a residual by, and its norm then, at most `GROWTH_LIMIT` times the ``previous`` one.

    ``square`` ``(...)`` is the sum of squares of the residual of each matrix; a ``previous`` norm of zero, before the
    first step, limits nothing.
    """
    xp = ops.xp
    norm = xp.sqrt(square)
    limit = GROWTH_LIMIT * previous
    limited = xp.where((previous > 0) & (norm > limit), limit, norm)
    shrink = xp.where(norm > 0, limited / xp.where(norm > 0, norm, xp.ones_like(norm)), norm)
    return shrink, limited


def normalize_columns(
    coefficients: Array, mean_square: Array, scale: Scalar, eps: Scalar, ops: Ops, *, axis: int
) -> Array:
    """Return ``scale * S_j / (sqrt(c_j) + eps)`` for every column ``j`` with mean square ``c_j``, zero for rounding."""
    return coefficients * on_axis(column_factors(mean_square, scale, eps, ops), axis)


def column_factors(mean_square: Array, scale: Scalar, eps: Scalar, ops: Ops) -> Array:
    """Return ``scale / (sqrt(c_j) + eps)`` for every column ``j`` with mean square ``c_j``, zero for rounding."""
    norms = ops.xp.sqrt(mean_square)
    # Divided by itself, rounding would be of full size.
    return scale / infinite_where(is_rounding(norms, ops), norms + eps, norms, ops)
