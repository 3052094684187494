"""Moving rows of a matrix by the samples of a panel, compiled by Numba.

A panel goes row by row into a block that stays near, and from there to the rows in the order of memory: rows a power of
two apart all fall on the same few lines of a cache, and there are several arrays of them.
"""

from __future__ import annotations

import numpy as np

from lowrank_backends._numba_dct import compiled
from lowrank_backends._numba_lanes import WIDTH, if_positive, load, splat, store
from lowrank_backends._numba_panels import put_eight, sample, samples, tile
from lowrank_backends._numba_tables import PANEL

# Columns of a block, and from one of its rows to the next: no power of two.
_COLUMNS = 256
_STRIDE = _COLUMNS + PANEL


@compiled
def writing():
    """Return memory for the blocks of `write`."""
    return np.empty(PANEL * _STRIDE, np.float32)


@compiled
def write(w, more, row, x, keep, rate, signs, near, across):
    """Do ``w <- keep * w + more - rate * x`` to 16 rows, or by the signs of the samples in the panel ``x``.

    ``more`` may have no rows, and is nothing then; ``near`` is what `writing` returns.
    """
    if across:
        n, stride = w.shape
        for k in range(n):
            for half in range(0, PANEL, WIDTH):
                place = k * stride + row + half
                _move(w, more, place, load(x, sample(n, k) + half), keep, rate, signs)
        return
    n = w.shape[1]
    for start in range(0, n, _COLUMNS):
        width = min(_COLUMNS, n - start)
        for number in range(width // WIDTH * 2):
            place, half = tile(number, width)
            put_eight(near, half * _STRIDE + place, _STRIDE, samples(x, start + place, half, n))
        for own in range(PANEL):
            for k in range(0, width, WIDTH):
                place, update = (row + own) * n + start + k, load(near, own * _STRIDE + k)
                _move(w, more, place, update, keep, rate, signs)


@compiled
def _move(w, more, place, update, keep, rate, signs):
    if signs:
        update = _sign(update)
    moved = load(w, place) * keep - update * rate
    if len(more) > 0:
        moved = moved + load(more, place)
    store(w, place, moved)


@compiled
def _sign(x):
    one, zero = splat(np.float32(1)), splat(np.float32(0))
    return if_positive(x, one, if_positive(zero - x, zero - one, zero))
