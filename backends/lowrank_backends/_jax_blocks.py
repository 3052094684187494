"""What XLA does to rows in a CPU's memory, in the forms that it compiles well.

There XLA makes the flips and joins of Makhoul's algorithm one by one, each at the cost of the FFT or more, while it
gathers as fast as it copies. And what gathers columns it fuses with what comes after, which then walks through memory
in steps of whole rows. So a block of rows that fits the cache is gathered, transformed and gathered once more; and
blocks are parts of a loop, out of which XLA fuses nothing: each function needs little memory beyond its result.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

# Numbers in one block: enough work to be shared among threads, and little beside a large matrix.
_BLOCK = 2**18
# Fewer are one block: no loop.
_SMALL = 2**16


def dct(rows: Array) -> Array:
    """Return the orthonormal DCT-II of every row ``(..., n)``."""
    size = rows.shape[-1]
    index = jnp.arange(size)
    order = jnp.where(index < (size + 1) // 2, 2 * index, 2 * (size - index) - 1)
    # S_k = Re F_k cosine_k + Im F_k sine_k, and of the upper half of the spectrum F_k is the conjugate of F_{n-k}.
    upper = index > size // 2
    places = jnp.where(upper, size - index, index)
    cosine, sine = _phases(index, size, rows.dtype)
    sine = jnp.where(upper, -sine, sine)

    def transform(block: Array) -> Array:
        spectrum = _gather(jnp.fft.rfft(_gather(block, order)), places)
        return spectrum.real * cosine + spectrum.imag * sine

    return _by_blocks(transform, rows, size)


def idct(rows: Array) -> Array:
    """Return the inverse of :func:`dct`."""
    index = jnp.arange(rows.shape[-1])
    return idct_columns(rows, index)


def idct_columns(values: Array, position: Array) -> Array:
    """Return :func:`idct` of rows whose coefficients ``0 .. n - 1`` stand at ``position`` ``(n,)`` of ``values``.

    A position that is not among ``values`` ``(..., r)`` stands for a coefficient of zero.
    """
    size = len(position)
    index = jnp.arange(size)
    order = jnp.where(index % 2 == 0, index // 2, size - 1 - index // 2)
    cosine, sine = _phases(index[: size // 2 + 1], size, values.dtype)
    # What undoes a product with a number of modulus p is one with its conjugate, divided by p^2.
    squared = cosine * cosine + sine * sine
    cosine, sine = cosine / squared, sine / squared
    # S_n is zero.
    mirror = jnp.concatenate([jnp.full_like(position, values.shape[-1], shape=1), position[::-1]])
    ends = position[: len(cosine)], mirror[: len(cosine)]

    def transform(block: Array) -> Array:
        # F_k = (S_k - i S_{n-k}) (cosine_k + i sine_k)
        head, tail = (jnp.take(block, at, axis=-1, mode="fill", fill_value=0) for at in ends)
        spectrum = lax.complex(head * cosine + tail * sine, head * sine - tail * cosine)
        return _gather(jnp.fft.irfft(spectrum, n=size), order)

    return _by_blocks(transform, values, size)


def take(rows: Array, indices: Array) -> Array:
    """Return the columns ``indices`` ``(r,)`` of rows ``(..., n)``."""
    return _by_blocks(lambda block: jnp.take(block, indices, axis=-1), rows, len(indices))


def _gather(rows: Array, places: Array) -> Array:
    return jnp.take(rows, places, axis=-1, mode="clip")


def _phases(index: Array, size: int, dtype: Any) -> tuple[Array, Array]:
    """Return ``sqrt(2/n)`` times cosine and sine of ``pi k / (2n)``, orthonormal at ``k = 0``."""
    angle = index.astype(dtype) * (math.pi / (2 * size))
    scale = jnp.where(index > 0, math.sqrt(2 / size), math.sqrt(1 / size)).astype(dtype)
    return jnp.cos(angle) * scale, jnp.sin(angle) * scale


def _by_blocks(function: Callable[[Array], Array], rows: Array, size: int) -> Array:
    """Return ``function``, of rows ``(k, n)`` to rows ``(k, size)``, of rows ``(..., n)``, block by block."""
    flat = rows.reshape(-1, rows.shape[-1])
    count, numbers = flat.shape[0], flat.shape[0] * max(size, flat.shape[1])
    length = max(1, count // max(2, -(-numbers // _BLOCK)))

    def at(start: Any, length: int, source: Array, result: Array) -> Array:
        block = function(lax.dynamic_slice_in_dim(source, start, length))
        return lax.dynamic_update_slice_in_dim(result, block, start, 0)

    if numbers < _SMALL or count < 2:
        result = function(flat)
    elif size == flat.shape[1]:
        # Each block in the place of the rows it is made of.
        whole, rest = divmod(count, length)
        result = lax.fori_loop(0, whole, lambda i, own: at(i * length, length, own, own), flat)
        result = at(whole * length, rest, result, result) if rest else result
    else:
        # Room begins with the last block. XLA would make room of zeros before all else, and hold it for as long.
        room = jnp.pad(function(flat[-length:]), ((count - length, 0), (0, 0)))
        before = -(-count // length) - 1
        result = lax.fori_loop(0, before, lambda i, made: at(i * length, length, flat, made), room)
    return result.reshape(*rows.shape[:-1], size)
