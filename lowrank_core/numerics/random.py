"""Random numbers that are a function of a key and a counter: the same on every array library and every process.

A stateful generator differs from library to library and has to be carried along. Hashing (key, counter) needs no
state but the key, so a run repeats itself exactly wherever it is resumed.

References
----------
The 32-bit mixing function has the form of MurmurHash3's finaliser (A. Appleby) with the constants of C. Wellons's
"lowbias32", found by searching for low bias between input and output bits.
"""

from __future__ import annotations

import math

from lowrank_core._typing import Array, Device
from lowrank_core.ops.standard import Ops


def mix(x: Array) -> Array:
    """Return a hash of every int32 in ``x``, an array of at least one dimension; arithmetic wraps around."""
    x = x ^ _shift_right(x, 16)
    x = x * 0x7FEB352D
    x = x ^ _shift_right(x, 15)
    x = x * (0x846CA68B - 2**32)
    return x ^ _shift_right(x, 16)


def fold(key: Array, value: int | Array) -> Array:
    """Return a key for ``value`` under ``key`` (int32, of at least one dimension), unrelated to those of others."""
    if isinstance(value, int):
        value = _as_int32(value)  # counts of steps may be larger
    return mix(key ^ mix(key + value))


def make_key(seed: int, stream: int, shape: tuple[int, ...], ops: Ops, device: Device) -> Array:
    """Return one int32 key for each entry of ``shape`` (at least one), all different."""
    count = math.prod(shape)
    entries = ops.xp.arange(count, dtype=ops.xp.int32, device=device)
    key = ops.xp.full((count,), _as_int32(seed), dtype=ops.xp.int32, device=device)
    keys = fold(fold(key, _as_int32(stream)), entries)
    return ops.xp.reshape(keys, shape or (1,))


def uniform(key: Array, count: int, ops: Ops, like: Array) -> Array:
    """Return numbers in (0, 1), ``(..., count)`` for keys ``(...)``, in the dtype of ``like``."""
    counter = ops.xp.arange(count, dtype=ops.xp.int32, device=ops.device_of(like))
    bits = fold(key[..., None], counter)
    # 23 bits and a half: every value is exact in float32, and neither 0 nor 1 is among them.
    return (ops.xp.astype(_shift_right(bits, 9), like.dtype) + 0.5) * 2.0**-23


def normal(key: Array, count: int, ops: Ops, like: Array) -> Array:
    """Return standard normal numbers, ``(..., count)`` for keys ``(...)``, by Box and Muller's transform."""
    radius = ops.xp.sqrt(-2 * ops.xp.log(uniform(fold(key, 1), count, ops, like)))
    return radius * ops.xp.cos(2 * math.pi * uniform(fold(key, 2), count, ops, like))


def _shift_right(x: Array, by: int) -> Array:
    """Return a logical shift: that of a signed integer would fill with its sign."""
    return (x >> by) & (2 ** (32 - by) - 1)


def _as_int32(value: int) -> int:
    return (value + 2**31) % 2**32 - 2**31
