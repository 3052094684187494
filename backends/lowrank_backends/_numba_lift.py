"""The passes of Trion beside its sums: coefficients of chosen columns, and the step by them, compiled by Numba.

``slots`` ``(r,)`` are the offsets of the chosen columns in a panel; ``entries`` are those of `Tables` (see
`lowrank_backends._numba_rows`).
"""

from __future__ import annotations

import numpy as np

from lowrank_backends._numba_dct import compiled, dct, idct
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
    spare_rows,
)
from lowrank_backends._numba_tables import PANEL, Tables
from lowrank_backends._numba_write import write, writing


@compiled
def dct_columns(rows, more, out, start, stop, across, slots, entries):
    """Write the chosen columns of the DCT of ``rows`` ``(m, n)``, ``more`` added, to ``out`` ``(m, r)``."""
    tables, rank = Tables(*entries), len(slots)
    n, x, whole = tables.n, np.empty(tables.n * PANEL, np.float32), rank // WIDTH * WIDTH
    spare, spare_more = spare_rows(n, across), spare_rows(n, across)
    spare_out = spare_rows(rank, across)
    for row in range(start, stop, PANEL):
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
def lift_rows(w, m, g, coefficients, update, start, stop, across, slots, share, keep, lr, entries):
    """Do ``m <- m + g - share b Q^T`` and ``w <- keep w - lr o Q^T`` to rows ``(m, n)``, ``b, o`` ``(m, r)`` given.

    ``Q`` is the chosen columns. One panel after the other, each in a core's cache, lifts both.
    """
    tables, near = Tables(*entries), writing()
    n, x, one = tables.n, np.empty(tables.n * PANEL, np.float32), np.float32(1)
    spare, spare_more = spare_rows(n, across), spare_rows(n, across)
    low = spare_rows(len(slots), across)
    for row in range(start, stop, PANEL):
        _lift(coefficients, row, stop, x, slots, tables, low, across)
        target, top = begin(m, row, stop, spare, across)
        added, _ = begin(g, row, stop, spare_more, across)
        write(target, added, top, x, one, share, False, near, across)
        end(m, row, stop, spare, across)
        _lift(update, row, stop, x, slots, tables, low, across)
        target, top = begin(w, row, stop, spare, across)
        write(target, target[:0], top, x, keep, lr, False, near, across)
        end(w, row, stop, spare, across)


@compiled
def _lift(values, row, stop, x, slots, tables, spare, across):
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
