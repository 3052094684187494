"""The last pass of Trion: momentum and parameter by what a step found on its columns, compiled by Numba."""

from __future__ import annotations

import numpy as np

from lowrank_backends._numba_dct import compiled
from lowrank_backends._numba_panels import begin, end, spare_rows
from lowrank_backends._numba_rows import lift
from lowrank_backends._numba_tables import PANEL, Tables
from lowrank_backends._numba_write import write, writing


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
        lift(coefficients, row, stop, x, slots, tables, low, across)
        target, top = begin(m, row, stop, spare, across)
        added, _ = begin(g, row, stop, spare_more, across)
        write(target, added, top, x, one, share, False, near, across)
        end(m, row, stop, spare, across)
        lift(update, row, stop, x, slots, tables, low, across)
        target, top = begin(w, row, stop, spare, across)
        write(target, target[:0], top, x, keep, lr, False, near, across)
        end(w, row, stop, spare, across)
