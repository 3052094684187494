"""All that follows the choice of columns in a step of DCT-AdamW, by panels of rows, compiled by Numba.

From the gradient to the weight a panel stays in a core's cache.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from lowrank_backends._numba_codes import decoded, encode
from lowrank_backends._numba_dct import compiled, dct, idct
from lowrank_backends._numba_lanes import WIDTH, if_positive, load, splat, sqrt, store
from lowrank_backends._numba_panels import begin, eight, end, put_eight, read, spare_rows
from lowrank_backends._numba_tables import PANEL, Tables
from lowrank_backends._numba_write import write, writing

#: What becomes of the other coefficients, by number.
DISCARD, SIGN, NORMALIZED, BOUNDED = range(4)


class Job(NamedTuple):
    """A `lowrank_core.ops.rows.RowStep` of one matrix and the `RowWrite` that goes with it; numbers are float32."""

    #: By chosen column, ``(r,)``: its offset in a panel, the column of its moments before or -1, and what
    #: `RowStep.eps` and `RowStep.shares` say.
    slots: Any
    before: Any
    eps: Any
    shares: Any
    #: By place in a panel, ``(n,)``. ``NORMALIZED``: what to multiply by, 1 where the column is chosen. ``BOUNDED``: -1
    #: there, else its share of the root of the second moment. Else: 1 there, and 0.
    column: Any
    rest: int
    factored: bool
    #: Of the two moments and the mean squares of rows: what they decay by, the share of what comes, and what corrects
    #: for their start at zero.
    decays: tuple[Any, Any, Any]
    fresh: tuple[Any, Any, Any]
    upward: tuple[Any, Any, Any]
    scale: Any
    plain_eps: Any
    lr: Any
    #: What a parameter is multiplied by before the step.
    keep: Any


@compiled
def step_coded_rows(w, g, codes, minimum, scale, energy, kept, start, stop, across, asked, entries):
    """Do `step_rows` with a first moment in codes (see `lowrank_backends._numba_codes`), the second factored."""
    first = decoded(codes, minimum, scale, start, stop, across)
    step_rows(w, g, first, first, energy, kept, start, stop, across, asked, entries, start)
    encode(first, codes, minimum, scale, start, stop, across)


@compiled
def step_rows(w, g, first, second, energy, kept, start, stop, across, asked, entries, begun=0):
    """Step rows ``start`` to ``stop`` of ``w`` ``(m, n)`` by ``g``, and those of the moments ``(m, r)``, in place.

    ``kept`` are the panels of the coefficients of ``g``, which are used up, if it has any. Not looked at are
    ``second`` where it is factored, nor ``energy`` ``(m,)`` elsewhere. ``asked`` and ``entries`` are those of `Job` and
    `Tables` (see `lowrank_backends._numba_rows`). The moments' rows are those from ``begun`` on.
    """
    job, tables = Job(*asked), Tables(*entries)
    n, rank = tables.n, len(job.slots)
    x, spare = np.empty(n * PANEL, np.float32), spare_rows(n, across)
    left = np.empty(n * PANEL if job.rest == SIGN else 0, np.float32)
    old, new = np.empty((2, rank * WIDTH), np.float32), np.empty((2, rank * WIDTH), np.float32)
    spare1, spare2 = spare_rows(rank, across), spare_rows(rank, across)
    root, none, near = np.zeros(PANEL, np.float32), g[:0], writing()
    for row in range(start, stop, PANEL):
        if len(kept) > 0:
            x = kept[row // PANEL]
        else:
            source, top = begin(g, row, stop, spare, across)
            read(source, none, top, x, n, across)
            dct(x, tables)
        if job.factored:
            _roots(x, energy, row, stop, job, root)
        if job.rest == SIGN:
            left[:] = x
            for slot in job.slots:
                store(left, slot, splat(np.float32(0)))
                store(left, slot + WIDTH, splat(np.float32(0)))
        moment1, top1 = begin(first, row - begun, stop - begun, spare1, across)
        moment2, top2 = moment1, top1
        if not job.factored:
            moment2, top2 = begin(second, row - begun, stop - begun, spare2, across)
        for half in range(0, PANEL, WIDTH):
            _columns(moment1, top1 + half, old[0], across)
            if not job.factored:
                _columns(moment2, top2 + half, old[1], across)
            _adam(x, old, new, load(root, half), half, job)
            _put_columns(moment1, top1 + half, new[0], across)
            if not job.factored:
                _put_columns(moment2, top2 + half, new[1], across)
            _others(x, load(root, half), half, job)
        end(first, row - begun, stop - begun, spare1, across)
        if not job.factored:
            end(second, row - begun, stop - begun, spare2, across)
        target, top = begin(w, row, stop, spare, across)
        if job.rest == SIGN:
            idct(left, tables)
            write(target, none, top, left, job.keep, job.lr * job.scale, True, near, across)
        idct(x, tables)
        keep = np.float32(1) if job.rest == SIGN else job.keep
        write(target, none, top, x, keep, job.lr, False, near, across)
        end(w, row, stop, spare, across)


@compiled
def _columns(rows, row, out, across):
    """Read eight rows column by column."""
    if across:
        for p in range(rows.shape[0]):
            store(out, p * WIDTH, load(rows, p * rows.shape[1] + row))
        return
    rank = rows.shape[1]
    whole = rank // WIDTH * WIDTH
    for p in range(0, whole, WIDTH):
        put_eight(out, p * WIDTH, WIDTH, eight(rows, row * rank + p, rank))
    for p in range(whole, rank):
        for lane in range(WIDTH):
            out[p * WIDTH + lane] = rows[row + lane, p]


@compiled
def _put_columns(rows, row, columns, across):
    """Write what `_columns` reads."""
    if across:
        for p in range(rows.shape[0]):
            store(rows, p * rows.shape[1] + row, load(columns, p * WIDTH))
        return
    rank = rows.shape[1]
    whole = rank // WIDTH * WIDTH
    for p in range(0, whole, WIDTH):
        put_eight(rows, row * rank + p, rank, eight(columns, p * WIDTH, WIDTH))
    for p in range(whole, rank):
        for lane in range(WIDTH):
            rows[row + lane, p] = columns[p * WIDTH + lane]


@compiled
def _roots(x, energy, row, stop, job, root):
    """Bring the mean squares of 16 rows up to date, and write their roots to ``root``."""
    for half in range(0, PANEL, WIDTH):
        total = splat(np.float32(0))
        for place in range(half, len(x), PANEL):
            a = load(x, place)
            total = total + a * a
        store(root, half, total / np.float32(len(x) // PANEL))
    for lane in range(min(PANEL, stop - row)):
        mean = job.decays[2] * energy[row + lane] + job.fresh[2] * root[lane]
        energy[row + lane] = mean
        root[lane] = np.sqrt(mean * job.upward[2])


@compiled
def _adam(x, old, new, root, half, job):
    """Do Adam's step on the chosen columns of eight rows of a panel, and put it in the coefficients' place.

    The moments are read where their columns stood.
    """
    for p in range(len(job.slots)):
        slot, before = job.slots[p] + half, job.before[p]
        a, first, second = load(x, slot), splat(np.float32(0)), splat(np.float32(0))
        if before >= 0:
            first = load(old[0], before * WIDTH) * job.decays[0]
            second = load(old[1], before * WIDTH) * job.decays[1]
        first = first + a * job.fresh[0]
        store(new[0], p * WIDTH, first)
        if job.factored:
            divisor = root * job.shares[p] + splat(job.eps[p])
        else:
            second = second + a * a * job.fresh[1]
            store(new[1], p * WIDTH, second)
            divisor = sqrt(second * job.upward[1]) + splat(job.eps[p])
        store(x, slot, first * job.upward[0] / divisor)


@compiled
def _others(x, root, half, job):
    """Make of the coefficients of eight rows outside the chosen columns what the policy says."""
    zero, one = splat(np.float32(0)), splat(np.float32(1))
    for slot in range(len(job.column)):
        column, place = job.column[slot], slot * PANEL + half
        if job.rest == NORMALIZED:
            store(x, place, load(x, place) * column)
        elif column == 0:
            store(x, place, zero)
        elif job.rest == BOUNDED and column > 0:
            divisor = root * column + splat(job.plain_eps)
            # Without an `eps`, where a row is all zeros so is its root.
            ratio = load(x, place) / if_positive(divisor, divisor, one)
            store(x, place, ratio * job.scale / sqrt(ratio * ratio + one))
