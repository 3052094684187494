"""Subspaces of stored vectors: singular vectors as in GaLore, power iteration as in LDAdam.

Unlike columns of a fixed basis they are computed from the gradient, are kept as state, and need moments to be rotated.
"""

from __future__ import annotations

from lowrank_core._typing import Array, Scalar
from lowrank_core.numerics.random import make_key, normal
from lowrank_core.numerics.scaling import scaled_to_one
from lowrank_core.ops.axes import apply_matrix
from lowrank_core.ops.standard import Ops
from lowrank_core.subspace.moments import Moments


def leading_vectors(matrix: Array, rank: int, ops: Ops, *, axis: int) -> tuple[Array, Array]:
    """Return the ``rank`` leading singular vectors ``(..., size, r)`` of the transformed side of ``matrix``.

    And which matrices ``(...)`` are zero, and have no directions to offer.
    What is not finite counts as zero: no SVD converges on it, and the step it belongs to is lost anyway.
    """
    xp = ops.xp
    matrix = xp.where(xp.isfinite(matrix), matrix, xp.zeros_like(matrix))
    left, values, right = xp.linalg.svd(matrix, full_matrices=False)
    leading = xp.matrix_transpose(right[..., :rank, :]) if axis == -1 else left[..., :rank]
    return leading, values[..., 0] == 0


def iterated_vectors(matrix: Array, vectors: Array, ops: Ops, *, axis: int) -> tuple[Array, Array]:
    """Return orthonormal vectors ``(..., size, r)`` after one step of block power iteration from ``vectors``.

    And which matrices ``(...)`` are zero, and have no directions to offer.

    References
    ----------
    T. Vogels, S. P. Karimireddy, M. Jaggi, "PowerSGD", arXiv 1905.13727; T. Robert et al., "LDAdam", arXiv 2410.16103.
    """
    xp = ops.xp
    matrix = xp.where(xp.isfinite(matrix), matrix, xp.zeros_like(matrix))
    # The product is of second order in the gradient.
    matrix, _ = scaled_to_one(matrix, ops)
    rows = matrix if axis == -1 else xp.matrix_transpose(matrix)
    product = xp.matrix_transpose(rows) @ (rows @ vectors)
    empty = xp.sum(product * product, axis=(-2, -1)) == 0
    orthonormal, _ = xp.linalg.qr(xp.where(empty[..., None, None], vectors, product))
    return orthonormal, empty


def starting_vectors(shape: tuple[int, ...], seed: int, ops: Ops, like: Array) -> Array:
    """Return random orthonormal vectors ``(..., size, r)`` to start a power iteration from."""
    *batch, size, rank = shape
    key = make_key(seed, 0, (*batch, size), ops, ops.device_of(like))
    gaussian = ops.xp.reshape(normal(key, rank, ops, like), shape)
    return ops.xp.linalg.qr(gaussian)[0]


def rotate_moments(
    moments: Moments, rotation: Array, weights: tuple[Scalar, Scalar], axis: int, ops: Ops
) -> Moments:
    """Return the moments in the coordinates of other vectors, ``rotation = Q_prev^T Q_current`` ``(..., r, r)``.

    The first moment becomes ``m R``. The second moment of rotated coordinates is estimated from the variances,
    ``v <- (1 - b2^t) |(v_hat - m_hat^2) (R*R) + (m_hat R)^2|``, as in LDAdam (T. Robert et al., arXiv 2410.16103).
    ``weights`` are ``1 - b1^t`` and ``1 - b2^t`` after the ``t`` steps that the moments have seen.
    """
    xp = ops.xp
    # Before the first step the moments are zero and so are their weights; to any other weight this adds nothing.
    first, second = moments.first / (weights[0] + 1e-37), moments.second / (weights[1] + 1e-37)
    variance = apply_matrix(second - first * first, rotation * rotation, axis, xp)
    rotated = apply_matrix(first, rotation, axis, xp)
    second = xp.abs(variance + rotated * rotated) * weights[1]
    # Of gradients whose squares are infinite, differences are not numbers. As in Adam such coordinates stand still.
    second = xp.where(xp.isnan(second), xp.inf, second)
    return Moments(rotated * weights[0], second, None)
