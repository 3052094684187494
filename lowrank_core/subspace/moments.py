"""Adam's moments of columns: their weights, their way into another choice of columns, and the columns' energy.

References
----------
D. P. Kingma and J. Ba, "Adam: a method for stochastic optimization", arXiv 1412.6980, algorithm 1.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from lowrank_core._typing import Array, Scalar
from lowrank_core.layout import on_axis
from lowrank_core.ops.standard import Ops


class Moments(NamedTuple):
    """Adam's moments in the coordinates of a subspace."""

    #: ``(..., m, r)`` (axis -1) or ``(..., r, n)`` (axis -2).
    first: Array
    #: The same; ``None`` where it is factored (see `lowrank_core.subspace.factored`).
    second: Any
    #: ``(..., r)`` int32, or ``None``: steps each coordinate has been there for.
    ages: Array | None


def decayed_weight(beta: Scalar, count: Scalar, ops: Ops, like: Array) -> Scalar:
    """Return ``1 - beta**count``, the total weight of a running mean after ``count`` entries, without cancellation.

    Host numbers give a host number; an array ``count`` (an age for each column, a traced step count) or an array
    ``beta`` gives an array in the dtype of ``like``.
    """
    if isinstance(beta, (int, float)) and isinstance(count, int):
        return -math.expm1(count * math.log(beta)) if beta > 0 else 1.0
    xp = ops.xp
    # A mean without memory has weight one after any entry; log(0) would make NaN of it at count 0.
    host = isinstance(beta, (int, float))
    log_beta = math.log(max(beta, 1e-30)) if host else xp.log1p(ops.as_scalar(beta, like) - 1)
    return -xp.expm1(ops.as_scalar(count, like) * log_beta)


def carry_moments(
    moments: Moments, moved: tuple[Array, Array], newcomers: Array | None, axis: int, ops: Ops
) -> Moments:
    """Return the moments of other columns of a basis: kept where a column stayed, else at their start.

    ``moved`` is what `StandardOps.index_in` says: for each column its place before, and if it has one. A newcomer's
    moments start at zero, its second moment at its entry of ``newcomers`` ``(..., r)`` where given. The columns that a
    state begins with are newcomers too: their age is zero.
    """
    position, stayed = moved
    first = ops.take_or_zero(moments.first, position, stayed, axis=axis)
    second = moments.second
    if second is not None:
        second = ops.take_or_zero(second, position, stayed, axis=axis)
    ages = moments.ages
    if ages is not None:
        carried = ops.take_along(ages, position)
        ages = ops.xp.where(stayed, carried, ops.xp.zeros_like(carried))
        if newcomers is not None:
            start = ops.xp.where(ages > 0, ops.xp.zeros_like(newcomers), newcomers)
            second = second + on_axis(start, axis)
    return Moments(first, second, ages)


def update_energy(energy: Array, squares: Array, rows: int, decay: Scalar) -> Array:
    """Return the exponential moving average of each column's mean squared coefficient, one gradient later.

    ``c <- decay c + (1 - decay) squares / rows``, where ``squares`` ``(..., n)`` are sums over ``rows`` coefficients:
    zero for none.
    """
    return energy * decay + squares * ((1 - decay) / max(rows, 1))


def mean_energy(energy: Array, decay: Scalar, count: Scalar, ops: Ops) -> Array:
    """Return the moving average after ``count`` gradients, corrected for its start at zero."""
    return energy / decayed_weight(decay, count, ops, energy)
