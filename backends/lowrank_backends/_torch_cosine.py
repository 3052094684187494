"""The DCT of matrices in a CPU's memory, by PyTorch's real FFT on blocks that fit a core's cache.

Between the FFT of Makhoul's algorithm and its coefficients lie a product with phases and a reordering. After the
product the half spectrum ``Z`` of a row holds all of its coefficients, ``S_k = Re Z_k`` and ``S_{n-k} = -Im Z_k``:
sums over columns, and few of them, are read where they are, and few columns are put where the inverse transform
begins. What has to be reordered is copied by NumPy, which walks backwards and in steps at the speed of memory.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lowrank_backends._torch_memory import Scratch, empty
from lowrank_backends._torch_threads import for_each
from lowrank_core.ops.makhoul import fft_phases

# Numbers in one block: its copies fit a core's cache, and a dozen calls for each cost little beside the work.
_BLOCK = 2**18


class _Frame(NamedTuple):
    """What transforms of one size and dtype share."""

    size: int
    #: Length of the half spectrum, ``size // 2 + 1``.
    half: int
    #: Samples at even places, ``ceil(size / 2)``, which come first.
    even: int
    #: What the spectrum is multiplied by to give ``Z``, and what ``Z`` by to give the spectrum.
    forward: Tensor
    backward: Tensor
    #: For each coefficient its place among the ``2 * half`` real numbers of ``Z``, and its sign there.
    places: Tensor
    signs: Tensor
    #: The order in which Makhoul's algorithm takes samples, and the places where it puts them.
    order: Tensor
    order_back: Tensor


@functools.lru_cache(maxsize=64)
def _frame(size: int, dtype: torch.dtype) -> _Frame:
    cpu = torch.device("cpu")
    with torch.inference_mode(False), torch.no_grad():
        half, even = size // 2 + 1, (size + 1) // 2
        cosine, sine = (x.to(cpu) for x in fft_phases(size, torch, torch.float64, cpu))
        forward = torch.complex(cosine, -sine)
        backward = forward.reciprocal()
        if size % 2 == 0:
            # The real part of this one stands for its imaginary part as well.
            middle = 2 * backward[-1].real
            backward[-1] = torch.complex(middle, torch.zeros_like(middle))
        index = torch.arange(size, device=cpu)
        upper = index >= half
        places = torch.where(upper, 2 * (size - index) + 1, 2 * index)
        signs = torch.where(upper, -1.0, 1.0).to(dtype)
        order = torch.cat([index[::2], index[1::2].flip(0)])
        kind = torch.complex128 if dtype == torch.float64 else torch.complex64
        return _Frame(
            size, half, even, forward.to(kind), backward.to(kind), places, signs,
            order, torch.argsort(order),
        )  # fmt: skip


class _Block(NamedTuple):
    """Some matrices of a stack, and some of their rows (or columns, where these are transformed)."""

    matrices: slice
    lines: slice


def _blocks(count: int, lines: int, size: int) -> Iterator[_Block]:
    """Yield blocks of ``count`` matrices with so many lines of ``size``."""
    per_block = max(1, _BLOCK // size)
    matrices = max(1, per_block // max(1, lines))
    for first in range(0, count, matrices):
        for start in range(0, lines, per_block):
            yield _Block(
                slice(first, min(first + matrices, count)),
                slice(start, min(start + per_block, lines)),
            )


def _stack(x: Tensor) -> Tensor:
    """Return ``x`` as a stack of matrices ``(k, ., .)``."""
    x = x.detach()
    return x.reshape(1, 1, -1) if x.ndim == 1 else x.reshape(-1, *x.shape[-2:])


def _part(stack: Tensor, block: _Block, axis: int) -> Tensor:
    part = stack[block.matrices]
    return part[:, block.lines] if axis == -1 else part[:, :, block.lines]


def _transposed(matrices: Tensor) -> Tensor:
    """Return ``(g, a, b)`` as contiguous ``(g, b, a)``; matrix by matrix, which PyTorch does in tiles."""
    out = matrices.new_empty((matrices.shape[0], matrices.shape[2], matrices.shape[1]))
    for target, source in zip(out, matrices, strict=True):
        target.copy_(source.t())
    return out


def _spectrum(part: Tensor, axis: int, frame: _Frame, out: Tensor | None = None) -> Tensor:
    """Return ``Z`` ``(g, lines, half)`` of a block of samples."""
    if axis == -1:
        reordered = part.new_empty(part.shape)
        source, target = part.numpy(), reordered.numpy()
        np.copyto(target[..., : frame.even], source[..., ::2])
        np.copyto(target[..., frame.even :], source[..., 1::2][..., ::-1])
    else:
        reordered = _transposed(part.index_select(-2, frame.order))
    spectrum = torch.fft.rfft(reordered)
    return (
        spectrum.mul_(frame.forward) if out is None else torch.mul(spectrum, frame.forward, out=out)
    )


def _samples(spectrum: Tensor, axis: int, frame: _Frame, out: Tensor) -> None:
    """Write the samples of which ``spectrum`` is ``Z`` into ``out``; ``spectrum`` is used up."""
    reordered = torch.fft.irfft(spectrum.mul_(frame.backward), n=frame.size)
    if axis == -1:
        source, target = reordered.numpy(), out.numpy()
        np.copyto(target[..., ::2], source[..., : frame.even])
        np.copyto(target[..., 1::2], source[..., frame.even :][..., ::-1])
    else:
        out.copy_(_transposed(reordered).index_select(-2, frame.order_back))


def _coefficients(numbers: Tensor, axis: int, frame: _Frame, out: Tensor) -> None:
    """Write the coefficients, in order, that the real numbers ``(g, lines, half, 2)`` of ``Z`` hold into ``out``."""
    rows = out if axis == -1 else out.new_empty(out.mT.shape)
    source, target = numbers.numpy(), rows.numpy()
    np.copyto(target[..., : frame.half], source[..., 0])
    _negate(source[..., frame.size - frame.half : 0 : -1, 1], target[..., frame.half :])
    if axis == -2:
        out.copy_(_transposed(rows))


def _negate(source: Any, target: Any) -> None:
    # `numpy.negative` of two float32 numbers that do not lie side by side reads a wrong one (NumPy 2.4, AVX-512).
    np.multiply(source, -1, out=target)


def dct(x: Tensor, *, axis: int) -> Tensor:
    """Return the orthonormal DCT-II of ``x`` along ``axis``."""
    stack = _stack(x)
    frame = _frame(stack.shape[axis], x.dtype)
    out = empty(stack.shape, x.dtype)

    def work(block: _Block) -> None:
        spectrum = _spectrum(_part(stack, block, axis), axis, frame)
        _coefficients(torch.view_as_real(spectrum), axis, frame, _part(out, block, axis))

    for_each(work, _blocks(stack.shape[0], stack.shape[-3 - axis], frame.size))
    return out.reshape(x.shape)


def idct(coefficients: Tensor, *, axis: int) -> Tensor:
    """Return the inverse of :func:`dct`."""
    stack = _stack(coefficients)
    frame = _frame(stack.shape[axis], coefficients.dtype)
    out = empty(stack.shape, coefficients.dtype)

    def work(block: _Block) -> None:
        part = _part(stack, block, axis)
        rows = part if axis == -1 else _transposed(part)
        spectrum = rows.new_empty((*rows.shape[:-1], frame.half, 2))
        source, numbers = rows.numpy(), spectrum.numpy()
        np.copyto(numbers[..., 0], source[..., : frame.half])
        numbers[..., 0, 1] = 0
        numbers[..., -1, 1] = 0
        mirrored = numbers[..., 1 : frame.size - frame.half + 1, 1]
        _negate(source[..., : frame.half - 1 : -1], mirrored)
        _samples(torch.view_as_complex(spectrum), axis, frame, _part(out, block, axis))

    for_each(work, _blocks(stack.shape[0], stack.shape[-3 - axis], frame.size))
    return out.reshape(coefficients.shape)


@dataclass(frozen=True)
class HalfSpectra:
    """The coefficients of matrices as the half spectra ``Z`` of their rows, with the sums over columns."""

    #: The real numbers of ``Z``, ``(count, lines, 2 * half)``.
    numbers: Tensor
    #: As `lowrank_core.ops.standard.Coefficients` has them.
    sums: Tensor | None
    axis: int
    frame: _Frame
    #: Shape of the matrices, their leading dimensions included.
    shape: tuple[int, ...]

    def take(self, indices: Tensor) -> Tensor:
        """Return a new array of the columns ``indices`` ``(..., r)``."""
        frame, numbers = self.frame, self.numbers
        count = numbers.shape[0]
        index, signs = frame.places[indices.long()], frame.signs[indices.long()]
        if indices.ndim == 1:
            # In two dimensions PyTorch has a loop of its own for this.
            flat = numbers.reshape(-1, 2 * frame.half)
            taken = flat.index_select(1, index).mul_(signs).view(count, numbers.shape[1], -1)
        else:
            index, signs = index.view(count, 1, -1), signs.view(count, 1, -1)
            taken = numbers.gather(-1, index.expand(-1, numbers.shape[1], -1)).mul_(signs)
        taken = taken if self.axis == -1 else _transposed(taken)
        return taken.view(*self.shape[:-2], *taken.shape[-2:])

    @property
    def values(self) -> Tensor:
        """All coefficients in order."""
        count, lines, width = self.numbers.shape
        out = empty((count, *self.shape[-2:]), self.numbers.dtype)
        pairs = self.numbers.view(count, lines, width // 2, 2)

        def work(block: _Block) -> None:
            part = pairs[block.matrices, block.lines]
            _coefficients(part, self.axis, self.frame, _part(out, block, self.axis))

        for_each(work, _blocks(count, lines, self.frame.size))
        return out.view(self.shape)


def dct_scored(
    x: Tensor, *, axis: int, norms: Sequence[str], scratch: Scratch | None
) -> HalfSpectra:
    """Return the DCT of ``x`` with sums over its columns (axis -1) or rows, in memory of ``scratch`` where given."""
    stack = _stack(x)
    frame = _frame(stack.shape[axis], x.dtype)
    count, lines = stack.shape[0], stack.shape[-3 - axis]
    made = empty if scratch is None else scratch.empty
    spectra = made((count, lines, frame.half), frame.forward.dtype)
    numbers = torch.view_as_real(spectra).view(count, lines, 2 * frame.half)
    blocks = list(_blocks(count, lines, frame.size))
    found: list[Any] = [None] * len(blocks)

    def work(place: int) -> None:
        block = blocks[place]
        _spectrum(_part(stack, block, axis), axis, frame, _part(spectra, block, -1))
        found[place] = _column_sums(_part(numbers, block, -1).numpy(), norms)

    for_each(work, range(len(blocks)))
    if not norms:
        return HalfSpectra(numbers, None, axis, frame, tuple(x.shape))
    total = np.zeros((len(norms), count, 2 * frame.half), numbers.numpy().dtype)
    for block, own in zip(blocks, found, strict=True):
        total[:, block.matrices] += own
    sums = torch.from_numpy(total).index_select(-1, frame.places)
    sums = sums.view(len(norms), *x.shape[:-2], frame.size)
    return HalfSpectra(numbers, sums, axis, frame, tuple(x.shape))


def _column_sums(matrices: Any, norms: Sequence[str]) -> Any:
    """Return the sums over the rows of ``(g, rows, k)``, ``(len(norms), g, k)``."""
    count, _, width = matrices.shape
    sums = np.empty((len(norms), count, width), matrices.dtype)
    for number, rows in enumerate(matrices):
        for place, norm in enumerate(norms):
            if norm == "l2":
                np.einsum("ij,ij->j", rows, rows, out=sums[place, number])
            else:
                np.abs(rows).sum(axis=0, out=sums[place, number])
    return sums


def idct_columns(values: Tensor, indices: Tensor, size: int, *, axis: int) -> Tensor:
    """Return the inverse of :func:`dct` of matrices that have ``values`` at ``indices``, and zeros elsewhere."""
    stack = _stack(values)
    frame = _frame(size, values.dtype)
    count, lines = stack.shape[0], stack.shape[-3 - axis]
    shape = list(stack.shape)
    shape[axis] = size
    out = empty(shape, values.dtype)
    index, signs = frame.places[indices.long()], frame.signs[indices.long()]
    if indices.ndim > 1:
        index, signs = (each.view(count, 1, -1) for each in (index, signs))

    def work(block: _Block) -> None:
        part = _part(stack, block, axis)
        rows = part if axis == -1 else part.mT
        own_index, own_signs = index, signs
        if indices.ndim > 1:
            own_index, own_signs = index[block.matrices], signs[block.matrices]
        numbers = rows.new_zeros((*rows.shape[:-1], 2 * frame.half))
        numbers.scatter_(-1, own_index.expand(rows.shape), rows * own_signs)
        spectrum = torch.view_as_complex(numbers.view(*rows.shape[:-1], frame.half, 2))
        _samples(spectrum, axis, frame, _part(out, block, axis))

    for_each(work, _blocks(count, lines, size))
    return out.reshape(*values.shape[:-2], *shape[-2:])
