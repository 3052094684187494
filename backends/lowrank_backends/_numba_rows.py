"""Transforms of the rows of a matrix, and the sums of their coefficients, by panels, compiled by Numba.

The calls let go of Python's lock, so that threads work side by side, each on rows of its own. ``entries`` are those of
`Tables`, a plain tuple: Numba takes a millisecond to find out what a named one holds.
"""

from __future__ import annotations

import numpy as np

from lowrank_backends._numba_dct import compiled, dct, dct_summed, idct
from lowrank_backends._numba_lanes import WIDTH
from lowrank_backends._numba_panels import at, begin, eight, end, put_at, put_eight, read, samples
from lowrank_backends._numba_tables import PANEL, Tables


@compiled
def dct_rows(rows, out, entries):
    """Write the DCT of ``rows`` ``(m, n)`` to ``out``."""
    tables = Tables(*entries)
    n, x = tables.n, np.empty(tables.n * PANEL, np.float32)
    spare = np.empty((PANEL, n), np.float32)
    for row in range(0, len(rows), PANEL):
        source, first = begin(rows, row, spare)
        read(source, source[:0], first, x, n)
        dct(x, tables)
        target, first = begin(out, row, spare)
        for half in range(0, PANEL, WIDTH):
            for k in range(0, n, WIDTH):
                put_eight(target, (first + half) * n + k, n, at(x, tables.place, k, half))
        end(out, row, spare)


@compiled
def idct_rows(rows, out, entries):
    """Write the inverse of `dct_rows` to ``out``."""
    tables = Tables(*entries)
    n, x = tables.n, np.empty(tables.n * PANEL, np.float32)
    spare = np.empty((PANEL, n), np.float32)
    for row in range(0, len(rows), PANEL):
        source, first = begin(rows, row, spare)
        for half in range(0, PANEL, WIDTH):
            for k in range(0, n, WIDTH):
                put_at(x, tables.place, k, half, eight(source, (first + half) * n + k, n))
        idct(x, tables)
        target, first = begin(out, row, spare)
        for half in range(0, PANEL, WIDTH):
            for place in range(0, n, WIDTH):
                put_eight(target, (first + half) * n + place, n, samples(x, place, half, n))
        end(out, row, spare)


@compiled
def dct_sums(rows, more, out, entries, absolute):
    """Write the sums over columns of the squares, or magnitudes, of the DCT of ``rows`` to ``out`` ``(n,)``.

    ``more`` is added to the rows first, if it has any.
    """
    tables = Tables(*entries)
    x, spare = np.empty(tables.n * PANEL, np.float32), np.empty((2, PANEL, tables.n), np.float32)
    sums = np.zeros(tables.n * WIDTH, np.float32)
    for row in range(0, len(rows), PANEL):
        (source, first), (added, _) = begin(rows, row, spare[0]), begin(more, row, spare[1])
        read(source, added, first, x, tables.n)
        dct_summed(x, tables, sums, absolute)
    for k in range(tables.n):
        place = tables.place[k] // PANEL * WIDTH
        out[k] = sums[place : place + WIDTH].sum()
