"""PyTorch: a native or a row-blocked transform, in-place scatter, integer index types."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, Self, TypeVar

import torch
from torch import Tensor
from torch.nn import Parameter

from lowrank_backends._torch_threads import for_each, workers
from lowrank_core import StandardOps
from lowrank_core._typing import Scalar
from lowrank_core.constants import Constants
from lowrank_core.crossovers import Crossovers
from lowrank_core.layout import cut_across, on_axis
from lowrank_core.makhoul import dct_by_fft, fft_phases, idct_by_fft
from lowrank_core.ops import Analysis

try:
    from lowrank_backends import _torch_cosine, _torch_memory
except ImportError:
    # Without NumPy, which PyTorch does not insist on: whole tensors by Makhoul's algorithm.
    _BY_BLOCKS = False
else:
    _BY_BLOCKS = True

T = TypeVar("T")

# Numbers in one block: small enough for a core's cache, large enough to amortise a dozen kernel launches.
_BLOCK = 2**18
# Matrices whose columns are gathered one matrix after the other, which reads memory in its order.
_FEW = 64


class TorchOps(StandardOps[Tensor]):
    """Operations on PyTorch tensors."""

    crossovers = Crossovers(
        small_size=64,
        few_columns=(
            (64, 28),
            (128, 48),
            (256, 70),
            (512, 88),
            (1024, 104),
            (2048, 106),
            (4096, 108),
        ),
    )

    _scratch: Any = None

    def holding(self, constants: Constants, *, reuse: bool = False) -> Self:
        """Return the same operations with another holder of constants, and memory for one analysis if asked."""
        own = super().holding(constants)
        if reuse and _BY_BLOCKS:
            own._scratch = _torch_memory.Scratch()
        return own

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
        """Return the orthonormal DCT-II, block by block on the CPU, elsewhere the whole at once."""
        if _is_plain(x):
            return _torch_cosine.dct(x, axis=axis)
        return self._whole(dct_by_fft, x, axis=axis)

    def idct(self, coefficients: Tensor, *, axis: int) -> Tensor:
        """Return the inverse of :meth:`dct`."""
        if _is_plain(coefficients):
            return _torch_cosine.idct(coefficients, axis=axis)
        return self._whole(idct_by_fft, coefficients, axis=axis)

    def _whole(self, transform: Callable[..., Tensor], x: Tensor, *, axis: int) -> Tensor:
        if x.numel() == 0:  # PyTorch's FFT refuses an empty batch, which an empty shard is
            return torch.empty_like(x)
        phases = fft_phases(x.shape[axis], self.xp, x.dtype, x.device)
        return self.along_last(lambda rows: transform(rows, self.xp, phases), x, axis=axis)

    def dct_analysis(
        self, x: Tensor, *, axis: int, norms: Sequence[str], plus: Tensor | None = None
    ) -> Analysis[Tensor]:
        """Return what a choice of columns asks of the DCT; on the CPU its sums are taken while blocks are in cache."""
        if _is_plain(x) and (plus is None or (_is_plain(plus) and x.dtype == plus.dtype)):
            return _torch_cosine.dct_analysis(
                x, axis=axis, norms=norms, plus=plus, scratch=self._scratch
            )
        return super().dct_analysis(x, axis=axis, norms=norms, plus=plus)

    def idct_columns(self, values: Tensor, indices: Tensor, size: int, *, axis: int) -> Tensor:
        """Return the inverse DCT of few columns; on the CPU they are put where it begins."""
        if _is_plain(values):
            return _torch_cosine.idct_columns(values, indices, size, axis=axis)
        return super().idct_columns(values, indices, size, axis=axis)

    def column_sums(self, x: Tensor, *, axis: int, squares: bool) -> Tensor:
        """Return the sums over columns or rows, block by block while a block is in cache: no temporary of its size."""
        if x.device.type != "cpu" or torch.compiler.is_compiling() or x.numel() == 0:
            return super().column_sums(x, axis=axis, squares=squares)
        across = -3 - axis
        total = None
        for block in _blocks(x, across):
            part = cut_across(x, block, axis)
            sums = (part * part if squares else part.abs()).sum(across)
            total = sums if total is None else total.add_(sums)
        assert total is not None  # noqa: S101 - there is a block in what is not empty
        return total

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """Return ``x + y``, block by block into memory that costs little to touch."""
        if x.numel() <= _BLOCK or not (_is_plain(x) and _is_plain(y) and x.dtype == y.dtype):
            return x + y
        out = _torch_memory.empty(x.shape, x.dtype)

        def work(block: slice) -> None:
            torch.add(x[..., block, :], y[..., block, :], out=out[..., block, :])

        for_each(work, _blocks(x, -2))
        return out

    def subtract(self, x: Tensor, part: Callable[[slice], Tensor], *, axis: int) -> Tensor:
        """Return ``x`` less what ``part`` gives, in the memory of ``x``, block by block."""
        if x.device.type != "cpu" or torch.compiler.is_compiling() or x.numel() == 0:
            return x.sub_(part(slice(None)))
        across = -3 - axis
        for_each(lambda block: cut_across(x, block, axis).sub_(part(block)), _blocks(x, across))
        return x

    def divide_by_root(
        self, x: Tensor, square: Tensor, weights: tuple[Any, Any], eps: Any
    ) -> Tensor:
        """Return ``x / (sqrt(square) + eps)``, each divided by its weight, in one array."""
        divisor = square.div(weights[1]).sqrt_().add_(eps)
        if divisor.requires_grad or x.requires_grad:
            return x / divisor / weights[0]
        return torch.div(x, divisor, out=divisor).div_(weights[0])

    def add_signs(self, x: Tensor, gradient: Tensor, kept: Tensor, scale: Scalar) -> Tensor:
        """Return ``x + scale * sign(gradient - kept)`` in the memory of ``x``."""
        # PyTorch's sign of NaN is zero, the array API's NaN; where the gradient is NaN, `x` is too.
        if isinstance(scale, Tensor) or x.requires_grad:
            return super().add_signs(x, gradient, kept, scale)
        return x.sub_(kept.sub_(gradient).sign_(), alpha=float(scale))

    def workers(self) -> int:
        """Return the number of PyTorch's threads where they can be divided; 1 in one of them."""
        return workers()

    def by_rows(
        self, function: Callable[..., tuple[Tensor, ...]], *arrays: Tensor
    ) -> tuple[Tensor, ...]:
        """Return ``function(*arrays)``, called block by block on the CPU so that its temporaries are small."""
        if not all(map(_is_plain, arrays)):
            return function(*arrays)
        lead = arrays[0].shape[:-1]
        flat = [x.reshape(-1, x.shape[-1]) for x in arrays]
        first, *others = _blocks(max(flat, key=Tensor.numel), 0)
        begun = function(*(x[first] for x in flat))
        if not others:
            return tuple(x.view(*lead, -1) for x in begun)
        results = [x.new_empty((lead.numel(), x.shape[-1])) for x in begun]

        def write(block: slice, parts: tuple[Tensor, ...]) -> None:
            for result, part in zip(results, parts, strict=True):
                result[block] = part

        write(first, begun)
        for_each(lambda block: write(block, function(*(x[block] for x in flat))), others)
        return tuple(x.view(*lead, -1) for x in results)

    def for_each(self, work: Callable[[T], object], items: Iterable[T]) -> None:
        """Call ``work`` for every item, several at a time on threads of their own."""
        for_each(work, items)

    def running_mean(
        self, mean: Tensor, x: Tensor, decay: Scalar, *, squares: bool, own: bool = False
    ) -> Tensor:
        """Return ``decay * mean + (1 - decay) * x``, or of squares, in one array at most."""
        if isinstance(decay, Tensor):
            return super().running_mean(mean, x, decay, squares=squares)
        kept = float(decay)
        mixed = mean.mul_(kept) if own else mean.mul(kept)
        if squares:
            return mixed.addcmul_(x, x, value=1 - kept)
        return mixed.add_(x, alpha=1 - kept)

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

    def take_kept(self, x: Tensor, indices: Tensor, kept: Tensor, *, axis: int) -> Tensor:
        """Return :meth:`take`, zero where not ``kept``, in one array."""
        taken = self.take(x, indices, axis=axis)
        if not _is_plain(taken) or kept.shape[:-1].numel() > _FEW:
            return taken.masked_fill_(on_axis(~kept, axis), 0.0)
        # Most are kept, and a mask would be asked for every number.
        for matrix, own in zip(_matrices(taken), kept.view(-1, kept.shape[-1]), strict=True):
            matrix.index_fill_(axis, (~own).nonzero().view(-1), 0.0)
        return taken

    def match(self, previous: Tensor, current: Tensor) -> tuple[Tensor, Tensor]:
        """Return the places of ``current`` in ``previous`` by binary search."""
        ordered, places = previous.sort(dim=-1)
        position = torch.searchsorted(ordered, current).clamp_(max=previous.shape[-1] - 1)
        return places.gather(-1, position), ordered.gather(-1, position) == current

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
    """Return whether NumPy can work on the memory of ``x``: it has one, on the CPU, and nobody records what is done."""
    return (
        _BY_BLOCKS
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


def _matrices(x: Tensor) -> list[Tensor]:
    """Return the matrices of a stack as views, the stack's leading dimensions in order."""
    if x.ndim == 2:
        return [x]
    return [matrix for part in x.unbind(0) for matrix in _matrices(part)]
