"""Numbers in 8 bits as float32 and back, compiled by Numba: to the last bit as `lowrank_core.quantize` has them.

Lines are those along which blocks run: rows ``(m, r)``, or, where rows lie ``across``, what is kept of each column
``(r, m)``.
"""

from __future__ import annotations

import numpy as np

from lowrank_backends._numba_dct import compiled
from lowrank_core.numerics.quantization import BLOCK, LEAST, SMALL, UP, WIDE

_LEVEL = np.float32(1 / 255)
_LEAST, _SMALL, _UP = np.float32(LEAST), np.float32(SMALL), np.float32(UP)
_NAN = np.float32(np.nan)


@compiled
def decoded(codes, minimum, scale, start, stop, across):
    """Return rows ``start`` to ``stop`` as numbers, laid out as the codes; of lines that are cut they begin a block."""
    first, begin, lines, size = _part(codes, start, stop, across)
    out = np.empty((lines, size), np.float32)
    for line in range(lines):
        for k in range(0, size, BLOCK):
            block = (begin + k) // BLOCK
            step, low = scale[first + line, block], minimum[first + line, block]
            # Of a block whose span is more than the largest number, the halves are added.
            half = np.float32(0.5 if step > WIDE else 1)
            for place in range(k, min(k + BLOCK, size)):
                code = np.float32(codes[first + line, begin + place])
                out[line, place] = (code * (step * half) + low * half) / half
    return out


@compiled
def encode(numbers, codes, minimum, scale, start, stop, across):
    """Write the numbers that `decoded` returned as codes."""
    first, begin, lines, size = _part(codes, start, stop, across)
    for line in range(lines):
        for k in range(0, size, BLOCK):
            block, end = (begin + k) // BLOCK, min(k + BLOCK, size)
            low, step, unit = _scales(numbers[line, k:end])
            minimum[first + line, block] = low
            scale[first + line, block] = step
            inverse = np.float32(1) / ((step if step > 0 else np.float32(1)) * unit)
            for place in range(k, end):
                ratio = (numbers[line, place] * unit - low * unit) * inverse
                # What is not finite has no code.
                code = np.rint(ratio) if np.isfinite(ratio) else np.float32(0)
                codes[first + line, begin + place] = np.uint8(min(max(code, 0), 255))


@compiled
def _part(codes, start, stop, across):
    """Return where lines and their numbers begin, and how many there are of each."""
    if across:
        return 0, start, codes.shape[0], stop - start
    return start, 0, stop - start, codes.shape[1]


@compiled
def _scales(x):
    """Return minimum and scale of a block, and the power of two that numbers are multiplied by to be encoded."""
    low, high = x[0], x[0]
    for number in x:
        if number != number:
            return _NAN, _NAN, np.float32(1)
        low, high = min(low, number), max(high, number)
    span = high - low
    scale = span * _LEVEL
    if np.isinf(span):
        return low, high * _LEVEL - low * _LEVEL, np.float32(0.5)
    if span > 0 and scale < _SMALL:
        return low, scale + _LEAST, _UP
    return low, scale, np.float32(1)
