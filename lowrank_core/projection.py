"""Down to the chosen columns of a basis and back up again."""

from __future__ import annotations

from lowrank_core._checks import check_axis, check_choice, check_integer, check_matrix
from lowrank_core._typing import Array
from lowrank_core.bases import Basis, get_basis
from lowrank_core.ops import METHODS, Ops, ops_for


def project(
    matrix: Array, indices: Array, /, *, axis: int = -1, basis: str = "dct", method: str = "auto"
) -> Array:
    """Return the coefficients of ``matrix`` on the chosen basis vectors.

    ``G Q_I`` along axis -1, ``Q_I^T G`` along axis -2.

    Parameters
    ----------
    matrix
        ``(..., m, n)``, real floating-point. Leading dimensions are a batch.
    indices
        ``(..., r)`` integers: the chosen basis vectors of each matrix, no index twice.
    axis
        The transformed axis, -1 or -2.
    basis
        Name of a fixed basis.
    method
        ``"matmul"`` multiplies by the ``r`` vectors, ``"fft"`` transforms the whole and takes ``r`` of its
        columns, ``"auto"`` takes the cheaper way. A choice of speed alone.

    Returns
    -------
    Array
        ``(..., m, r)`` (axis -1) or ``(..., r, n)`` (axis -2), in the dtype of ``matrix``.

    Raises
    ------
    TypeError, ValueError
        If an argument is none of the above.
    """
    ops = ops_for(matrix)
    _check(matrix, "matrix", axis, method, ops)
    chosen = get_basis(basis)
    chosen.check_size(matrix.shape[axis])
    low_rank = project_onto(ops.to_compute(matrix), indices, chosen, ops, axis=axis, method=method)
    return ops.astype(low_rank, matrix.dtype)


def lift(
    low_rank: Array,
    indices: Array,
    /,
    size: int,
    *,
    axis: int = -1,
    basis: str = "dct",
    method: str = "auto",
) -> Array:
    """Return the full matrix whose coefficients on the chosen basis vectors are ``low_rank``, others zero.

    ``g Q_I^T`` along axis -1, ``Q_I g`` along axis -2: the transpose of :func:`project`, and its inverse on
    the chosen subspace.

    Parameters
    ----------
    low_rank
        ``(..., m, r)`` (axis -1) or ``(..., r, n)`` (axis -2), real floating-point.
    indices
        ``(..., r)`` integers: the chosen basis vectors of each matrix, no index twice.
    size
        Length of the transformed axis of the result.
    axis, basis
        As in :func:`project`.
    method
        ``"matmul"`` multiplies by the ``r`` vectors, ``"fft"`` puts the columns in their places and
        transforms back, at a cost that does not depend on ``r``; ``"auto"`` takes the cheaper way.

    Returns
    -------
    Array
        ``(..., m, size)`` or ``(..., size, n)``, in the dtype of ``low_rank``.

    Raises
    ------
    TypeError, ValueError
        If an argument is none of the above.
    """
    ops = ops_for(low_rank)
    _check(low_rank, "low_rank", axis, method, ops)
    check_integer("size", size, low=1)
    chosen = get_basis(basis)
    chosen.check_size(size)
    full = lift_from(ops.to_compute(low_rank), indices, size, chosen, ops, axis=axis, method=method)
    return ops.astype(full, low_rank.dtype)


def project_onto(
    matrix: Array, indices: Array, basis: Basis, ops: Ops, *, axis: int, method: str
) -> Array:
    """Return what :func:`project` returns, unchecked and in a compute dtype."""
    size = matrix.shape[axis]
    if ops.use_product(indices.shape[-1], size, method):
        columns = basis.columns(indices, size, matrix, ops)
        return ops.apply_matrix(matrix, columns, axis=axis)
    return ops.take(basis.transform(matrix, ops, axis=axis, method=method), indices, axis=axis)


def lift_from(
    low_rank: Array,
    indices: Array,
    size: int,
    basis: Basis,
    ops: Ops,
    *,
    axis: int,
    method: str,
) -> Array:
    """Return what :func:`lift` returns, unchecked and in a compute dtype."""
    if ops.use_product(indices.shape[-1], size, method):
        columns = basis.columns(indices, size, low_rank, ops)
        return ops.apply_matrix(low_rank, ops.xp.matrix_transpose(columns), axis=axis)
    coefficients = ops.put(low_rank, indices, size, axis=axis)
    return basis.inverse(coefficients, ops, axis=axis, method=method)


def _check(x: Array, name: str, axis: int, method: str, ops: Ops) -> None:
    check_matrix(name, x, ops.xp)
    check_axis(axis)
    check_choice("method", method, METHODS)
