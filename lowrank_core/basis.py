"""What every fixed orthonormal basis can do: transform, project on some of its vectors, and go back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from lowrank_core._typing import Array, Device, DType, Namespace
from lowrank_core.ops import Analysis, Ops


class MatrixFunction(Protocol):
    """A function that builds a basis: the columns of its result are the orthonormal basis vectors."""

    def __call__(self, size: int, /, *, xp: Namespace, dtype: DType, device: Device) -> Array:
        """Return the ``(size, size)`` basis matrix."""


class Basis:
    """A fixed orthonormal basis ``Q``, given by the function that builds its matrix.

    A subclass with a fast transform sets ``fast`` and overrides :meth:`fast_transform` and
    :meth:`fast_inverse`; one that can make single basis vectors overrides :meth:`columns`.
    """

    fast = False

    def __init__(self, name: str, build: MatrixFunction) -> None:
        self.name = name
        self.build = build

    def check_size(self, size: int) -> None:
        """Raise ``ValueError`` if the basis does not exist at ``size``."""

    def matrix(self, size: int, like: Array, ops: Ops) -> Array:
        """Return the shared ``(size, size)`` matrix in the dtype and on the device of ``like``."""
        xp, dtype, device = ops.xp, like.dtype, ops.device_of(like)
        return ops.constant(
            (self.name, size, xp.__name__, str(dtype), str(device)),
            lambda: self.build(size, xp=xp, dtype=dtype, device=device),
        )

    def transform(self, x: Array, ops: Ops, *, axis: int, method: str = "auto") -> Array:
        """Return the coefficients of ``x`` along ``axis``: ``x @ Q`` or ``Q.T @ x``."""
        size = x.shape[axis]
        if self.fast and not ops.use_matmul(size, method, ops.device_of(x)):
            return self.fast_transform(x, ops, axis=axis)
        return ops.apply_matrix(x, self.matrix(size, x, ops), axis=axis)

    def inverse(self, x: Array, ops: Ops, *, axis: int, method: str = "auto") -> Array:
        """Return the matrices with coefficients ``x`` along ``axis``: ``x @ Q.T`` or ``Q @ x``."""
        size = x.shape[axis]
        if self.fast and not ops.use_matmul(size, method, ops.device_of(x)):
            return self.fast_inverse(x, ops, axis=axis)
        transposed = ops.xp.matrix_transpose(self.matrix(size, x, ops))
        return ops.apply_matrix(x, transposed, axis=axis)

    def fast_transform(self, x: Array, ops: Ops, *, axis: int) -> Array:
        """Return what :meth:`transform` returns without the matrix."""
        raise NotImplementedError

    def fast_inverse(self, x: Array, ops: Ops, *, axis: int) -> Array:
        """Return what :meth:`inverse` returns without the matrix."""
        raise NotImplementedError

    def analyse(
        self,
        x: Array,
        ops: Ops,
        *,
        axis: int,
        method: str,
        norms: Sequence[str],
        plus: Array | None = None,
    ) -> Analysis[Array]:
        """Return what a choice of columns asks of :meth:`transform` of ``x``, or ``x + plus``: sums, then columns."""
        total = x if plus is None else ops.add(x, plus)
        coefficients = self.transform(total, ops, axis=axis, method=method)
        return ops.analysis(coefficients, axis=axis, norms=norms)

    def columns(self, indices: Array, size: int, like: Array, ops: Ops) -> Array:
        """Return the basis vectors ``(..., size, r)`` of ``indices`` ``(..., r)``."""
        matrix = self.matrix(size, like, ops)
        stacked = ops.xp.broadcast_to(matrix, (*indices.shape[:-1], size, size))
        return ops.take(stacked, indices, axis=-1)

    def project(self, x: Array, indices: Array, ops: Ops, *, axis: int, method: str) -> Array:
        """Return the coefficients of ``x`` on the basis vectors ``indices``: ``x Q_I`` or ``Q_I^T x``."""
        size = x.shape[axis]
        if ops.use_product(indices.shape[-1], size, method, ops.device_of(x)):
            return ops.apply_matrix(x, self.columns(indices, size, x, ops), axis=axis)
        seen = self.analyse(x, ops, axis=axis, method=method, norms=())
        return seen.take(indices, slice(None))

    def lift(
        self, x: Array, indices: Array, size: int, ops: Ops, *, axis: int, method: str
    ) -> Array:
        """Return the matrices with coefficients ``x`` on the basis vectors ``indices``, none on the others."""
        if ops.use_product(indices.shape[-1], size, method, ops.device_of(x)):
            columns = ops.xp.matrix_transpose(self.columns(indices, size, x, ops))
            return ops.apply_matrix(x, columns, axis=axis)
        return self.inverse(ops.put(x, indices, size, axis=axis), ops, axis=axis, method=method)
