"""Down to the chosen columns of a basis and back up again."""

from __future__ import annotations

from lowrank_core._checks import check_axis, check_choice, check_integer, check_matrix
from lowrank_core._typing import Array
from lowrank_core.bases import get_basis
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
    low_rank = chosen.project(ops.to_compute(matrix), indices, ops, axis=axis, method=method)
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
    full = chosen.lift(ops.to_compute(low_rank), indices, size, ops, axis=axis, method=method)
    return ops.astype(full, low_rank.dtype)


def _check(x: Array, name: str, axis: int, method: str, ops: Ops) -> None:
    check_matrix(name, x, ops.xp)
    check_axis(axis)
    check_choice("method", method, METHODS)
