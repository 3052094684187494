"""Rows of a matrix into a panel of 16 and back, compiled by Numba.

A matrix whose rows lie one after the other is read eight by eight numbers at a time. Where they lie ``across``, side by
side, which is how columns do, it is given as its transpose, in the order of its memory: there 16 numbers that stand
together are one of each row.
"""

from __future__ import annotations

import numpy as np

from lowrank_backends._numba_dct import compiled
from lowrank_backends._numba_lanes import WIDTH, load, store, transposed
from lowrank_backends._numba_tables import PANEL


@compiled
def eight(rows, place, stride):
    """Return by column the eight numbers from ``place`` on of a row and of the next seven."""
    return transposed((
        load(rows, place), load(rows, place + stride), load(rows, place + 2 * stride),
        load(rows, place + 3 * stride), load(rows, place + 4 * stride), load(rows, place + 5 * stride),
        load(rows, place + 6 * stride), load(rows, place + 7 * stride),
    ))  # fmt: skip


@compiled
def put_eight(rows, place, stride, vectors):
    """Write to eight rows what `eight` reads, here by row."""
    a, b, c, d, e, f, g, h = vectors
    store(rows, place, a)
    store(rows, place + stride, b)
    store(rows, place + 2 * stride, c)
    store(rows, place + 3 * stride, d)
    store(rows, place + 4 * stride, e)
    store(rows, place + 5 * stride, f)
    store(rows, place + 6 * stride, g)
    store(rows, place + 7 * stride, h)


@compiled
def tile(number, n):
    """Return the column and the row, of 16, of tile ``number`` of 8 x 8: in turn four that share cache lines.

    Rows of a power of two of numbers all fall on the same few lines of a cache.
    """
    place, part = number // 4 * 2 * WIDTH, number % 4
    if place + WIDTH == n:
        return place, part * WIDTH
    return place + part % 2 * WIDTH, part // 2 * WIDTH


@compiled
def _stand(n, place):
    """Return where the samples ``place`` to ``place + 7`` stand in a panel: even ones from there on, odd ones back."""
    return place // 2 * PANEL, (n - 1 - place // 2) * PANEL


@compiled
def eight_added(rows, more, place, stride):
    """Return what `eight` does of the sums with the numbers of ``more`` in the same places, if it has rows."""
    if len(more) == 0:
        return eight(rows, place, stride)
    return transposed((
        _added(rows, more, place), _added(rows, more, place + stride),
        _added(rows, more, place + 2 * stride), _added(rows, more, place + 3 * stride),
        _added(rows, more, place + 4 * stride), _added(rows, more, place + 5 * stride),
        _added(rows, more, place + 6 * stride), _added(rows, more, place + 7 * stride),
    ))  # fmt: skip


@compiled
def _added(rows, more, place):
    return load(rows, place) + load(more, place)


@compiled
def read(rows, more, row, x, n, across):
    """Read 16 rows, with those of ``more`` added if it has any, into the panel ``x`` in Makhoul's order."""
    if across:
        for k in range(n):
            place, own = k * rows.shape[1] + row, sample(n, k)
            if len(more) == 0:
                copy(rows, place, x, own)
            else:
                store(x, own, _added(rows, more, place))
                store(x, own + WIDTH, _added(rows, more, place + WIDTH))
        return
    for number in range(n // WIDTH * 2):
        place, half = tile(number, n)
        even, odd = _stand(n, place)
        a, b, c, d, e, f, g, h = eight_added(rows, more, (row + half) * n + place, n)
        store(x, even + half, a)
        store(x, odd + half, b)
        store(x, even + PANEL + half, c)
        store(x, odd - PANEL + half, d)
        store(x, even + 2 * PANEL + half, e)
        store(x, odd - 2 * PANEL + half, f)
        store(x, even + 3 * PANEL + half, g)
        store(x, odd - 3 * PANEL + half, h)


@compiled
def sample(n, place):
    """Return where sample ``place`` stands in a panel."""
    even, odd = _stand(n, place)
    return odd if place % 2 else even


@compiled
def copy(source, place, target, to):
    """Copy 16 numbers that stand together."""
    store(target, to, load(source, place))
    store(target, to + WIDTH, load(source, place + WIDTH))


@compiled
def samples(x, place, half, n):
    """Return by row the samples ``place`` to ``place + 7`` of eight rows of a panel."""
    even, odd = _stand(n, place)
    return transposed((
        load(x, even + half), load(x, odd + half),
        load(x, even + PANEL + half), load(x, odd - PANEL + half),
        load(x, even + 2 * PANEL + half), load(x, odd - 2 * PANEL + half),
        load(x, even + 3 * PANEL + half), load(x, odd - 3 * PANEL + half),
    ))  # fmt: skip


@compiled
def at(x, offsets, k, half):
    """Return by row what eight rows of a panel have at the offsets ``k`` to ``k + 7``."""
    return transposed((
        load(x, offsets[k] + half), load(x, offsets[k + 1] + half),
        load(x, offsets[k + 2] + half), load(x, offsets[k + 3] + half),
        load(x, offsets[k + 4] + half), load(x, offsets[k + 5] + half),
        load(x, offsets[k + 6] + half), load(x, offsets[k + 7] + half),
    ))  # fmt: skip


@compiled
def put_at(x, offsets, k, half, vectors):
    """Write what `at` reads, here by column."""
    a, b, c, d, e, f, g, h = vectors
    store(x, offsets[k] + half, a)
    store(x, offsets[k + 1] + half, b)
    store(x, offsets[k + 2] + half, c)
    store(x, offsets[k + 3] + half, d)
    store(x, offsets[k + 4] + half, e)
    store(x, offsets[k + 5] + half, f)
    store(x, offsets[k + 6] + half, g)
    store(x, offsets[k + 7] + half, h)


@compiled
def spare_rows(n, across):
    """Return an array for 16 rows of ``n`` numbers."""
    return np.empty((n, PANEL) if across else (PANEL, n), np.float32)


@compiled
def begin(rows, row, stop, spare, across):
    """Return an array and the row in it from which there are 16: those from ``row`` on, or a copy with zeros below.

    An array without rows stands for none, and is returned as it is.
    """
    if len(rows) == 0 or row + PANEL <= stop:
        return rows, row
    spare[:] = 0
    if across:
        spare[:, : stop - row] = rows[:, row:stop]
    else:
        spare[: stop - row] = rows[row:stop]
    return spare, 0


@compiled
def end(rows, row, stop, spare, across):
    """Write the copy back, if there is one."""
    if row + PANEL <= stop:
        return
    if across:
        rows[:, row:stop] = spare[:, : stop - row]
    else:
        rows[row:stop] = spare[: stop - row]
