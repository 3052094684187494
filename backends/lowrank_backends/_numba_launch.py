"""Calls of the compiled panels on PyTorch's CPU tensors: their memory, and what a step is made of, for Numba."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowrank_backends import _numba_lift, _numba_rows, _numba_step
from lowrank_backends._numba_tables import PANEL, Tables, factors, tables
from lowrank_backends._torch_memory import empty
from lowrank_backends._torch_threads import for_each
from lowrank_core.ops.lifts import RowLift
from lowrank_core.ops.rows import ROW_RESTS, RowMoments, RowStep, RowWrite

__all__ = ["dct", "dct_columns", "dct_sums", "factors", "idct", "lift_rows", "step_rows"]

# Numbers in the rows of one call: enough that it costs nothing beside them, few enough that threads have their share.
_CALL = 2**19


def _ranges(rows: int, n: int) -> list[slice]:
    """Return slices of ``rows`` rows of ``n`` numbers, whole panels but for the last."""
    length = max(1, _CALL // (n * PANEL)) * PANEL
    return [slice(start, min(start + length, rows)) for start in range(0, rows, length)]


def _lies_across(x: Tensor) -> bool:
    """Return whether the rows of a matrix that the panels take lie side by side in memory, as columns do."""
    return not x.is_contiguous()


def _numbers(x: Tensor) -> Any:
    return x.detach().numpy()


def _rows(x: Tensor, across: bool) -> Any:
    """Return the numbers of rows in the order of their memory."""
    return _numbers(x.mT if across else x)


def _alike(x: Tensor, columns: int, across: bool) -> Tensor:
    """Return memory for as many rows as ``x`` has, laid out as these are."""
    if across:
        return empty((columns, len(x)), x.dtype).mT
    return empty((len(x), columns), x.dtype)


def dct(x: Tensor) -> Tensor:
    """Return the orthonormal DCT-II of rows ``(m, n)``."""
    return _columns(x, tables(x.shape[-1]).place, None)


def idct(coefficients: Tensor) -> Tensor:
    """Return the inverse of :func:`dct`."""
    x, held = coefficients, tuple(tables(coefficients.shape[-1]))
    across = _lies_across(x)
    out = _alike(x, x.shape[-1], across)
    source, target = _rows(x, across), _rows(out, across)

    def work(own: slice) -> None:
        _numba_rows.idct_rows(source, target, own.start, own.stop, across, held)

    for_each(work, _ranges(*x.shape))
    return out


def dct_sums(x: Tensor, norms: Sequence[str], plus: Tensor | None = None) -> Tensor:
    """Return the sums over the columns of the DCT of rows ``(m, n)``, ``plus`` added: ``(norms, n)``, float32.

    Each norm is one pass over ``x``. The sums are the same with any number of threads.
    """
    across, ranges, held = _lies_across(x), _ranges(*x.shape), tuple(tables(x.shape[-1]))
    parts = np.empty((len(norms), len(ranges), x.shape[-1]), np.float32)
    source, more = _pair(x, plus, across)

    def work(item: tuple[int, int]) -> None:
        norm, place = item
        own, out = ranges[place], parts[norm, place]
        absolute = norms[norm] == "l1"
        _numba_rows.dct_sums(source, more, out, own.start, own.stop, across, held, absolute)

    for_each(work, list(np.ndindex(len(norms), len(ranges))))
    return torch.from_numpy(parts.sum(1))


def dct_columns(x: Tensor, indices: Tensor, plus: Tensor | None = None) -> Tensor:
    """Return the columns ``indices`` of the DCT of rows ``(m, n)``, ``plus`` added: ``(m, r)``, in one pass."""
    return _columns(x, _slots(indices, tables(x.shape[-1])), plus)


def _columns(x: Tensor, slots: Any, plus: Tensor | None) -> Tensor:
    """Return the columns at these offsets in a panel."""
    across, held = _lies_across(x), tuple(tables(x.shape[-1]))
    out = _alike(x, len(slots), across)
    (source, more), target = _pair(x, plus, across), _rows(out, across)

    def work(own: slice) -> None:
        given = (own.start, own.stop, across, slots, held)
        _numba_rows.dct_columns(source, more, target, *given)

    for_each(work, _ranges(*x.shape))
    return out


def lift_rows(
    parameter: Tensor, gradient: Tensor, momentum: Tensor, job: RowLift, write: RowWrite
) -> None:
    """Do what `lowrank_core.StandardOps.lift_rows` does on ``(m, n)``, in place, in one pass."""
    across, held = _lies_across(gradient), tables(gradient.shape[-1])
    low = (_numbers((x.mT if across else x).contiguous()) for x in (job.coefficients, job.update))
    arrays = [*(_rows(x, across) for x in (parameter, momentum, gradient)), *low]
    lr = float(write.lr)
    how = (_slots(job.indices, held), *_floats(job.share, 1 - lr * write.weight_decay, lr))

    def work(rows: slice) -> None:
        given = (*arrays, rows.start, rows.stop, across, *how, tuple(held))
        write.once(rows.start, partial(_numba_lift.lift_rows, *given))

    for_each(work, _ranges(*gradient.shape))


def _pair(x: Tensor, plus: Tensor | None, across: bool) -> tuple[Any, Any]:
    """Return the numbers of two matrices, of the second no rows where there is none."""
    source = _rows(x, across)
    return source, source[:0] if plus is None else _rows(plus, across)


def _slots(indices: Tensor, held: Tables) -> Any:
    """Return the offsets of columns in a panel."""
    return held.place[_numbers(indices)]


def step_rows(
    parameter: Tensor, gradient: Tensor, moments: RowMoments, job: RowStep, write: RowWrite
) -> None:
    """Do what `lowrank_core.StandardOps.step_rows` does on ``(m, n)``, in place, in one pass."""
    across, held = _lies_across(gradient), tables(gradient.shape[-1])
    first = _rows(moments.first, across)
    second = first if moments.second is None else _rows(moments.second, across)
    energy = np.empty(0, np.float32) if moments.rows is None else _numbers(moments.rows.view(-1))
    arrays = (_rows(parameter, across), _rows(gradient, across), first, second, energy)
    own = tuple(_job(job, moments.second is None, write, held))

    def work(rows: slice) -> None:
        step = partial(
            _numba_step.step_rows, *arrays, rows.start, rows.stop, across, own, tuple(held)
        )
        write.once(rows.start, step)

    for_each(work, _ranges(*gradient.shape))


def _job(job: RowStep, factored: bool, write: RowWrite, held: Tables) -> _numba_step.Job:
    slots = _slots(job.indices, held)
    rank = len(slots)
    before = np.arange(rank) if job.before is None else _numbers(job.before).astype(np.int64)
    column = np.zeros(held.n, np.float32)
    if job.column is not None:
        # Of the bounded rest, columns of nothing but rounding are -1: here these are 0.
        column[held.place // PANEL] = np.maximum(_numbers(job.column), 0)
    column[slots // PANEL] = -1 if job.rest == "bounded" else 1
    lr = float(write.lr)
    eps = _numbers(job.eps)
    decays = (*map(float, job.betas), float(job.decay))
    return _numba_step.Job(
        slots, before, eps, eps if job.shares is None else _numbers(job.shares), column,
        ROW_RESTS.index(job.rest), factored, _floats(*decays), _floats(*(1 - x for x in decays)),
        _floats(*(1 / float(x) for x in job.weights)),
        *_floats(job.scale, job.plain_eps, lr, 1 - lr * write.weight_decay),
    )  # fmt: skip


def _floats(*numbers: Any) -> tuple[Any, ...]:
    return tuple(map(np.float32, numbers))
