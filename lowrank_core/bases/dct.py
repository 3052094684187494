"""The orthonormal discrete cosine transform of rows or columns, on arrays of any library."""

from __future__ import annotations

from lowrank_core._checks import check_axis, check_choice, check_floating, check_integer
from lowrank_core._typing import Array, Device, DType, Namespace
from lowrank_core.bases.registry import get_basis
from lowrank_core.ops.crossovers import METHODS
from lowrank_core.ops.makhoul import cosine_matrix
from lowrank_core.ops.precision import as_dtype, compute_dtype, to_compute
from lowrank_core.ops.registry import ops_for, ops_for_namespace


def dct_matrix(n: int, *, xp: Namespace, dtype: DType = None, device: Device = None) -> Array:
    """Return the orthonormal DCT basis ``Q``, whose columns are the basis vectors.

    ``Q[i, j] = c_j sqrt(2/n) cos(pi j (2i + 1) / (2n))`` with ``c_0 = 1/sqrt(2)`` and 1 otherwise, ``i`` the
    sample and ``j`` the frequency. ``x @ Q`` is the DCT-II of the rows of ``x``, ``s @ Q.T`` its inverse.

    Parameters
    ----------
    n
        Size of the basis, at least 1.
    xp
        Array namespace to build it in: ``numpy``, ``torch``, ``jax.numpy``, ``cupy`` or any other that
        follows the Python array API.
    dtype
        Real floating-point dtype, an object or its name; float32 by default. Computed in float32 or float64.
    device
        Where to build it; the library's default place by default.

    Returns
    -------
    Array
        ``(n, n)``, dimensionless. In float32 ``Q.T @ Q`` differs from the identity by less than 1e-6,
        also at ``n = 4096``.

    Raises
    ------
    TypeError, ValueError
        If ``n`` is not an integer of at least 1.
    """
    n = check_integer("n", n, low=1)
    ops = ops_for_namespace(xp)
    dtype = ops.xp.float32 if dtype is None else as_dtype("dtype", dtype, ops.xp)
    matrix = cosine_matrix(n, xp=ops.xp, dtype=compute_dtype(dtype, ops.xp), device=device)
    return ops.astype(matrix, dtype)


def dct(x: Array, /, *, axis: int = -1, method: str = "auto") -> Array:
    """Return the orthonormal DCT-II of ``x`` along an axis.

    Equal to ``x @ Q`` (axis -1) or ``Q.T @ x`` (axis -2) with ``Q = dct_matrix(n)``, and to SciPy's
    ``scipy.fft.dct(x, type=2, norm="ortho", axis=axis)``.

    Parameters
    ----------
    x
        ``(..., n)`` (axis -1) or ``(..., n, k)`` (axis -2), real floating-point. All other dimensions are a
        batch. Half-precision input is computed in float32 and rounded once.
    axis
        Any axis of ``x``; the last two are transformed without a copy that moves it.
    method
        ``"matmul"`` multiplies by the basis, O(n) work an element; ``"fft"`` uses Makhoul's N-point real
        FFT, O(log n) work an element; ``"auto"`` takes the faster one. A choice of speed alone.

    Returns
    -------
    Array
        Shape and dtype of ``x``.

    Raises
    ------
    TypeError
        If ``x`` is not real floating-point.
    ValueError
        If there is no such axis or it is empty, or ``method`` is none of the above.
    """
    return _transform("transform", x, axis, method)


def idct(x: Array, /, *, axis: int = -1, method: str = "auto") -> Array:
    """Return the inverse of :func:`dct`, the orthonormal DCT-III, with the same arguments and errors."""
    return _transform("inverse", x, axis, method)


def _transform(direction: str, x: Array, axis: int, method: str) -> Array:
    ops = ops_for(x)
    xp = ops.xp
    check_floating("x", x, xp)
    axis = check_axis(axis, x.ndim)
    check_choice("method", method, METHODS)
    if x.shape[axis] < 1:
        raise ValueError(f"x must not be empty along axis {axis}, got shape {tuple(x.shape)}")
    function = getattr(get_basis("dct"), direction)
    if axis < -2:
        moved = xp.moveaxis(to_compute(x, ops), axis, -1)
        result = xp.moveaxis(function(moved, ops, axis=-1, method=method), -1, axis)
    else:
        result = function(to_compute(x, ops), ops, axis=axis, method=method)
    return ops.astype(result, x.dtype)
