"""Calls of the compiled panels on PyTorch's CPU tensors: their memory, and what a step is made of, for Numba."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    return [slice(start, start + length) for start in range(0, rows, length)]


def _numbers(x: Tensor) -> Any:
    return x.detach().numpy()


def _transform(work: Callable[..., object], x: Tensor) -> Tensor:
    """Return what ``work``, one of the transforms of `lowrank_backends._numba_rows`, makes of rows ``(m, n)``."""
    out, held = empty(x.shape, x.dtype), tuple(tables(x.shape[-1]))
    source, target = _numbers(x), out.numpy()
    for_each(lambda own: work(source[own], target[own], held), _ranges(*x.shape))
    return out


def dct(x: Tensor) -> Tensor:
    """Return the orthonormal DCT-II of rows ``(m, n)``."""
    return _transform(_numba_rows.dct_rows, x)


def idct(coefficients: Tensor) -> Tensor:
    """Return the inverse of :func:`dct`."""
    return _transform(_numba_rows.idct_rows, coefficients)


def dct_sums(x: Tensor, norms: Sequence[str], plus: Tensor | None = None) -> Tensor:
    """Return the sums over the columns of the DCT of rows ``(m, n)``, ``plus`` added: ``(norms, n)``, float32.

    Each norm is one pass over ``x``. The sums are the same with any number of threads.
    """
    ranges, held, source = _ranges(*x.shape), tuple(tables(x.shape[-1])), _numbers(x)
    more = source[:0] if plus is None else _numbers(plus)
    parts = np.empty((len(norms), len(ranges), x.shape[-1]), np.float32)

    def work(item: tuple[int, int]) -> None:
        norm, place = item
        own, out = ranges[place], parts[norm, place]
        _numba_rows.dct_sums(source[own], more[own], out, held, norms[norm] == "l1")

    for_each(work, list(np.ndindex(len(norms), len(ranges))))
    return torch.from_numpy(parts.sum(1))


def dct_columns(x: Tensor, indices: Tensor, plus: Tensor | None = None) -> Tensor:
    """Return the columns ``indices`` of the DCT of rows ``(m, n)``, ``plus`` added: ``(m, r)``, in one pass."""
    held = tables(x.shape[-1])
    slots, out = _slots(indices, held), empty((len(x), len(indices)), x.dtype)
    source, target = _numbers(x), out.numpy()
    more = source[:0] if plus is None else _numbers(plus)

    def work(own: slice) -> None:
        _numba_lift.dct_columns(source[own], more[own], target[own], slots, tuple(held))

    for_each(work, _ranges(*x.shape))
    return out


def lift_rows(
    parameter: Tensor, gradient: Tensor, momentum: Tensor, job: RowLift, write: RowWrite
) -> None:
    """Do what `lowrank_core.StandardOps.lift_rows` does on ``(m, n)``, in place, in one pass."""
    held = tables(gradient.shape[-1])
    factors = (x.contiguous() for x in (job.coefficients, job.update))
    arrays = [*map(_numbers, (parameter, momentum, gradient, *factors))]
    lr = float(write.lr)
    how = (_slots(job.indices, held), *_floats(job.share, 1 - lr * write.weight_decay, lr))

    def work(rows: slice) -> None:
        parts = (x[rows] for x in arrays)
        write.once(rows.start, partial(_numba_lift.lift_rows, *parts, *how, tuple(held)))

    for_each(work, _ranges(*gradient.shape))


def _slots(indices: Tensor, held: Tables) -> Any:
    """Return the offsets of columns in a panel."""
    return held.place[_numbers(indices)]


def step_rows(
    parameter: Tensor, gradient: Tensor, moments: RowMoments, job: RowStep, write: RowWrite
) -> None:
    """Do what `lowrank_core.StandardOps.step_rows` does on ``(m, n)``, in place, in one pass."""
    held = tables(gradient.shape[-1])
    first = _numbers(moments.first)
    second = first if moments.second is None else _numbers(moments.second)
    energy = first if moments.rows is None else _numbers(moments.rows)
    arrays = (_numbers(parameter), _numbers(gradient), first, second, energy)
    own = _job(job, moments.second is None, write, held)

    def work(rows: slice) -> None:
        parts = (x[rows] for x in arrays)
        write.once(rows.start, partial(_numba_step.step_rows, *parts, tuple(own), tuple(held)))

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
