"""PyTorch: a native or a row-blocked transform, in-place scatter, integer index types."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from lowrank_core import StandardOps
from lowrank_core._typing import Scalar
from lowrank_core.crossovers import Crossovers
from lowrank_core.makhoul import dct_by_fft, fft_phases, idct_by_fft

try:
    from scipy import fft as scipy_fft
except ImportError:  # optional: without SciPy, Makhoul's algorithm runs on torch.fft
    scipy_fft = None

# Numbers in one block: small enough for a core's cache, large enough to amortise a dozen kernel launches.
_BLOCK = 2**18
# Matrices whose columns are gathered one matrix after the other, which reads memory in its order.
_FEW = 64


class TorchOps(StandardOps[Tensor]):
    """Operations on PyTorch tensors."""

    crossovers = Crossovers(small_size=128, few_columns=((1, 96),))

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
        """Return the orthonormal DCT-II: SciPy's on a plain CPU tensor's own memory, else by FFTs of row blocks."""
        if _is_plain(x):
            return self._native(scipy_fft.dct, x, axis=axis)
        return self._blocked(dct_by_fft, x, axis=axis)

    def idct(self, coefficients: Tensor, *, axis: int) -> Tensor:
        """Return the inverse of :meth:`dct`."""
        if _is_plain(coefficients):
            return self._native(scipy_fft.idct, coefficients, axis=axis)
        return self._blocked(idct_by_fft, coefficients, axis=axis)

    def _native(self, transform: Callable[..., Any], x: Tensor, *, axis: int) -> Tensor:
        # In place on a copy: two threads that fill fresh memory wait for each other at every page. Across rows SciPy
        # would stride through memory, so what it is given is the transpose.
        array = x.detach().numpy()
        rows = (array.swapaxes(-1, -2) if axis == -2 else array).copy(order="C")
        workers = torch.get_num_threads()
        out = torch.from_numpy(
            transform(rows, type=2, norm="ortho", axis=-1, overwrite_x=True, workers=workers)
        )
        return out.mT if axis == -2 else out

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

    def column_sums(self, x: Tensor, *, axis: int, squares: bool) -> Tensor:
        """Return the sums over columns or rows, block by block while a block is in cache: no temporary of its size."""
        if x.device.type != "cpu" or torch.compiler.is_compiling() or x.numel() == 0:
            return super().column_sums(x, axis=axis, squares=squares)
        across = -3 - axis
        total = None
        for block in _blocks(x, across):
            part = _cut(x, across, block)
            sums = (part * part if squares else part.abs()).sum(across)
            total = sums if total is None else total.add_(sums)
        assert total is not None  # noqa: S101 - there is a block in what is not empty
        return total

    def subtract(self, x: Tensor, part: Callable[[slice], Tensor], *, axis: int) -> Tensor:
        """Return ``x`` less what ``part`` gives, in the memory of ``x``, block by block."""
        if x.device.type != "cpu" or torch.compiler.is_compiling() or x.numel() == 0:
            return x.sub_(part(slice(None)))
        for block in _blocks(x, -3 - axis):
            _cut(x, -3 - axis, block).sub_(part(block))
        return x

    def running_mean(self, mean: Tensor, x: Tensor, decay: Scalar, *, squares: bool) -> Tensor:
        """Return ``decay * mean + (1 - decay) * x``, or of squares, with one array less."""
        if isinstance(decay, Tensor):
            return super().running_mean(mean, x, decay, squares=squares)
        terms = x * x if squares else x
        kept = float(decay)
        return mean.mul(kept).add_(terms, alpha=1 - kept)

    def take(self, x: Tensor, indices: Tensor, *, axis: int) -> Tensor:
        """Return rows or columns of matrices by a gather that looks for no negative indices."""
        index = self.as_index(indices)
        if index.ndim == 1:
            return x.index_select(axis, index)
        if (
            x.device.type == "cpu"
            and not torch.compiler.is_compiling()
            and 0 < x.shape[:-2].numel() <= _FEW
        ):
            pairs = zip(_matrices(x), index.view(-1, index.shape[-1]), strict=True)
            taken = torch.stack([matrix.index_select(axis, own) for matrix, own in pairs])
            return taken.view(*x.shape[:-2], *taken.shape[-2:])
        return x.gather(axis, self.spread(index, x, axis=axis))

    def pick(self, x: Tensor, indices: Tensor) -> Tensor:
        """Return entries of vectors, likewise."""
        return x.gather(-1, self.as_index(indices))

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
        # An inference tensor would be of no use to a later caller that follows gradients.
        with torch.inference_mode(False), torch.no_grad():
            value: Tensor = super().constant((key, torch._guards.detect_fake_mode()), build)
        return value


def _is_plain(x: Tensor) -> bool:
    """Return whether SciPy can work on the memory of ``x``: it has one, on the CPU, and nobody records what is done."""
    return (
        scipy_fft is not None
        and type(x) in (Tensor, Parameter)
        and x.device.type == "cpu"
        and x.numel() > 0
        and not torch.compiler.is_compiling()
        and not (torch.is_grad_enabled() and x.requires_grad)
        and torch._C._functorch.peek_interpreter_stack() is None  # vmap and grad transforms
    )


def _blocks(x: Tensor, dim: int) -> Iterator[slice]:
    """Yield slices of a dimension of ``x`` that cut it into blocks of about ``_BLOCK`` numbers."""
    length = max(1, _BLOCK * x.shape[dim] // x.numel())
    for start in range(0, x.shape[dim], length):
        yield slice(start, start + length)


def _cut(x: Tensor, dim: int, block: slice) -> Tensor:
    return x[..., block] if dim == -1 else x[..., block, :]


def _matrices(x: Tensor) -> list[Tensor]:
    """Return the matrices of a stack as views, the stack's leading dimensions in order."""
    if x.ndim == 2:
        return [x]
    return [matrix for part in x.unbind(0) for matrix in _matrices(part)]
