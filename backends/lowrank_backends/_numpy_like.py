"""What NumPy and CuPy share: arrays that can be written to, and a SciPy-style FFT module."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from lowrank_core import StandardOps
from lowrank_core._typing import Array


class NumpyLikeOps(StandardOps[Any]):
    """Operations on arrays with NumPy's indexing."""

    #: Module with SciPy's ``dct`` and ``idct``; ``None`` runs Makhoul's algorithm on the namespace's FFT.
    #:
    #: :meta hide-value:
    scipy_fft: ModuleType | None = None

    def dct(self, x: Array, *, axis: int) -> Array:
        """Return the orthonormal DCT-II by the library's own transform, where it has one."""
        if self.scipy_fft is None:
            return super().dct(x, axis=axis)
        coefficients: Array = self.scipy_fft.dct(x, type=2, norm="ortho", axis=axis)
        return coefficients

    def idct(self, coefficients: Array, *, axis: int) -> Array:
        """Return the inverse of :meth:`dct`."""
        if self.scipy_fft is None:
            return super().idct(coefficients, axis=axis)
        x: Array = self.scipy_fft.idct(coefficients, type=2, norm="ortho", axis=axis)
        return x

    def put(self, values: Array, indices: Array, size: int, *, axis: int) -> Array:
        """Return zeros with ``values`` at ``indices``, by assignment instead of a gather."""
        # A choice for each matrix goes the standard way: CuPy has `put_along_axis` from version 14 only.
        if indices.ndim > 1:
            return super().put(values, indices, size, axis=axis)
        shape = list(values.shape)
        shape[axis] = size
        full = self.xp.zeros(tuple(shape), dtype=values.dtype, device=self.device_of(values))
        index = self.as_index(indices)
        full[(..., index) if axis == -1 else (..., index, slice(None))] = values
        return full
