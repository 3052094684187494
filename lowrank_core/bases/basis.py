"""What every fixed orthonormal basis can do: transform, project on some of its vectors, and go back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from lowrank_core._typing import Array, Device, DType, Namespace
from lowrank_core.ops.axes import apply_matrix, apply_transpose
from lowrank_core.ops.crossovers import Crossovers, device_key, measured
from lowrank_core.ops.standard import Coefficients, Ops, scored


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

    def matrix(self, size: int, dtype: DType, device: Device, ops: Ops) -> Array:
        """Return the shared ``(size, size)`` matrix."""
        xp = ops.xp
        return ops.constant(
            (self.name, size, xp.__name__, str(dtype), str(device)),
            lambda: self.build(size, xp=xp, dtype=dtype, device=device),
        )

    def transform(self, x: Array, ops: Ops, *, axis: int, method: str = "auto") -> Array:
        """Return the coefficients of ``x`` along ``axis``: ``x @ Q`` or ``Q.T @ x``."""
        size, device = x.shape[axis], ops.device_of(x)
        if not self.by_matrix(size, method, device, ops):
            return self.fast_transform(x, ops, axis=axis)
        return apply_matrix(x, self.matrix(size, x.dtype, device, ops), axis, ops.xp)

    def inverse(self, x: Array, ops: Ops, *, axis: int, method: str = "auto") -> Array:
        """Return the matrices with coefficients ``x`` along ``axis``: ``x @ Q.T`` or ``Q @ x``."""
        size, device = x.shape[axis], ops.device_of(x)
        if not self.by_matrix(size, method, device, ops):
            return self.fast_inverse(x, ops, axis=axis)
        return apply_transpose(x, self.matrix(size, x.dtype, device, ops), axis, ops.xp)

    def by_matrix(self, size: int, method: str, device: Device, ops: Ops) -> bool:
        """Return whether :meth:`transform` is a product with the whole matrix."""
        if method == "auto":
            return not self.fast or crossovers_on(device, ops).by_matrix(size)
        return not self.fast or method == "matmul"

    def by_columns(self, rank: int, size: int, method: str, device: Device, ops: Ops) -> bool:
        """Return whether a product with ``rank`` basis vectors is faster than a transform."""
        if method == "auto":
            return crossovers_on(device, ops).by_columns(rank, size)
        return method == "matmul"

    def fast_transform(self, x: Array, ops: Ops, *, axis: int) -> Array:
        """Return what :meth:`transform` returns without the matrix."""
        raise NotImplementedError

    def fast_inverse(self, x: Array, ops: Ops, *, axis: int) -> Array:
        """Return what :meth:`inverse` returns without the matrix."""
        raise NotImplementedError

    def transform_scored(
        self, x: Array, ops: Ops, *, axis: int, method: str, norms: Sequence[str]
    ) -> Coefficients[Array]:
        """Return :meth:`transform` of ``x`` with the sums over its columns, in whatever layout comes cheapest."""
        return scored(self.transform(x, ops, axis=axis, method=method), axis, norms, ops)

    def columns(self, indices: Array, size: int, dtype: DType, ops: Ops) -> Array:
        """Return the basis vectors ``(..., size, r)`` of ``indices`` ``(..., r)``."""
        matrix = self.matrix(size, dtype, ops.device_of(indices), ops)
        stacked = ops.xp.broadcast_to(matrix, (*indices.shape[:-1], size, size))
        return ops.take(stacked, indices, axis=-1)

    def columns_if_faster(
        self, indices: Array, size: int, dtype: DType, method: str, ops: Ops
    ) -> Array | None:
        """Return :meth:`columns` where a product with them is faster than a transform, else ``None``."""
        rank, device = indices.shape[-1], ops.device_of(indices)
        if not self.by_columns(rank, size, method, device, ops):
            return None
        return self.columns(indices, size, dtype, ops)

    def take_transform(
        self, x: Array, indices: Array, ops: Ops, *, axis: int, method: str
    ) -> Array:
        """Return the columns ``indices`` of :meth:`transform` of ``x``, as a new array."""
        seen = self.transform_scored(x, ops, axis=axis, method=method, norms=())
        return seen.take(indices)

    def put_inverse(
        self, x: Array, indices: Array, size: int, ops: Ops, axis: int, method: str
    ) -> Array:
        """Return :meth:`inverse` of coefficients ``x`` at ``indices``, none on the other basis vectors."""
        return self.inverse(ops.put(x, indices, size, axis=axis), ops, axis=axis, method=method)


def crossovers_on(device: Device, ops: Ops) -> Crossovers:
    """Return which way to transform is the faster on a device."""
    if not measured:
        return ops.crossovers
    return measured.get(device_key(ops.xp, device), ops.crossovers)
