"""The two kinds of subspace a gradient is projected on: columns of a fixed basis, and stored singular vectors.

Both answer the same questions: which subspace is next, what are the moments in its coordinates, and what is the
gradient there.
"""

from __future__ import annotations

from typing import NamedTuple

from lowrank_core._typing import Array, Scalar
from lowrank_core.adam import decayed_weight
from lowrank_core.layout import on_axis
from lowrank_core.ops import Ops
from lowrank_core.random import make_key, normal

#: Bases that are not fixed: their vectors are computed from the gradient and are state.
STORED_BASES = ("svd", "power")


class Moments(NamedTuple):
    """Adam's moments in the coordinates of a subspace."""

    #: ``(..., m, r)`` (axis -1) or ``(..., r, n)`` (axis -2).
    first: Array
    #: The same.
    second: Array
    #: ``(..., r)`` int32, or ``None``: steps each coordinate has been there for.
    ages: Array | None


def carry_moments(
    moments: Moments,
    match: tuple[Array, Array],
    ops: Ops,
    *,
    axis: int,
    newcomers: Array | None = None,
) -> Moments:
    """Return the moments of other columns of a basis: kept, or at their start, by ``match`` (see `StandardOps.match`).

    A newcomer's moments start at zero, its second moment at its entry of ``newcomers`` ``(..., r)`` where given. The
    columns that a state begins with are newcomers too: their age is zero.
    """
    position, stayed = match
    first = ops.take_kept(moments.first, position, stayed, axis=axis)
    second = ops.take_kept(moments.second, position, stayed, axis=axis)
    ages = moments.ages
    if ages is not None:
        carried = ops.pick(ages, position)
        ages = ops.xp.where(stayed, carried, ops.xp.zeros_like(carried))
        if newcomers is not None:
            start = ops.xp.where(ages > 0, ops.xp.zeros_like(newcomers), newcomers)
            second = second + on_axis(start, axis)
    return Moments(first, second, ages)


def leading_vectors(matrix: Array, rank: int, ops: Ops, *, axis: int) -> Array:
    """Return the ``rank`` leading singular vectors ``(..., size, r)`` of the transformed side of ``matrix``.

    What is not finite counts as zero: no SVD converges on it, and the step it belongs to is lost anyway.
    """
    xp = ops.xp
    matrix = xp.where(xp.isfinite(matrix), matrix, xp.zeros_like(matrix))
    left, _, right = xp.linalg.svd(matrix, full_matrices=False)
    if axis == -1:
        return xp.matrix_transpose(right[..., :rank, :])
    return left[..., :rank]


def iterated_vectors(matrix: Array, vectors: Array, ops: Ops, *, axis: int) -> Array:
    """Return orthonormal vectors ``(..., size, r)`` after one step of block power iteration from ``vectors``.

    References
    ----------
    T. Vogels, S. P. Karimireddy, M. Jaggi, "PowerSGD", arXiv 1905.13727; T. Robert et al., "LDAdam", arXiv 2410.16103.
    """
    xp = ops.xp
    matrix = xp.where(xp.isfinite(matrix), matrix, xp.zeros_like(matrix))
    # The product is of second order in the gradient: of small or large ones it would leave float32's range.
    largest = xp.max(xp.abs(matrix), axis=(-2, -1))[..., None, None]
    matrix = matrix / xp.where(largest > 0, largest, xp.ones_like(largest))
    rows = matrix if axis == -1 else xp.matrix_transpose(matrix)
    product = xp.matrix_transpose(rows) @ (rows @ vectors)
    # A gradient of zeros has no directions to offer: the old ones are kept.
    empty = xp.sum(product * product, axis=(-2, -1))[..., None, None] == 0
    orthonormal, _ = xp.linalg.qr(xp.where(empty, vectors, product))
    return orthonormal


def starting_vectors(shape: tuple[int, ...], seed: int, ops: Ops, like: Array) -> Array:
    """Return random orthonormal vectors ``(..., size, r)`` to start a power iteration from."""
    *batch, size, rank = shape
    key = make_key(seed, 0, (*batch, size), ops, ops.device_of(like))
    gaussian = ops.xp.reshape(normal(key, rank, ops, like), shape)
    return ops.xp.linalg.qr(gaussian)[0]


def rotate_moments(
    moments: Moments,
    previous: Array,
    current: Array,
    betas: tuple[Scalar, Scalar],
    count: Scalar,
    ops: Ops,
    *,
    axis: int,
) -> Moments:
    """Return the moments, after ``count`` steps, in the coordinates of other vectors ``(..., size, r)``.

    With ``R = Q_prev^T Q_current`` the first moment becomes ``m R``. The second moment of rotated coordinates is
    estimated from the variances, ``v <- (1 - b2^t) |(v_hat - m_hat^2) (R*R) + (m_hat R)^2|``, as in LDAdam
    (T. Robert et al., arXiv 2410.16103).
    """
    xp = ops.xp
    rotation = xp.matrix_transpose(previous) @ current
    weights = [decayed_weight(beta, count, ops, moments.first) for beta in betas]
    # Before the first step the moments are zero and so are their weights; to any other weight this adds nothing.
    first, second = moments.first / (weights[0] + 1e-37), moments.second / (weights[1] + 1e-37)
    variance = ops.apply_matrix(second - first * first, rotation * rotation, axis=axis)
    rotated = ops.apply_matrix(first, rotation, axis=axis)
    second = xp.abs(variance + rotated * rotated) * weights[1]
    return Moments(rotated * weights[0], second, None)
