"""PyTorch: the real-FFT transform in row blocks that stay in cache, in-place scatter, integer index types."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from lowrank_core import StandardOps
from lowrank_core._typing import Scalar
from lowrank_core.makhoul import dct_by_fft, fft_phases, idct_by_fft

# Numbers in one block: small enough for a core's cache, large enough to amortise a dozen kernel launches.
_BLOCK = 2**18


class TorchOps(StandardOps[Tensor]):
    """Operations on PyTorch tensors."""

    small_size = 128

    def astype(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Return ``x`` as ``dtype``, without a copy where none is needed."""
        return x.to(dtype)

    # The next two do not ask what library an array is of: a graph compiler warns of that question.

    def device_of(self, x: Tensor) -> torch.device:
        """Return where ``x`` lives."""
        return x.device

    def as_scalar(self, value: Scalar, like: Tensor) -> Scalar:
        """Return a host number unchanged and a tensor as a 0-d tensor of the dtype of ``like``."""
        return value.to(like.dtype) if isinstance(value, Tensor) else value

    def as_index(self, indices: Tensor) -> Tensor:
        """Return ``indices`` as int64, the one dtype every PyTorch gather takes."""
        return indices.to(torch.int64)

    def dct(self, x: Tensor, *, axis: int) -> Tensor:
        """Return the orthonormal DCT-II by real FFTs of row blocks."""
        return self._blocked(dct_by_fft, x, axis=axis)

    def idct(self, coefficients: Tensor, *, axis: int) -> Tensor:
        """Return the inverse of :meth:`dct`."""
        return self._blocked(idct_by_fft, coefficients, axis=axis)

    def _blocked(self, transform: Callable[..., Tensor], x: Tensor, *, axis: int) -> Tensor:
        if x.numel() == 0:  # PyTorch's FFT refuses an empty batch, which an empty shard is
            return torch.empty_like(x)
        phases = fft_phases(x.shape[axis], self.xp, x.dtype, x.device)
        rows = x.mT if axis == -2 else x
        per_block = max(1, _BLOCK // x.shape[axis])
        # A graph compiler fuses the whole by itself and would unroll the loop; a GPU wants one large launch;
        # autograd follows no copies into views of one tensor.
        tracked = torch.is_grad_enabled() and x.requires_grad
        if x.device.type != "cpu" or torch.compiler.is_compiling() or rows.ndim == 1 or tracked:
            out = transform(rows, self.xp, phases)
            return out.mT if axis == -2 else out
        out = torch.empty_like(x)
        out_rows = out.mT if axis == -2 else out
        for source, target in zip(_matrices(rows), _matrices(out_rows), strict=True):
            for start in range(0, source.shape[0], per_block):
                block = slice(start, start + per_block)
                target[block] = transform(source[block], self.xp, phases)
        return out

    def put(self, values: Tensor, indices: Tensor, size: int, *, axis: int) -> Tensor:
        """Return zeros with ``values`` at ``indices``, by a scatter."""
        shape = list(values.shape)
        shape[axis] = size
        full = values.new_zeros(shape)
        index = self.as_index(indices)
        if index.ndim == 1:
            return full.index_copy_(axis, index, values)
        return full.scatter_(axis, self.spread(index, values, axis=axis), values)

    def constant(self, key: Hashable, build: Callable[[], Tensor]) -> Tensor:
        """Return the shared constant, made anew inside a trace: a tensor of one trace is no good to another."""
        if torch.compiler.is_compiling():
            return build()
        with torch.no_grad():
            value: Tensor = super().constant((key, torch._guards.detect_fake_mode()), build)
        return value


def _matrices(x: Tensor) -> list[Tensor]:
    """Return the matrices of a stack as views, the stack's leading dimensions in order."""
    if x.ndim == 2:
        return [x]
    return [matrix for part in x.unbind(0) for matrix in _matrices(part)]
