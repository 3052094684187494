"""Transforms of the rows of a matrix, and the sums of their coefficients, by panels, compiled by Numba.

The calls let go of Python's lock, so that threads work side by side, each on rows of its own: ``start`` to ``stop``.
``entries`` are those of `Tables`, a plain tuple: Numba takes a millisecond to find out what a named one holds. Of
``across`` see `lowrank_backends._numba_panels`.
"""

from __future__ import annotations

import numpy as np

from lowrank_backends._numba_dct import compiled, dct, dct_summed, idct
from lowrank_backends._numba_lanes import WIDTH
from lowrank_backends._numba_panels import (
    at,
    begin,
    copy,
    eight,
    end,
    put_at,
    put_eight,
    read,
    sample,
    samples,
    spare_rows,
)
from lowrank_backends._numba_tables import PANEL, Tables


@compiled
def dct_rows(rows, out, start, stop, across, entries):
    """Write the DCT of ``rows`` ``(m, n)`` to ``out``."""
    tables = Tables(*entries)
    n, x = tables.n, np.empty(tables.n * PANEL, np.float32)
    spare = spare_rows(n, across)
    for row in range(start, stop, PANEL):
        source, first = begin(rows, row, stop, spare, across)
        read(source, source[:0], first, x, n, across)
        dct(x, tables)
        target, first = begin(out, row, stop, spare, across)
        if across:
            for k in range(n):
                copy(x, tables.place[k], target, k * target.shape[1] + first)
        else:
            for half in range(0, PANEL, WIDTH):
                for k in range(0, n, WIDTH):
                    put_eight(target, (first + half) * n + k, n, at(x, tables.place, k, half))
        end(out, row, stop, spare, across)


@compiled
def idct_rows(rows, out, start, stop, across, entries):
    """Write the inverse of `dct_rows` to ``out``."""
    tables = Tables(*entries)
    n, x = tables.n, np.empty(tables.n * PANEL, np.float32)
    spare = spare_rows(n, across)
    for row in range(start, stop, PANEL):
        source, first = begin(rows, row, stop, spare, across)
        if across:
            for k in range(n):
                copy(source, k * source.shape[1] + first, x, tables.place[k])
        else:
            for half in range(0, PANEL, WIDTH):
                for k in range(0, n, WIDTH):
                    put_at(x, tables.place, k, half, eight(source, (first + half) * n + k, n))
        idct(x, tables)
        target, first = begin(out, row, stop, spare, across)
        if across:
            for place in range(n):
                copy(x, sample(n, place), target, place * target.shape[1] + first)
        else:
            for half in range(0, PANEL, WIDTH):
                for place in range(0, n, WIDTH):
                    put_eight(target, (first + half) * n + place, n, samples(x, place, half, n))
        end(out, row, stop, spare, across)


@compiled
def dct_sums(rows, more, out, start, stop, across, entries, absolute):
    """Write the sums over columns of the squares, or magnitudes, of the DCT of ``rows`` to ``out`` ``(n,)``.

    ``more`` is added to the rows first, if it has any.
    """
    tables = Tables(*entries)
    n, x, sums = (
        tables.n,
        np.empty(tables.n * PANEL, np.float32),
        np.zeros(tables.n * WIDTH, np.float32),
    )
    spare, spare_more = spare_rows(n, across), spare_rows(n, across)
    for row in range(start, stop, PANEL):
        source, first = begin(rows, row, stop, spare, across)
        added, _ = begin(more, row, stop, spare_more, across)
        read(source, added, first, x, n, across)
        dct_summed(x, tables, sums, absolute)
    for k in range(n):
        place = tables.place[k] // PANEL * WIDTH
        out[k] = sums[place : place + WIDTH].sum()
