"""Numbers of the host and rounding in Triton kernels: the draws are those of `lowrank_core.numerics`."""

import triton
import triton.language as tl


@triton.jit
def number(value, POINTER: tl.constexpr):
    """Return a number of the host in float32, or the one that a pointer leads to."""
    if POINTER:
        found = tl.load(value).to(tl.float32)
    else:
        found = value
    return found


@triton.jit
def mix(x):
    """Return a hash of 32 bits: `lowrank_core.numerics.random.mix`."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def narrow(x, kind: tl.constexpr, key, index, RANDOM: tl.constexpr):
    """Return ``x`` as ``kind``: to nearest or, if bfloat16 and ``RANDOM``, up or down with odds by distance.

    Number ``index`` under ``key`` is rounded as `lowrank_core.numerics.rounding.round_stochastically` does it.
    """
    if RANDOM and kind == tl.bfloat16:
        own = key.to(tl.uint32, bitcast=True)
        drawn = mix(own ^ mix(own + index.to(tl.uint32))) >> 9
        draw = (drawn.to(tl.float32) + 0.5) * 1.1920928955078125e-07
        bits = x.to(tl.uint32, bitcast=True)
        share = (bits & 0xFFFF).to(tl.float32) * 1.52587890625e-05
        # Odds are those of going up: of a negative number that is towards zero.
        away = tl.where(x < 0, draw >= 1.0 - share, draw < share)
        moved = (bits & 0xFFFF0000) + tl.where(away, 0x10000, 0).to(tl.uint32)
        # What is infinite or no number has no neighbours.
        kept = tl.where((bits & 0x7F800000) == 0x7F800000, bits, moved)
        result = kept.to(tl.float32, bitcast=True).to(tl.bfloat16)
    else:
        result = x.to(kind)
    return result


@triton.jit
def move_row(
    x, start, q, n: tl.constexpr, even, odd, mask, keep, rate, key, drawn, RANDOM: tl.constexpr
):
    """Do ``x <- keep * x - rate * u`` to a row, the two tiles of samples of ``u`` given; draws begin at ``drawn``."""
    kind: tl.constexpr = x.dtype.element_ty
    back = (n - 1) - 2 * q
    to_even = x + start + 2 * q
    to_odd = x + start + back
    xe = tl.load(to_even, mask=mask, other=0.0).to(tl.float32) * keep - rate * even
    xo = tl.load(to_odd, mask=mask, other=0.0).to(tl.float32) * keep - rate * odd
    tl.store(to_even, narrow(xe, kind, key, drawn + 2 * q, RANDOM), mask=mask)
    tl.store(to_odd, narrow(xo, kind, key, drawn + back, RANDOM), mask=mask)
