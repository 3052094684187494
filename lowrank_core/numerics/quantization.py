"""Numbers in 8 or 4 bits: codes between the minimum and the maximum of each block of the last axis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from lowrank_core._checks import check_choice, check_floating, check_kind
from lowrank_core._typing import Array
from lowrank_core.ops.precision import to_compute
from lowrank_core.ops.registry import ops_for
from lowrank_core.ops.standard import Ops
from lowrank_core.option_types import Bits

BITS = get_args(Bits)

#: Numbers that share a minimum and a scale.
BLOCK = 256

#: The least number of float32, a scale in whose neighbourhood are few, and what makes such larger.
LEAST, SMALL, UP = 1.401298464324817e-45, 2.0**-118, 2.0**64
#: A scale of a span that float32 may not hold.
WIDE = 2.0**119


@dataclass(frozen=True)
class Quantized:
    """An array in codes: ``x ~ minimum + scale * code``, a minimum and a scale for each block of 256 numbers.

    Attributes
    ----------
    codes
        ``(..., n)`` uint8 for 8 bits; ``(..., ceil(n / 2))`` for 4 bits, two codes a byte, the first in the high
        nibble.
    minimum, scale
        ``(..., ceil(n / 256))`` float32 (float64 for float64), in the units of ``x``.
    bits
        8 or 4.
    size
        ``n``, the length of the last axis.
    """

    codes: Array
    minimum: Array
    scale: Array
    bits: int
    size: int


def quantize(x: Array, /, bits: int) -> Quantized:
    """Return ``x`` in codes of ``bits`` bits.

    With ``scale = (max - min) / (2**bits - 1)`` of a block, ``code = round((x - min) / scale)``, a half to even, so
    that ``|x - dequantize(quantize(x))| <= scale / 2`` up to rounding. A constant block comes back exactly.

    Parameters
    ----------
    x
        ``(..., n)``, real floating-point, ``n >= 1``.
    bits
        8 or 4.

    Raises
    ------
    TypeError, ValueError
        If an argument is none of the above.
    """
    ops = ops_for(x)
    xp = ops.xp
    check_floating("x", x, xp)
    check_choice("bits", bits, BITS)
    if x.ndim < 1 or x.shape[-1] < 1:
        raise ValueError(f"x must not be empty along its last axis, got shape {tuple(x.shape)}")
    codes, minimum, scale = _encoded(to_compute(x, ops), bits, ops)
    return Quantized(codes, minimum, scale, bits, x.shape[-1])


def dequantize(quantized: Quantized, /) -> Array:
    """Return the numbers that ``quantized`` stands for, ``(..., n)`` in the dtype of its scale."""
    check_kind("quantized", quantized, Quantized, "numbers in codes")
    ops = ops_for(quantized.codes)
    xp, codes, size = ops.xp, quantized.codes, quantized.size
    if quantized.bits == 4:
        pairs = xp.stack([codes >> 4, codes & 15], axis=-1)
        codes = xp.reshape(pairs, (*codes.shape[:-1], 2 * codes.shape[-1]))[..., :size]
    values = xp.astype(codes, quantized.scale.dtype)
    if size <= BLOCK:
        return _decoded(values, quantized.minimum, quantized.scale, ops)
    # Whole blocks, and what is left: a scale for each number would be as much to read as the numbers.
    whole, lead = size // BLOCK, codes.shape[:-1]
    blocks = xp.reshape(values[..., : whole * BLOCK], (*lead, whole, BLOCK))
    scales = (quantized.minimum[..., :whole, None], quantized.scale[..., :whole, None])
    numbers = xp.reshape(_decoded(blocks, *scales, ops), (*lead, whole * BLOCK))
    if size % BLOCK == 0:
        return numbers
    last = values[..., whole * BLOCK :]
    rest = _decoded(last, quantized.minimum[..., whole:], quantized.scale[..., whole:], ops)
    return xp.concat([numbers, rest], axis=-1)


def _decoded(values: Array, minimum: Array, scale: Array, ops: Ops) -> Array:
    """Return ``minimum + scale * values``; of a block whose span is more than the largest number the halves added."""
    xp, wide = ops.xp, scale > WIDE
    if ops.is_readable(wide) and not bool(xp.any(wide)):
        return values * scale + minimum
    half = xp.where(wide, xp.full_like(scale, 0.5), xp.ones_like(scale))
    return (values * (scale * half) + minimum * half) / half


def _encoded(x: Array, bits: int, ops: Ops) -> tuple[Array, Array, Array]:
    """Return the codes of ``x`` ``(..., n)``, and the minimum and the scale of each block."""
    xp = ops.xp
    size, lead = x.shape[-1], x.shape[:-1]
    # Repeating the last number fills the last block without moving its minimum or maximum.
    padding = -size % BLOCK
    if padding:
        x = xp.concat([x, xp.broadcast_to(x[..., -1:], (*lead, padding))], axis=-1)
    blocks = xp.reshape(x, (*lead, (size + padding) // BLOCK, BLOCK))
    minimum, maximum = xp.min(blocks, axis=-1), xp.max(blocks, axis=-1)
    levels = 2**bits - 1
    # Not divided: compilers turn that into this product, and all libraries are to have the same codes.
    span = maximum - minimum
    scale = span * (1 / levels)
    # Among the least numbers there are not enough between a scale and the next: it is rounded up.
    least = 5e-324 if span.dtype == xp.float64 else LEAST
    small = (span > 0) & (scale < SMALL)
    scale = xp.where(small, scale + least, scale)
    infinite = xp.isinf(span)
    # Powers of two, so that neither the span nor what numbers are multiplied by leaves the range of float32.
    unit = xp.where(infinite, xp.full_like(scale, 0.5), xp.ones_like(scale))
    unit = xp.where(small, xp.full_like(scale, UP), unit)
    if ops.is_readable(unit) and bool(xp.all(unit == 1)):
        differences = blocks - minimum[..., None]
    else:
        scale = xp.where(infinite, maximum * (1 / levels) - minimum * (1 / levels), scale)
        differences = blocks * unit[..., None] - (minimum * unit)[..., None]
    # Compilers make of numbers divided by one and the same number such a product too.
    inverse = 1 / (xp.where(scale > 0, scale, xp.ones_like(scale)) * unit)
    ratio = differences * inverse[..., None]
    # A block with what is not finite has no codes: its minimum or scale is not finite either and tells of it.
    lost = ~(xp.isfinite(minimum) & xp.isfinite(scale))
    if not ops.is_readable(lost) or bool(xp.any(lost)):
        ratio = xp.where(lost[..., None], xp.zeros_like(ratio), ratio)
    codes = xp.astype(xp.clip(xp.round(ratio), 0, levels), xp.uint8)
    codes = xp.reshape(codes, (*lead, size + padding))[..., :size]
    if bits == 4:
        if size % 2:
            codes = xp.concat([codes, xp.zeros_like(codes[..., :1])], axis=-1)
        codes = (codes[..., ::2] << 4) | codes[..., 1::2]
    return codes, minimum, scale


def quantized_shapes(shape: tuple[int, ...], bits: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of the codes and of the scales of an array of ``shape``."""
    *lead, size = shape
    per_byte = 8 // bits
    return (*lead, -(-size // per_byte)), (*lead, -(-size // BLOCK))


def block_multiple(axis: int, bits: int | None) -> int:
    """Return at multiples of what blocks of the dimension that is not ``axis`` have ``bits``-bit codes of their own.

    ``bits`` is ``None`` for numbers that are not kept in codes.
    """
    return 1 if bits is None or axis == -1 else BLOCK
