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
from lowrank_core.numerics.quantization import BLOCK
from lowrank_core.ops.lifts import RowLift
from lowrank_core.ops.passes import PassedRows
from lowrank_core.ops.rows import ROW_RESTS, RowCodes, RowMoments, RowStep, RowWrite

__all__ = ["PanelRows", "dct", "factors", "idct"]

# Numbers in the rows of one call: enough that it costs nothing beside them, few enough that threads have their share.
_CALL = 2**19
# Numbers of all matrices from which threads share them: fewer are stepped before these have met. Found with 16 to 64
# matrices of 64 x 256.
_SHARED = 2**19
# Numbers of coefficients that are kept from one pass to the next: 8 MB, which a processor's last cache holds. 2**20 to
# 2**22 were tried with the matrices of Llama models.
_KEPT = 2**21


def _ranges(rows: int, n: int, multiple: int = PANEL) -> list[slice]:
    """Return slices of ``rows`` rows of ``n`` numbers, as long as a multiple of whole panels but for the last."""
    length = max(1, _CALL // (n * multiple)) * multiple
    return [slice(start, min(start + length, rows)) for start in range(0, rows, length)]


def _lies_across(x: Tensor) -> bool:
    """Return whether the rows of a matrix that the panels take lie side by side in memory, as columns do."""
    return not x.is_contiguous()


def _numbers(x: Tensor) -> Any:
    return x.detach().numpy()


def _rows(x: Tensor, across: bool) -> Any:
    """Return the numbers of rows in the order of their memory."""
    return _numbers(x.mT if across else x)


def _laid(x: Tensor, across: bool) -> Any:
    """Return the numbers of rows in that order, copied where they lie otherwise."""
    return _numbers((x.mT if across else x).contiguous())


def _alike(x: Tensor, columns: int, across: bool) -> Tensor:
    """Return memory for as many rows as ``x`` has, laid out as these are."""
    if across:
        return empty((columns, len(x)), x.dtype).mT
    return empty((len(x), columns), x.dtype)


def dct(x: Tensor) -> Tensor:
    """Return the orthonormal DCT-II of rows ``(m, n)``."""
    across, held = _lies_across(x), tables(x.shape[-1])
    out, none = _alike(x, x.shape[-1], across), np.empty((0, 0), np.float32)
    pair, target = _pair(x, None, across), _rows(out, across)

    def work(own: slice) -> None:
        how = (own.start, own.stop, across, held.place, tuple(held))
        _numba_rows.dct_columns(*pair, none, target, *how)

    for_each(work, _ranges(*x.shape))
    return out


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


def _pair(x: Tensor, plus: Tensor | None, across: bool) -> tuple[Any, Any]:
    """Return the numbers of two matrices, of the second no rows where there is none."""
    source = _rows(x, across)
    return source, source[:0] if plus is None else _rows(plus, across)


def _slots(indices: Tensor, held: Tables) -> Any:
    """Return the offsets of columns in a panel."""
    return held.place[_numbers(indices)]


class PanelRows(PassedRows[Tensor]):
    """Passes over matrices ``(m, n)``, in place, whose rows threads share, those of all matrices at a time.

    Of few numbers in all, the coefficients that sums were made of are kept for the next pass: they are in a cache then.
    """

    _kept: Any = None

    def sums(self, norms: Sequence[str]) -> Tensor:
        """Return the sums, float32: the same with any number of threads. Each norm is one pass."""
        count, (rows, n), across = len(self.gradients), *self._shape()
        ranges, entries = _ranges(rows, n), tuple(tables(n))
        parts = np.empty((len(norms), count, len(ranges), n), np.float32)
        kept = self._kept = _panels(count, rows, n)
        pairs = self._pairs(across)

        def work(item: tuple[int, int]) -> None:
            matrix, place = item
            own, given = ranges[place], (*pairs[matrix], kept[matrix])
            for norm, out in zip(norms, parts[:, matrix, place], strict=True):
                how = (own.start, own.stop, across, entries, norm == "l1")
                _numba_rows.dct_sums(*given, out, *how)

        self._share(work, len(ranges))
        sums = torch.from_numpy(parts.sum(2))
        return sums[:, 0] if count == 1 else sums

    def take(self, indices: Tensor) -> Tensor:
        """Return columns, float32, of the coefficients that were kept, or in one pass."""
        (rows, n), across = self._shape()
        held, ranges = tables(n), _ranges(rows, n)
        slots = _slots(indices.view(len(self.gradients), -1), held)
        own = [_alike(x, slots.shape[-1], across) for x in self.gradients]
        pairs, kept, targets = self._pairs(across), self._held(), [_rows(x, across) for x in own]

        def work(item: tuple[int, int]) -> None:
            matrix, place = item
            part, given = ranges[place], (*pairs[matrix], kept[matrix], targets[matrix])
            how = (part.start, part.stop, across, slots[matrix], tuple(held))
            _numba_rows.dct_columns(*given, *how)

        self._share(work, len(ranges))
        return self._together(own, 0)

    def step(
        self, moments: Sequence[RowMoments], job: RowStep, writes: Sequence[RowWrite]
    ) -> list[tuple[Tensor, RowMoments]]:
        """Return parameters and moments, written to in one pass, which uses up what was kept."""
        (_, n), across = self._shape()
        held, coded = tables(n), isinstance(moments[0].first, RowCodes)
        jobs = _jobs(job, moments[0].second is None, writes, held)
        if coded:
            # The same but of a single row, which lies both ways.
            across = moments[0].first.by_column
        kernel = _numba_step.step_coded_rows if coded else _numba_step.step_rows
        pairs = zip(self.parameters, self.gradients, strict=True)
        arrays = [
            (*(_rows(x, across) for x in pair), *_state(own, across), panels)
            for pair, own, panels in zip(pairs, moments, self._held(), strict=True)
        ]
        self._kept = None
        asked = [(own, tuple(held)) for own in jobs]
        self._write(kernel, writes, arrays, asked, across, BLOCK if coded and across else PANEL)
        return list(zip(self.parameters, moments, strict=True))

    def lift(self, job: RowLift, writes: Sequence[RowWrite]) -> list[tuple[Tensor, Tensor]]:
        """Return parameters and momenta, written to in one pass."""
        (rows, n), across = self._shape()
        count, held = len(self.gradients), tables(n)
        slots = _slots(job.indices.view(count, -1), held)
        low = [x.reshape(count, rows, -1) for x in (job.coefficients, job.update)]
        momenta: Sequence[Any] = self.added
        arrays, asked = [], []
        whole = zip(self.parameters, momenta, self.gradients, strict=True)
        for own, b, o, place, write in zip(whole, *low, slots, writes, strict=True):
            arrays.append((*(_rows(x, across) for x in own), _laid(b, across), _laid(o, across)))
            lr = float(write.lr)
            numbers = _floats(job.share, 1 - lr * write.weight_decay, lr)
            asked.append((place, *numbers, tuple(held)))
        self._write(_numba_lift.lift_rows, writes, arrays, asked, across)
        return list(zip(self.parameters, momenta, strict=True))

    def _write(
        self,
        kernel: Callable[..., None],
        writes: Sequence[RowWrite],
        arrays: Sequence[tuple[Any, ...]],
        asked: Sequence[tuple[Any, ...]],
        across: bool,
        multiple: int = PANEL,
    ) -> None:
        """Do the last pass: a kernel gets the arrays of a matrix, which rows and how they lie, and what is asked."""
        (rows, n), _ = self._shape()
        ranges = _ranges(rows, n, multiple)

        def work(item: tuple[int, int]) -> None:
            matrix, place = item
            own = ranges[place]
            given = (*arrays[matrix], own.start, own.stop, across, *asked[matrix])
            writes[matrix].once(own.start, partial(kernel, *given))

        self._share(work, len(ranges))

    def _share(self, work: Callable[[tuple[int, int]], None], ranges: int) -> None:
        """Do work for so many ranges of the rows of each matrix, each by a thread where it is worth their meeting."""
        items = list(np.ndindex(len(self.gradients), ranges))
        if len(self.gradients) * self.gradients[0].numel() >= _SHARED:
            for_each(work, items)
            return
        for item in items:
            work(item)

    def _pairs(self, across: bool) -> list[tuple[Any, Any]]:
        """Return for each matrix the numbers of its gradient, and of what is added to it."""
        return [_pair(x, plus, across) for x, plus in zip(self.gradients, self.added, strict=True)]

    def _held(self) -> Any:
        """Return for each matrix the panels that were kept of it; none where they were not."""
        return _panels(len(self.gradients), 0, 0) if self._kept is None else self._kept

    def _shape(self) -> tuple[torch.Size, bool]:
        """Return the shape of the matrices, and whether their rows lie across."""
        first = self.gradients[0]
        return first.shape, _lies_across(first)


def _state(moments: RowMoments, across: bool) -> tuple[Any, ...]:
    """Return the numbers of the state of rows, as the kernels take it: what there is not, as what is not looked at."""
    first, second, energy = moments
    energies = np.empty(0, np.float32) if energy is None else _numbers(energy.view(-1))
    if isinstance(first, RowCodes):
        return *(_rows(x, across) for x in first[:3]), energies
    own = _rows(first, across)
    return own, own if second is None else _rows(second, across), energies


def _panels(count: int, rows: int, n: int) -> Any:
    """Return memory for the coefficients of so many matrices, by panel; none for too many of them."""
    panels = -(-rows // PANEL)
    numbers = panels * PANEL * n
    if count * numbers > _KEPT:
        return np.empty((count, 0, 0), np.float32)
    return np.empty((count, panels, PANEL * n), np.float32)


def _jobs(
    job: RowStep, factored: bool, writes: Sequence[RowWrite], held: Tables
) -> list[tuple[Any, ...]]:
    """Return for each matrix what is asked of its rows: the entries of `lowrank_backends._numba_step.Job`."""
    count, rank = len(writes), job.indices.shape[-1]

    def by_matrix(x: Tensor) -> Any:
        return _numbers(x.reshape(count, -1))

    slots = _slots(job.indices.view(count, rank), held)
    before = np.broadcast_to(np.arange(rank), (count, rank))
    if job.before is not None:
        before = by_matrix(job.before)
    before = np.ascontiguousarray(before, np.int64)
    column = np.zeros((count, held.n), np.float32)
    if job.column is not None:
        # Of the bounded rest, columns of nothing but rounding are -1: here these are 0.
        column[:, held.place // PANEL] = np.maximum(by_matrix(job.column), 0)
    np.put_along_axis(column, slots // PANEL, np.float32(-1 if job.rest == "bounded" else 1), 1)
    eps, scale = by_matrix(job.eps), by_matrix(job.scale)[:, 0]
    shares = eps if job.shares is None else by_matrix(job.shares)
    decays = (*map(float, job.betas), float(job.decay))
    how = (
        ROW_RESTS.index(job.rest), factored, _floats(*decays), _floats(*(1 - x for x in decays)),
        _floats(*(1 / float(x) for x in job.weights)),
    )  # fmt: skip
    jobs = []
    for place, write in enumerate(writes):
        lr = float(write.lr)
        by_column = (x[place] for x in (slots, before, eps, shares, column))
        rates = _floats(scale[place], job.plain_eps, lr, 1 - lr * write.weight_decay)
        jobs.append((*by_column, *how, *rates))
    return jobs


def _floats(*numbers: Any) -> tuple[Any, ...]:
    return tuple(map(np.float32, numbers))
