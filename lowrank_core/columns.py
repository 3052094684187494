"""Choosing the basis columns a gradient aligns with, and moving moments to a new choice."""

from __future__ import annotations

from lowrank_core._checks import check_axis, check_choice, check_integer, check_matrix
from lowrank_core._typing import Array
from lowrank_core.ops import Ops, ops_for

SCORES = ("l1", "l2")


def column_scores(coefficients: Array, /, *, axis: int = -1, norm: str = "l2") -> Array:
    """Return the norm of every column (axis -1) or row (axis -2) of a coefficient matrix.

    Choosing the columns with the largest l2 norm keeps the most energy any ``r`` columns of the basis can
    keep: ``||G - G Q_I Q_I^T||_F^2 <= (1 - r/n) ||G||_F^2``. For the l1 norm that bound does not hold.

    Parameters
    ----------
    coefficients
        ``(..., m, n)``, real floating-point: the transform of a gradient along ``axis``.
    axis
        The transformed axis, -1 or -2.
    norm
        ``"l2"`` or ``"l1"``.

    Returns
    -------
    Array
        ``(..., n)`` (axis -1) or ``(..., m)`` (axis -2), float32 (float64 for float64), in the units of the
        coefficients.

    Raises
    ------
    TypeError, ValueError
        If an argument is none of the above.
    """
    ops = ops_for(coefficients)
    check_matrix("coefficients", coefficients, ops.xp)
    check_axis(axis)
    check_choice("norm", norm, SCORES)
    totals = score_sums(ops.to_compute(coefficients), axis, norm, ops)
    return ops.xp.sqrt(totals) if norm == "l2" else totals


def score_sums(coefficients: Array, axis: int, norm: str, ops: Ops) -> Array:
    """Return sums of squares (l2) or of magnitudes (l1) over all shards: what scores are made of."""
    return ops.sum_shards(ops.column_sums(coefficients, axis=axis, squares=norm == "l2"))


def select_columns(scores: Array, /, rank: int) -> Array:
    """Return the indices of the ``rank`` largest scores, ascending; of equal scores the lower index wins.

    Ascending order and the rule for ties make the choice, and with it a whole run, independent of how a
    library sorts. A NaN ranks below every number.

    Parameters
    ----------
    scores
        ``(..., n)``, real floating-point.
    rank
        How many to choose, ``1 <= rank <= n``.

    Returns
    -------
    Array
        ``(..., rank)`` int32, ascending along the last axis.

    Raises
    ------
    TypeError, ValueError
        If ``rank`` is not an integer in that range.
    """
    check_integer("rank", rank, low=1)
    if rank > scores.shape[-1]:
        raise ValueError(
            f"rank must not exceed the number of columns, {scores.shape[-1]}, got {rank}"
        )
    return top_columns(scores, rank, ops_for(scores))


def top_columns(scores: Array, rank: int, ops: Ops) -> Array:
    """Return what :func:`select_columns` returns, unchecked."""
    xp = ops.xp
    return ops.top_k(xp.where(xp.isnan(scores), -xp.inf, scores), rank)


def carry_columns(moments: Array, previous: Array, current: Array, /, *, axis: int = -1) -> Array:
    """Return ``moments`` of the columns ``previous`` as moments of the columns ``current``.

    The change of coordinates is ``R = Q_prev^T Q_current``. Both are columns of one orthonormal matrix, so
    ``R`` is a partial permutation: a column that stays chosen keeps its moments exactly, a newcomer starts
    at zero. No product is formed, and non-negative moments stay non-negative.

    Parameters
    ----------
    moments
        ``(..., m, r)`` (axis -1) or ``(..., r, n)`` (axis -2).
    previous, current
        ``(..., r)`` integer indices, no index twice.
    axis
        The axis of ``moments`` that runs over the chosen columns.

    Returns
    -------
    Array
        Shape and dtype of ``moments``.
    """
    check_axis(axis)
    ops = ops_for(moments)
    position, stayed = ops.match(previous, current)
    return ops.take_kept(moments, position, stayed, axis=axis)
