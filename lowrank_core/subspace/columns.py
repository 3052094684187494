"""Choosing the basis columns a gradient aligns with, and moving moments to a new choice."""

from __future__ import annotations

from typing import Any, get_args

from lowrank_core._checks import (
    check_choice,
    check_floating,
    check_integer,
    check_matrix,
    check_matrix_axis,
)
from lowrank_core._typing import Array, Scalar
from lowrank_core.numerics.random import fold, uniform
from lowrank_core.numerics.scaling import scaled_to_one
from lowrank_core.ops.precision import to_compute
from lowrank_core.ops.registry import ops_for
from lowrank_core.ops.standard import Ops
from lowrank_core.option_types import Score, Selection
from lowrank_core.subspace.empty import held_columns
from lowrank_core.subspace.indices import check_indices

SCORES = get_args(Score)
SELECTIONS = get_args(Selection)


def column_scores(coefficients: Array, /, *, axis: int = -1, norm: str = "l2") -> Array:
    """Return the norm of every column (axis -1) or row (axis -2) of a coefficient matrix.

    Choosing the columns with the largest l2 norm keeps the most energy any ``r`` columns of the basis can
    keep: ``||G - G Q_I Q_I^T||_F^2 <= (1 - r/n) ||G||_F^2``. For the l1 norm that bound does not hold.

    Parameters
    ----------
    coefficients
        ``(..., m, n)``, real floating-point: the transform of a gradient along ``axis``.
    axis
        The transformed axis, one of the last two.
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
    axis = check_matrix_axis(axis, coefficients.ndim)
    check_choice("norm", norm, SCORES)
    wide = to_compute(coefficients, ops)
    if norm == "l1":
        return ops.column_sums(wide, axis=axis, norm=norm)
    scaled, largest = scaled_to_one(wide, ops)
    return ops.xp.sqrt(ops.column_sums(scaled, axis=axis, norm=norm)) * largest[..., 0]


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
    ops = ops_for(scores)
    check_floating("scores", scores, ops.xp)
    rank = check_integer("rank", rank, low=1)
    if scores.ndim < 1:
        raise ValueError("scores must have at least one dimension, got a 0-d array")
    if rank > scores.shape[-1]:
        raise ValueError(
            f"rank must not exceed the number of columns, {scores.shape[-1]}, got {rank}"
        )
    return top_columns(scores, rank, ops)


def top_columns(scores: Array, rank: int, ops: Ops) -> Array:
    """Return what :func:`select_columns` returns, unchecked."""
    xp = ops.xp
    scores = xp.where(xp.isnan(scores), -xp.inf, scores)
    order = xp.argsort(scores, axis=-1, descending=True, stable=True)[..., :rank]
    return ops.astype(xp.sort(order, axis=-1), xp.int32)


def favour_current(scores: Array, current: Array, hysteresis: Scalar, step: Any, ops: Ops) -> Array:
    """Return ``scores`` with those of the ``current`` columns times one plus ``hysteresis``.

    A challenger then has to be that much better to take their place. The columns that a state begins with, before
    ``step`` 1, were never chosen and are not favoured.
    """
    held = held_columns(current, scores.shape[-1], ops)
    return scores * (1 + hysteresis * ops.astype(held & (step > 1), scores.dtype))


def perturb_scores(scores: Array, key: Array, step: int | Array, ops: Ops) -> Array:
    """Return ``log(score) + Gumbel noise``, whose largest are a sample without replacement with odds by score.

    The noise is a function of ``key`` (int32, one for each matrix) and ``step``.

    References
    ----------
    W. Kool, H. van Hoof, M. Welling, "Stochastic beams and where to find them", arXiv 1903.06059, for sampling
    without replacement by Gumbel noise; for its use on gradient subspaces, GoLore (arXiv 2410.11289) and SARA
    (arXiv 2502.05790).
    """
    xp = ops.xp
    draws = uniform(fold(key, step), scores.shape[-1], ops, scores)
    draws = xp.reshape(draws, scores.shape)
    # log of a score of zero is -inf: such a column is taken only when nothing else is left.
    tiny = xp.where(scores > 0, scores, xp.full_like(scores, 1e-37))
    return xp.where(xp.isnan(scores), scores, xp.log(tiny) - xp.log(-xp.log(draws)))


def carry_columns(moments: Array, previous: Array, current: Array, /, *, axis: int = -1) -> Array:
    """Return ``moments`` of the columns ``previous`` as moments of the columns ``current``.

    The change of coordinates is ``R = Q_prev^T Q_current``. Both are columns of one orthonormal matrix, so
    ``R`` is a partial permutation: a column that stays chosen keeps its moments exactly, a newcomer starts
    at zero. No product is formed, and non-negative moments stay non-negative.

    Parameters
    ----------
    moments
        ``(..., m, r)`` (axis -1) or ``(..., r, n)`` (axis -2).
    previous
        ``(..., r)`` integers, ascending: the columns that ``moments`` are of.
    current
        ``(..., k)`` integers, ascending: the columns to carry them to.
    axis
        The axis of ``moments`` that runs over the chosen columns, one of the last two.

    Returns
    -------
    Array
        ``(..., m, k)`` or ``(..., k, n)`` in the dtype of ``moments``.

    Raises
    ------
    TypeError, ValueError
        If an argument is none of the above.
    """
    ops = ops_for(moments)
    check_matrix("moments", moments, ops.xp)
    axis = check_matrix_axis(axis, moments.ndim)
    check_indices("previous", previous, moments.shape[:-2], None, ops)
    check_indices("current", current, moments.shape[:-2], None, ops)
    if previous.shape[-1] != moments.shape[axis]:
        raise ValueError(
            f"previous must have an index for each of the {moments.shape[axis]} columns of moments, got shape "
            f"{tuple(previous.shape)}"
        )
    position, stayed = ops.index_in(previous, current)
    return ops.take_or_zero(moments, position, stayed, axis=axis)
