"""Rounding float32 results to narrower dtypes without losing what is too small to be seen at once.

Rounding to nearest loses every change below half a unit of the last place: a bfloat16 second moment times 0.999 is
itself again, and never decays. Rounding up or down at random, with odds by distance, is right on average.
"""

from __future__ import annotations

import math

from lowrank_core._typing import Array, DType
from lowrank_core.numerics.random import uniform
from lowrank_core.ops.standard import Ops

# Bits of precision less than float32's 24, which is the distance between their units of the last place.
_COARSER_BITS = {"bfloat16": 16, "float16": 13}


def round_stochastically(x: Array, dtype: DType, key: Array, ops: Ops) -> Array:
    """Return float32 ``x`` as ``dtype``, each number rounded up or down with odds by distance.

    Parameters
    ----------
    x
        Any shape, float32.
    dtype
        bfloat16 or float16.
    key
        ``(1,)`` int32: the same key gives the same rounding.
    ops
        Operations to use.

    Returns
    -------
    Array
        Shape of ``x``; its expected value is ``x`` wherever ``dtype`` has normal numbers.
    """
    xp = ops.xp
    name = next(name for name in _COARSER_BITS if dtype == getattr(xp, name, None))
    magnitude = xp.abs(x)
    infinity = xp.full_like(magnitude, xp.inf)
    # The spacing of float32 at x, widened to that of dtype: a power of two, so all that follows is exact.
    unit = (xp.nextafter(magnitude, infinity) - magnitude) * 2.0 ** _COARSER_BITS[name]
    unit = xp.maximum(unit, xp.full_like(unit, 2.0**-120))
    scaled = x / unit
    below = xp.floor(scaled)
    draws = xp.reshape(uniform(key, math.prod(x.shape), ops, x), x.shape)
    up = ops.astype(draws < scaled - below, x.dtype)
    rounded = (below + up) * unit
    return ops.astype(xp.where(xp.isfinite(unit), rounded, x), dtype)
