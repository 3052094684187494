"""Transforms of the rows of a matrix, and the sums of their coefficients, by panels, compiled by Numba.

The calls let go of Python's lock, so that threads work side by side, each on rows of its own: ``start`` to ``stop``.
``slots`` ``(r,)`` are the offsets of columns in a panel; those of all are `Tables.place`. ``entries`` are those of
`Tables`, a plain tuple: Numba takes a millisecond to find out what a named one holds. Of ``across`` see
`lowrank_backends._numba_panels`.
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
def dct_columns(rows, more, kept, out, start, stop, across, slots, entries):
    """Write the chosen columns of the DCT of ``rows`` ``(m, n)``, ``more`` added, to ``out`` ``(m, r)``.

    They are read of the panels ``kept``, if there are any.
    """
    tables, rank = Tables(*entries), len(slots)
    n, x, whole = tables.n, np.empty(tables.n * PANEL, np.float32), rank // WIDTH * WIDTH
    spare, spare_more = spare_rows(n, across), spare_rows(n, across)
    spare_out = spare_rows(rank, across)
    for row in range(start, stop, PANEL):
        if len(kept) > 0:
            x = kept[row // PANEL]
        else:
            source, first = begin(rows, row, stop, spare, across)
            added, _ = begin(more, row, stop, spare_more, across)
            read(source, added, first, x, n, across)
            dct(x, tables)
        target, first = begin(out, row, stop, spare_out, across)
        if across:
            for p in range(rank):
                copy(x, slots[p], target, p * target.shape[1] + first)
        else:
            for half in range(0, PANEL, WIDTH):
                for p in range(0, whole, WIDTH):
                    put_eight(target, (first + half) * rank + p, rank, at(x, slots, p, half))
            for p in range(whole, rank):
                target[first : first + PANEL, p] = x[slots[p] : slots[p] + PANEL]
        end(out, row, stop, spare_out, across)


@compiled
def lift(values, row, stop, x, slots, tables, spare, across):
    """Write to the panel ``x`` the samples of 16 rows whose coefficients are ``values`` at the slots, else zero."""
    rank = len(slots)
    source, first = begin(values, row, stop, spare, across)
    whole = rank // WIDTH * WIDTH
    x[:] = 0
    if across:
        for p in range(rank):
            copy(source, p * source.shape[1] + first, x, slots[p])
    else:
        for half in range(0, PANEL, WIDTH):
            for p in range(0, whole, WIDTH):
                put_at(x, slots, p, half, eight(source, (first + half) * rank + p, rank))
        for p in range(whole, rank):
            x[slots[p] : slots[p] + PANEL] = source[first : first + PANEL, p]
    idct(x, tables)


@compiled
def idct_rows(rows, out, start, stop, across, entries):
    """Write the inverse DCT of ``rows`` ``(m, n)`` to ``out``."""
    tables = Tables(*entries)
    n, x = tables.n, np.empty(tables.n * PANEL, np.float32)
    spare = spare_rows(n, across)
    for row in range(start, stop, PANEL):
        lift(rows, row, stop, x, tables.place, tables, spare, across)
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
def dct_sums(rows, more, kept, out, start, stop, across, entries, absolute):
    """Write the sums over columns of the squares, or magnitudes, of the DCT of ``rows`` to ``out`` ``(n,)``.

    ``more`` is added to the rows first, if it has any. ``kept`` gets the coefficients, a panel each, if it has any.
    """
    tables = Tables(*entries)
    n, x = tables.n, np.empty(tables.n * PANEL, np.float32)
    sums, keep = np.zeros(n * WIDTH, np.float32), len(kept) > 0
    spare, spare_more = spare_rows(n, across), spare_rows(n, across)
    for row in range(start, stop, PANEL):
        if keep:
            x = kept[row // PANEL]
        source, first = begin(rows, row, stop, spare, across)
        added, _ = begin(more, row, stop, spare_more, across)
        read(source, added, first, x, n, across)
        dct_summed(x, tables, sums, absolute, keep)
    for k in range(n):
        place = tables.place[k] // PANEL * WIDTH
        out[k] = sums[place : place + WIDTH].sum()
