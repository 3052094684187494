"""Matrices brought near 1 before they are squared: squares of float32 are right from 1e-19 to 1e19 only."""

from __future__ import annotations

from lowrank_core._typing import Array
from lowrank_core.ops.standard import Ops


def scaled_to_one(x: Array, ops: Ops) -> tuple[Array, Array]:
    """Return every matrix of ``x`` divided by a power of two near its largest magnitude, and these, ``(..., 1, 1)``.

    So nothing is rounded. Of zeros the power is 1.
    """
    if 0 in x.shape[-2:]:
        return x, ops.xp.ones((*x.shape[:-2], 1, 1), dtype=x.dtype, device=ops.device_of(x))
    largest = ops.xp.max(ops.xp.abs(x), axis=(-2, -1))[..., None, None]
    largest = ops.xp.where(largest > 0, largest, ops.xp.ones_like(largest))
    exponents = ops.xp.floor(ops.xp.log2(largest))
    powers = ops.xp.pow(ops.xp.full_like(exponents, 2.0), exponents)
    return x / powers, powers
