"""PyTorch: a native or a row-blocked transform, in-place scatter, integer index types."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from itertools import chain
from typing import Any, Self

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter
from torch.utils._device import DeviceContext

from lowrank_backends import _torch_panels, _torch_rows
from lowrank_backends._torch_threads import for_each, num_threads
from lowrank_core import StandardOps
from lowrank_core._typing import Scalar
from lowrank_core.layout import cut_rows, on_axis
from lowrank_core.ops.axes import along_last, expand_index
from lowrank_core.ops.constants import Constants
from lowrank_core.ops.crossovers import Crossovers
from lowrank_core.ops.makhoul import dct_by_fft, fft_phases, idct_by_fft
from lowrank_core.ops.passes import PassedRows
from lowrank_core.ops.standard import Coefficients

try:
    from lowrank_backends import _torch_cosine, _torch_memory
except ImportError:
    # Without NumPy, which PyTorch does not insist on: whole tensors by Makhoul's algorithm.
    _BY_BLOCKS = False
else:
    _BY_BLOCKS = True

# Numbers in one block: small enough for a core's cache, large enough to amortise a dozen kernel launches.
_BLOCK = 2**18
# Numbers of a matrix from which columns of a stack are taken one matrix after the other, which reads memory in its
# order, and not by one gather of them all.
_LARGE = 2**14


def _is_plain(x: Tensor) -> bool:
    """Return whether NumPy can work on the memory of ``x``: it has one, on the CPU, and nobody records what is done."""
    return _BY_BLOCKS and not _is_recorded() and _is_memory(x)


def _is_memory(x: Tensor) -> bool:
    """Return whether ``x`` is numbers in the CPU's memory."""
    return (
        type(x) in (Tensor, Parameter)
        and x.device.type == "cpu"
        and x.numel() > 0
        and not (torch.is_grad_enabled() and x.requires_grad)
        # Views whose numbers are not those in memory: another sign, or none there.
        and not (x.is_neg() or x._is_zerotensor())
    )


def _is_recorded() -> bool:
    """Return whether somebody records the operations on tensors, so that NumPy's would be missed."""
    return (
        torch.compiler.is_compiling()
        or torch._C._functorch.peek_interpreter_stack() is not None  # vmap and grad transforms
        or forward_ad._current_level >= 0  # dual tensors
        or torch._C._get_tracing_state() is not None  # TorchScript
        or torch._C._len_torch_dispatch_stack() > 0  # make_fx, counters of operations
        or (torch._C._len_torch_function_stack() > 0 and _has_function_mode())
    )


def _has_function_mode() -> bool:
    """Return whether a mode sees calls of PyTorch's functions, other than the one that sets a default device."""
    for place in range(torch._C._len_torch_function_stack()):
        if type(torch._C._get_function_stack_at(place)) is not DeviceContext:
            return True
    return False


class TorchOps(StandardOps[Tensor]):
    """Operations on PyTorch tensors."""

    crossovers = Crossovers(
        small_size=256,
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

    is_readable = staticmethod(_is_plain)
    num_threads = staticmethod(num_threads)
    for_each = staticmethod(for_each)

    _scratch: Any = None

    def with_constants(self, constants: Constants, *, reuse_memory: bool = False) -> Self:
        """Return the same operations with another holder of constants, and memory for coefficients if asked."""
        own = super().with_constants(constants)
        if reuse_memory and _BY_BLOCKS:
            own._scratch = _torch_memory.Scratch()
        return own

    def astype(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Return ``x`` as ``dtype``, without a copy where none is needed."""
        return x.to(dtype)

    def copy(self, x: Tensor) -> Tensor:
        """Return a tensor with the numbers of ``x`` in memory of its own."""
        return x.clone()

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
            return _on_cpu("dct", x, axis)
        return self._whole(dct_by_fft, x, axis=axis)

    def idct(self, coefficients: Tensor, *, axis: int) -> Tensor:
        """Return the inverse of :meth:`dct`."""
        if _is_plain(coefficients):
            return _on_cpu("idct", coefficients, axis)
        return self._whole(idct_by_fft, coefficients, axis=axis)

    def _whole(self, transform: Callable[..., Tensor], x: Tensor, *, axis: int) -> Tensor:
        if x.numel() == 0:  # PyTorch's FFT refuses an empty batch, which an empty shard is
            return torch.empty_like(x)
        phases = fft_phases(x.shape[axis], self.xp, x.dtype, x.device)
        return along_last(lambda rows: transform(rows, self.xp, phases), x, axis, self.xp)

    def dct_scored(self, x: Tensor, *, axis: int, norms: Sequence[str]) -> Coefficients[Tensor]:
        """Return the DCT with the sums over its columns, which on the CPU are taken while blocks are in cache."""
        if _is_plain(x):
            return _torch_cosine.dct_scored(x, axis=axis, norms=norms, scratch=self._scratch)
        return super().dct_scored(x, axis=axis, norms=norms)

    def may_have_row_kernels(self, parameter: Tensor) -> bool:
        """Return whether Triton kernels run where a parameter is, or it is large enough for the CPU's panels."""
        on_cpu = parameter.device.type == "cpu" and parameter.numel() >= _torch_panels.LEAST
        return on_cpu or _torch_rows.run_on(parameter.device)

    def row_kernels(
        self,
        gradients: Sequence[Tensor],
        parameters: Sequence[Tensor],
        states: Sequence[Collection[Tensor | None]],
    ) -> type[PassedRows[Tensor]] | None:
        """Return the Triton kernels if they take such matrices, or on a CPU the panels that Numba compiles."""
        if _is_recorded():
            return None
        every = list(zip(gradients, parameters, states, strict=True))
        if _BY_BLOCKS and all(
            x.shape == y.shape and _is_memory(x) and _is_memory(y) for x, y, _ in every
        ):
            panels = _torch_panels.launches_for(*gradients, *parameters, *chain(*states))
            if panels is not None:
                return panels.PanelRows
        if all(_torch_rows.takes(x, y, *state) for x, y, state in every):
            return _torch_rows.launches().LaunchedRows
        return None

    def idct_columns(self, values: Tensor, indices: Tensor, size: int, *, axis: int) -> Tensor:
        """Return the inverse DCT of few columns; on the CPU they are put where it begins."""
        if _is_plain(values):
            return _torch_cosine.idct_columns(values, indices, size, axis=axis)
        return super().idct_columns(values, indices, size, axis=axis)

    def column_sums(self, x: Tensor, *, axis: int, norm: str) -> Tensor:
        """Return the sums over columns or rows, block by block while a block is in cache: no temporary of its size."""
        if x.device.type != "cpu" or torch.compiler.is_compiling() or x.numel() <= _BLOCK:
            return super().column_sums(x, axis=axis, norm=norm)
        across = -3 - axis
        total = x.new_zeros((*x.shape[:-2], x.shape[axis]))
        for block in _blocks(x, across):
            part = cut_rows(x, block, axis)
            total += (part * part if norm == "l2" else part.abs()).sum(across)
        return total

    def adam_update(
        self,
        gradient: Tensor,
        moments: tuple[Tensor, Tensor],
        betas: tuple[Scalar, Scalar],
        weights: tuple[Any, Any],
        eps: Any,
        *,
        overwrite: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return Adam's direction and the new moments, in three arrays at most."""
        (first, second), (beta1, beta2) = moments, betas
        if isinstance(beta1, Tensor) or isinstance(beta2, Tensor):
            return super().adam_update(gradient, moments, betas, weights, eps)
        kept1, kept2 = float(beta1), float(beta2)
        first = first.mul_(kept1) if overwrite else first.mul(kept1)
        first.add_(gradient, alpha=1 - kept1)
        second = second.mul_(kept2) if overwrite else second.mul(kept2)
        second.addcmul_(gradient, gradient, value=1 - kept2)
        divisor = second.div(weights[1]).sqrt_().add_(eps)
        if divisor.requires_grad or first.requires_grad or _is_recorded():
            return first / divisor / weights[0], first, second
        return torch.div(first, divisor, out=divisor).div_(weights[0]), first, second

    def add_signs(self, x: Tensor, gradient: Tensor, kept: Tensor, scale: Scalar) -> Tensor:
        """Return ``x + scale * sign(gradient - kept)`` in the memory of ``x``."""
        # PyTorch's sign of NaN is zero, the array API's NaN; where the gradient is NaN, `x` is too.
        if x.requires_grad or (isinstance(scale, Tensor) and scale.requires_grad):
            return super().add_signs(x, gradient, kept, scale)
        if isinstance(scale, Tensor):
            return x.addcmul_(kept.sub_(gradient).sign_(), scale.to(x.dtype), value=-1)
        return x.sub_(kept.sub_(gradient).sign_(), alpha=float(scale))

    def bounded(self, x: Tensor, roots: Tensor, scale: Scalar) -> Tensor:
        """Return ``scale * x / sqrt(roots^2 + x^2)`` in the memory of ``roots`` and one array more."""
        if x.requires_grad or roots.requires_grad or _is_recorded():
            return super().bounded(x, roots, scale)
        ratios = torch.div(x, roots, out=roots)
        share: Any = scale
        return ratios.mul_((ratios * ratios).add_(1.0).rsqrt_()).mul_(share)

    def take(self, x: Tensor, indices: Tensor, *, axis: int) -> Tensor:
        """Return rows or columns of matrices by a gather that looks for no negative indices."""
        index = self.as_index(indices)
        if index.ndim == 1:
            return x.index_select(axis, index)
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            if axis == -2:
                # Rows of all matrices, numbered through.
                rows = x.flatten(0, -2).index_select(0, _numbered(index, x.shape[-2]))
                return rows.view(*index.shape, x.shape[-1])
            if x.shape[-2] * index.shape[-1] > _LARGE and x.shape[:-2].numel():
                pairs = zip(_matrices(x), index.view(-1, index.shape[-1]), strict=True)
                taken = torch.stack([matrix.index_select(-1, own) for matrix, own in pairs])
                return taken.view(*x.shape[:-2], *taken.shape[-2:])
        return x.gather(axis, expand_index(index, x, axis, self.xp))

    def take_or_zero(self, x: Tensor, indices: Tensor, kept: Tensor, *, axis: int) -> Tensor:
        """Return :meth:`take`, zero where not ``kept``, in one array."""
        taken = self.take(x, indices, axis=axis)
        small = axis == -1 and taken.ndim > 2 and taken.shape[-2:].numel() <= _LARGE
        if small or not _is_plain(taken):
            return taken.masked_fill_(on_axis(~kept, axis), 0.0)
        # Most are kept, and a mask would be asked for every number.
        if axis == -2:
            taken.flatten(0, -2).index_fill_(0, (~kept).flatten().nonzero().view(-1), 0.0)
            return taken
        for matrix, own in zip(_matrices(taken), kept.view(-1, kept.shape[-1]), strict=True):
            matrix.index_fill_(-1, (~own).nonzero().view(-1), 0.0)
        return taken

    def index_in(self, previous: Tensor, current: Tensor) -> tuple[Tensor, Tensor]:
        """Return the places of ``current`` in ``previous`` by binary search."""
        ordered, places = previous.sort(dim=-1)
        position = torch.searchsorted(ordered, current).clamp_(max=previous.shape[-1] - 1)
        return places.gather(-1, position), ordered.gather(-1, position) == current

    def take_along(self, x: Tensor, indices: Tensor) -> Tensor:
        """Return entries of vectors, likewise."""
        return x.gather(-1, self.as_index(indices))

    def put(self, values: Tensor, indices: Tensor, size: int, *, axis: int) -> Tensor:
        """Return zeros with ``values`` at ``indices``, by a scatter."""
        shape = list(values.shape)
        shape[axis] = size
        full = values.new_zeros(shape)
        return self._write_at(full, values, indices, axis)

    def put_over(self, x: Tensor, values: Tensor, indices: Tensor, *, axis: int) -> Tensor:
        """Return ``x``, with ``values`` written to it at ``indices``."""
        if x.requires_grad or values.requires_grad or _is_recorded():
            return super().put_over(x, values, indices, axis=axis)
        return self._write_at(x, values, indices, axis)

    def _write_at(self, x: Tensor, values: Tensor, indices: Tensor, axis: int) -> Tensor:
        """Write ``values`` to ``x`` at ``indices``, and return it."""
        index = self.as_index(indices)
        if index.ndim == 1:
            return x.index_copy_(axis, index, values)
        return x.scatter_(axis, expand_index(index, values, axis, self.xp), values)

    def constant(self, key: Hashable, build: Callable[[], Tensor]) -> Tensor:
        """Return the shared constant, made anew inside a trace: a tensor of one trace is no good to another."""
        if (
            torch.compiler.is_compiling()
            or torch._C._get_tracing_state() is not None  # TorchScript
            or torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None
        ):
            return build()
        # An inference tensor would be of no use to a later caller that follows gradients.
        with torch.inference_mode(False), torch.no_grad():
            value: Tensor = super().constant((key, torch._guards.detect_fake_mode()), build)
        return value


def _on_cpu(transform: str, x: Tensor, axis: int) -> Tensor:
    """Return the ``transform``, by its name, of a plain tensor: by panels where these take it, else by blocks."""
    rows = x if axis == -1 else x.mT
    panels = _torch_panels.launches_for(rows)
    if panels is None:
        blocks: Tensor = getattr(_torch_cosine, transform)(x, axis=axis)
        return blocks
    found: Tensor = getattr(panels, transform)(rows)
    return found if axis == -1 else found.mT


def _blocks(x: Tensor, dim: int) -> Iterator[slice]:
    """Yield slices of a dimension of ``x`` that cut it into blocks of about ``_BLOCK`` numbers."""
    length = max(1, _BLOCK * x.shape[dim] // x.numel())
    for start in range(0, x.shape[dim], length):
        yield slice(start, start + length)


def _numbered(index: Tensor, size: int) -> Tensor:
    """Return indices ``(..., r)`` into matrices of ``size`` rows as indices into the rows of all of them, one list."""
    each = index.flatten(0, -2)
    return (each + torch.arange(0, size * len(each), size).unsqueeze(-1)).flatten()


def _matrices(x: Tensor) -> list[Tensor]:
    """Return the matrices of a stack as views, the stack's leading dimensions in order."""
    if x.ndim == 2:
        return [x]
    return [matrix for part in x.unbind(0) for matrix in _matrices(part)]
