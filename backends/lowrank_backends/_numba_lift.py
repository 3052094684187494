"""The passes of Trion beside its sums: coefficients of chosen columns, and the step by them, compiled by Numba.

``slots`` ``(r,)`` are the offsets of the chosen columns in a panel; ``entries`` are those of `Tables` (see
`lowrank_backends._numba_rows`).
"""

from __future__ import annotations

import numpy as np

from lowrank_backends._numba_dct import compiled, dct, idct
from lowrank_backends._numba_lanes import WIDTH
from lowrank_backends._numba_panels import at, begin, eight, end, put_at, put_eight, read
from lowrank_backends._numba_tables import PANEL, Tables
from lowrank_backends._numba_write import write, writing


@compiled
def dct_columns(rows, more, out, slots, entries):
    """Write the chosen columns of the DCT of ``rows`` ``(m, n)``, ``more`` added, to ``out`` ``(m, r)``."""
    tables, rank = Tables(*entries), len(slots)
    n, x = tables.n, np.empty(tables.n * PANEL, np.float32)
    spare, spare_out = np.empty((2, PANEL, n), np.float32), np.empty((PANEL, rank), np.float32)
    whole = rank // WIDTH * WIDTH
    for row in range(0, len(rows), PANEL):
        (source, first), (added, _) = begin(rows, row, spare[0]), begin(more, row, spare[1])
        read(source, added, first, x, n)
        dct(x, tables)
        target, first = begin(out, row, spare_out)
        for half in range(0, PANEL, WIDTH):
            for p in range(0, whole, WIDTH):
                put_eight(target, (first + half) * rank + p, rank, at(x, slots, p, half))
        for p in range(whole, rank):
            target[first : first + PANEL, p] = x[slots[p] : slots[p] + PANEL]
        end(out, row, spare_out)


@compiled
def lift_rows(w, m, g, coefficients, update, slots, share, keep, lr, entries):
    """Do ``m <- m + g - share b Q^T`` and ``w <- keep w - lr o Q^T`` to rows ``(m, n)``, ``b, o`` ``(m, r)`` given.

    ``Q`` is the chosen columns. One panel after the other, each in a core's cache, lifts both.
    """
    tables, near = Tables(*entries), writing()
    n, x, one = tables.n, np.empty(tables.n * PANEL, np.float32), np.float32(1)
    spare = np.empty((3, PANEL, n), np.float32)
    low = np.empty((PANEL, len(slots)), np.float32)
    for row in range(0, len(w), PANEL):
        _lift(coefficients, row, x, slots, tables, low)
        (target, top), (added, _) = begin(m, row, spare[0]), begin(g, row, spare[1])
        write(target, added, top, x, one, share, False, near)
        end(m, row, spare[0])
        _lift(update, row, x, slots, tables, low)
        target, top = begin(w, row, spare[2])
        write(target, target[:0], top, x, keep, lr, False, near)
        end(w, row, spare[2])


@compiled
def _lift(values, row, x, slots, tables, spare):
    """Write to the panel ``x`` the samples of 16 rows whose coefficients are ``values`` at the slots, else zero."""
    rank = len(slots)
    source, first = begin(values, row, spare)
    whole = rank // WIDTH * WIDTH
    x[:] = 0
    for half in range(0, PANEL, WIDTH):
        for p in range(0, whole, WIDTH):
            put_at(x, slots, p, half, eight(source, (first + half) * rank + p, rank))
    for p in range(whole, rank):
        x[slots[p] : slots[p] + PANEL] = source[first : first + PANEL, p]
    idct(x, tables)
