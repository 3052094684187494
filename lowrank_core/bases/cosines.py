"""The cosine bases: the DCT of the whole, its transpose, and the DCT of each run of neighbours."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lowrank_core._typing import Array, Device, DType, Namespace
from lowrank_core.bases.basis import Basis
from lowrank_core.layout import cut_rows
from lowrank_core.ops.axes import apply_matrix, apply_transpose
from lowrank_core.ops.makhoul import cosine_columns, cosine_matrix, cosine_rows
from lowrank_core.ops.standard import Coefficients, Ops

# Length of the runs of the local cosine basis: a core multiplies by so small a matrix at its full speed.
_RUN = 64
# Up to this size a basis matrix (4 MiB in float32) costs less to keep than its columns to compute each time.
_KEPT_MATRIX = 1024


class Cosine(Basis):
    """The DCT-II basis: samples of cosines of rising frequency."""

    fast = True

    def __init__(self) -> None:
        super().__init__("dct", cosine_matrix)

    def fast_transform(self, x: Array, ops: Ops, *, axis: int) -> Array:
        """Return the DCT-II."""
        return ops.dct(x, axis=axis)

    def fast_inverse(self, x: Array, ops: Ops, *, axis: int) -> Array:
        """Return the DCT-III."""
        return ops.idct(x, axis=axis)

    def transform_scored(
        self, x: Array, ops: Ops, *, axis: int, method: str, norms: Sequence[str]
    ) -> Coefficients[Array]:
        """Return the DCT-II with the sums over its columns, which may spare it the order of coefficients."""
        if self.by_matrix(x.shape[axis], method, ops.device_of(x), ops):
            return super().transform_scored(x, ops, axis=axis, method=method, norms=norms)
        return ops.dct_scored(x, axis=axis, norms=norms)

    def put_inverse(
        self, x: Array, indices: Array, size: int, ops: Ops, axis: int, method: str
    ) -> Array:
        """Return the DCT-III of few coefficients, put where the transform begins."""
        return ops.idct_columns(x, indices, size, axis=axis)

    def columns(self, indices: Array, size: int, dtype: DType, ops: Ops) -> Array:
        """Return single cosines, at no cost for the others, or columns of a matrix small enough to be kept."""
        if size <= _KEPT_MATRIX:
            return super().columns(indices, size, dtype, ops)
        frequencies, device = ops.as_index(indices), ops.device_of(indices)
        return cosine_columns(frequencies, size, xp=ops.xp, dtype=dtype, device=device)


class TransposedCosine(Basis):
    """The DCT-III basis: the rows of the DCT-II matrix taken as basis vectors."""

    fast = True

    def __init__(self) -> None:
        super().__init__("dct3", _transposed_cosine_matrix)

    def fast_transform(self, x: Array, ops: Ops, *, axis: int) -> Array:
        """Return the DCT-III."""
        return ops.idct(x, axis=axis)

    def fast_inverse(self, x: Array, ops: Ops, *, axis: int) -> Array:
        """Return the DCT-II."""
        return ops.dct(x, axis=axis)

    def columns(self, indices: Array, size: int, dtype: DType, ops: Ops) -> Array:
        """Return single rows of the DCT-II matrix as columns."""
        samples, device = ops.as_index(indices), ops.device_of(indices)
        rows = cosine_rows(samples, size, xp=ops.xp, dtype=dtype, device=device)
        return ops.xp.matrix_transpose(rows)


class LocalCosine(Basis):
    """The DCT-II of each run of 64 neighbours, the last of a size that 64 does not divide being shorter.

    The matrix is block-diagonal: a transform is one product with a 64 x 64 matrix, 64 multiplications an element, on
    either axis as it lies in memory. Entry ``64 b + k`` of a choice is frequency ``k`` of run ``b``.
    """

    fast = True

    def __init__(self) -> None:
        super().__init__("local_dct", _local_cosine_matrix)

    def by_matrix(self, size: int, method: str, device: Device, ops: Ops) -> bool:
        """Return whether the whole matrix is asked for, or is that of one run."""
        return method == "matmul" or size <= _RUN

    def by_columns(self, rank: int, size: int, method: str, device: Device, ops: Ops) -> bool:
        """Return whether columns of the whole matrix are asked for: most of their numbers are zeros."""
        return method == "matmul"

    def fast_transform(self, x: Array, ops: Ops, *, axis: int) -> Array:
        """Return the DCT-II of each run."""
        return self._by_runs(apply_matrix, x, ops, axis)

    def fast_inverse(self, x: Array, ops: Ops, *, axis: int) -> Array:
        """Return the DCT-III of each run."""
        return self._by_runs(apply_transpose, x, ops, axis)

    def _by_runs(self, apply: Callable[..., Array], x: Array, ops: Ops, axis: int) -> Array:
        """Return ``apply``, a product with the matrix of one run, of every run along ``axis``."""
        xp, size = ops.xp, x.shape[axis]
        device, whole = ops.device_of(x), size - size % _RUN
        done = []
        for start, stop, length in ((0, whole, _RUN), (whole, size, size - whole)):
            if start == stop:
                continue
            part = cut_rows(x, slice(start, stop), -3 - axis)
            # Along the last axis all runs of all rows are rows of one matrix.
            runs = (-1, length) if axis == -1 else (*x.shape[:-2], -1, length, x.shape[-1])
            product = apply(
                xp.reshape(part, runs), self.matrix(length, x.dtype, device, ops), axis, xp
            )
            done.append(xp.reshape(product, part.shape))
        return done[0] if len(done) == 1 else xp.concat(done, axis=axis)


def _transposed_cosine_matrix(
    size: int, /, *, xp: Namespace, dtype: DType, device: Device
) -> Array:
    return xp.matrix_transpose(cosine_matrix(size, xp=xp, dtype=dtype, device=device))


def _local_cosine_matrix(size: int, /, *, xp: Namespace, dtype: DType, device: Device) -> Array:
    rows = []
    for start in range(0, size, _RUN):
        length = min(_RUN, size - start)
        own = cosine_matrix(length, xp=xp, dtype=dtype, device=device)
        before, after = (
            xp.zeros((length, count), dtype=dtype, device=device)
            for count in (start, size - start - length)
        )
        rows.append(xp.concat([before, own, after], axis=1))
    return xp.concat(rows, axis=0)
