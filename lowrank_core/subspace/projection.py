"""Down to the chosen columns of a basis and back up again."""

from __future__ import annotations

from lowrank_core._checks import check_choice, check_integer, check_matrix, check_matrix_axis
from lowrank_core._typing import Array
from lowrank_core.bases.basis import Basis
from lowrank_core.bases.registry import get_basis
from lowrank_core.ops.axes import apply_matrix, apply_transpose
from lowrank_core.ops.crossovers import METHODS
from lowrank_core.ops.precision import to_compute
from lowrank_core.ops.registry import ops_for
from lowrank_core.ops.standard import Ops
from lowrank_core.subspace.indices import check_indices


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
        ``(..., r)`` integers, ascending: the chosen basis vectors of each matrix; ``(r,)`` are those of all.
    axis
        The transformed axis, one of the last two.
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
    check_matrix("matrix", matrix, ops.xp)
    axis = check_matrix_axis(axis, matrix.ndim)
    check_choice("method", method, METHODS)
    chosen, size = get_basis(basis), matrix.shape[axis]
    chosen.check_size(size)
    check_indices("indices", indices, matrix.shape[:-2], size, ops)
    x = to_compute(matrix, ops)
    vectors = chosen.columns_if_faster(indices, size, x.dtype, method, ops)
    low_rank = project_on(x, indices, vectors, chosen, axis, ops)
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
        ``(..., r)`` integers, ascending: the chosen basis vectors of each matrix; ``(r,)`` are those of all.
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
    check_matrix("low_rank", low_rank, ops.xp)
    axis = check_matrix_axis(axis, low_rank.ndim)
    check_choice("method", method, METHODS)
    size = check_integer("size", size, low=1)
    chosen = get_basis(basis)
    chosen.check_size(size)
    check_indices("indices", indices, low_rank.shape[:-2], size, ops)
    if indices.shape[-1] != low_rank.shape[axis]:
        raise ValueError(
            f"indices must be one for each of the {low_rank.shape[axis]} coefficients along axis {axis}, got shape "
            f"{tuple(indices.shape)}"
        )
    x = to_compute(low_rank, ops)
    vectors = chosen.columns_if_faster(indices, size, x.dtype, method, ops)
    if vectors is not None:
        full = apply_transpose(x, vectors, axis, ops.xp)
    else:
        full = chosen.put_inverse(x, indices, size, ops, axis, "fft")
    return ops.astype(full, low_rank.dtype)


def project_on(
    x: Array, indices: Array, vectors: Array | None, basis: Basis, axis: int, ops: Ops
) -> Array:
    """Return the coefficients of ``x`` on the basis vectors ``indices``.

    By a product with these ``vectors`` ``(..., size, r)`` where given (see `Basis.columns_if_faster`), else by a fast
    transform of the whole.
    """
    if vectors is not None:
        return apply_matrix(x, vectors, axis, ops.xp)
    return basis.take_transform(x, indices, ops, axis=axis, method="fft")
