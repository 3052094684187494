"""Passes over memory on CUDA: the launches of the Triton kernels of DCT-AdamW and Trion.

Importing this module compiles nothing: a kernel is compiled when it is first launched, and Triton keeps it on disk.
Nothing here waits for the device, and everything runs on the current stream. Importing needs Triton.

References
----------
I.-V. Modoranu et al., "FFT-based dynamic subspace selection for low-rank adaptive optimization of large language
models", arXiv 2505.17967; J. Makhoul, IEEE Trans. ASSP 28 (1980) 27.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lowrank_backends._triton_lift import chosen_columns as columns_kernel
from lowrank_backends._triton_lift import lift_rows as lift_kernel
from lowrank_backends._triton_rows import step_rows as rows_kernel
from lowrank_backends._triton_sums import column_sums as sums_kernel
from lowrank_backends._triton_tables import Factors, factors, padded, slots_of, splits, tables
from lowrank_core.numerics.random import fold
from lowrank_core.ops.lifts import RowLift
from lowrank_core.ops.passes import PassedRows
from lowrank_core.ops.rows import RowMoments, RowStep, RowWrite

#: Warps that a multiprocessor has room for, by the registers of a thread in the compiler's report. Not measured.
RESIDENT_WARPS = 16
# The salts of `lowrank_core.rules.state`: which array of a step is rounded.
_FIRST, _SECOND, _MOMENTUM = 1, 2, 3
_NO_KEY = 0


def _cut(x: Tensor) -> Factors:
    found = factors(x.shape[-1])
    if found is None:
        raise ValueError(f"rows must have a length that row_kernels takes, got {x.shape[-1]}")
    return found


@functools.lru_cache(maxsize=32)
def _processors(device: torch.device) -> int:
    if device.type != "cuda":  # Triton's interpreter, one program after the other
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _grid(x: Tensor, cut: Factors) -> tuple[tuple[int, int], int]:
    """Return a grid that fills the device with programs for the matrices ``(k, m, n)``, and the rows of each."""
    matrices, rows = x.shape[0], x.shape[1]
    resident = _processors(x.device) * RESIDENT_WARPS // cut.warps
    programs = max(1, min(rows, resident // matrices))
    each = -(-rows // programs)
    return (-(-rows // each), matrices), each


def _constants(cut: Factors, split: bool) -> dict[str, Any]:
    return {
        "n": cut.n, "N1": cut.n1, "N2": cut.n2, "P1": cut.p1, "P2": cut.p2, "SPLIT": split,
        # Triton's default, said so that a change of it changes nothing here.
        "num_warps": cut.warps, "maxnreg": cut.registers, "num_stages": 1, "enable_fp_fusion": True,
    }  # fmt: skip


def _stack(x: Tensor) -> Tensor:
    """Return matrices ``(..., m, n)`` as a view ``(k, m, n)``."""
    return x[None] if x.ndim == 2 else x


class LaunchedRows(PassedRows[Tensor]):
    """Passes over matrices ``(k, m, n)`` or ``(m, n)``, in place: a launch each for each of them.

    Sums are the same to the bit on every run on the same device; each norm is a pass.
    """

    def dct_sums(self, x: Tensor, norms: Sequence[str], plus: Tensor | None) -> Tensor:
        """Return the sums ``(norms, k, n)``, float32."""
        stack, cut, split = _stack(x), _cut(x), splits(x, plus)
        more = stack if plus is None else _stack(plus)
        grid, each = _grid(stack, cut)
        held = tables(cut, split, x.device)
        sums = []
        for norm in norms:
            part = torch.empty(grid[1], grid[0], cut.n, dtype=torch.float32, device=x.device)
            sums_kernel[grid](
                stack, more, part, *held, stack.shape[1], each, *_strides(stack), *_strides(more), 0,
                ABSOLUTE=norm == "l1", ADDED=plus is not None, **_constants(cut, split),
            )  # fmt: skip
            sums.append(part.sum(1))
        return torch.stack(sums).view(len(sums), *x.shape[:-2], cut.n)

    def dct_columns(self, x: Tensor, indices: Tensor, plus: Tensor | None) -> Tensor:
        """Return the columns, float32."""
        stack, cut, split = _stack(x), _cut(x), splits(x, plus)
        more = stack if plus is None else _stack(plus)
        grid, each = _grid(stack, cut)
        rank = indices.shape[-1]
        slot = slots_of(cut, x.device)[indices.reshape(-1).long()].to(torch.int32)
        made = partial(torch.empty, dtype=torch.float32, device=x.device)
        out, scratch = made(*x.shape[:-1], rank), made(grid[0] * grid[1] * cut.slots)
        columns_kernel[grid](
            stack, more, out, scratch, slot, *tables(cut, split, x.device), stack.shape[1], each,
            *_strides(stack), *_strides(more), rank, 0,
            PR=padded(rank), ADDED=plus is not None, **_constants(cut, split),
        )  # fmt: skip
        return out

    def step_rows(
        self,
        parameter: Tensor,
        gradient: Tensor,
        moments: RowMoments,
        job: RowStep,
        write: RowWrite,
    ) -> tuple[Tensor, RowMoments]:
        """Return parameter and moments, written to."""
        write.once(0, partial(_step_rows, parameter, gradient, moments, job, write))
        return parameter, moments

    def lift_rows(
        self, parameter: Tensor, gradient: Tensor, momentum: Tensor, job: RowLift, write: RowWrite
    ) -> tuple[Tensor, Tensor]:
        """Return parameter and momentum, written to."""
        write.once(0, partial(_lift_rows, parameter, gradient, momentum, job, write))
        return parameter, momentum


def _strides(stack: Tensor) -> tuple[int, int]:
    """Return how far apart rows are in memory, and matrices."""
    return stack.stride(1), stack.stride(0)


def _lift_rows(
    parameter: Tensor, gradient: Tensor, momentum: Tensor, job: RowLift, write: RowWrite
) -> None:
    stacks = stack, target, held = tuple(map(_stack, (gradient, parameter, momentum)))
    cut, split = _cut(gradient), splits(gradient, momentum)
    grid, each = _grid(stack, cut)
    rank = job.indices.shape[-1]
    slot = slots_of(cut, gradient.device)[job.indices.reshape(len(stack), rank).long()]
    places = torch.arange(rank, dtype=torch.int32, device=gradient.device)
    position = torch.full((len(stack), cut.slots), -1, dtype=torch.int32, device=gradient.device)
    position.scatter_(1, slot, places.expand(slot.shape))
    lr, decay = rates_on(gradient.device, write)
    lift_kernel[grid](
        stack, target, held, job.coefficients.contiguous(), job.update.contiguous(), position,
        *tables(cut, split, gradient.device), stack.shape[1], each,
        *(stride for own in stacks for stride in _strides(own)), rank, 0,
        lr, decay, job.share, _state_key(momentum, _MOMENTUM, job.step),
        _NO_KEY if write.key is None else write.key, RANDOM=write.key is not None,
        RATE_AT=isinstance(lr, Tensor), DECAY_AT=isinstance(decay, Tensor),
        **_constants(cut, split),
    )  # fmt: skip


def _step_rows(
    parameter: Tensor, gradient: Tensor, moments: RowMoments, job: RowStep, write: RowWrite
) -> None:
    stack, target, cut = _stack(gradient), _stack(parameter), _cut(gradient)
    split = splits(gradient)
    grid, each = _grid(stack, cut)
    slot, column = _by_slot(job, cut, stack.shape[0])
    parts = 4 if job.rest == "sign" else 2
    scratch = torch.empty(
        grid[0] * grid[1] * parts * cut.p1 * cut.p2, dtype=torch.float32, device=gradient.device
    )
    first, second, rows = moments
    rank, weights = job.indices.shape[-1], job.weights
    lr, decay = rates_on(gradient.device, write)
    rows_kernel[grid](
        stack, target, first, first if second is None else second, first if rows is None else rows,
        scratch, slot, slot if job.before is None else job.before, job.eps,
        job.eps if job.shares is None else job.shares, column, job.scale,
        *tables(cut, split, gradient.device), stack.shape[1], each,
        *_strides(stack), *_strides(target), rank, 0,
        lr, decay, *weights, *job.betas, job.decay, job.plain_eps,
        _state_key(first, _FIRST, job.step), _state_key(first, _SECOND, job.step),
        _NO_KEY if write.key is None else write.key,
        PR=padded(rank), REST=job.rest, FACTORED=second is None, MOVED=job.before is not None,
        RANDOM=write.key is not None, RATE_AT=isinstance(lr, Tensor),
        DECAY_AT=isinstance(decay, Tensor), WEIGHTS_AT=isinstance(weights[0], Tensor),
        **_constants(cut, split),
    )  # fmt: skip


def rates_on(device: torch.device, write: RowWrite) -> tuple[Any, ...]:
    """Return the rate and the weight decay as a kernel on ``device`` takes them: one that is elsewhere as a number."""
    return tuple(
        number.item() if isinstance(number, Tensor) and number.device != device else number
        for number in (write.lr, write.weight_decay)
    )


def _by_slot(job: RowStep, cut: Factors, matrices: int) -> tuple[Tensor, Tensor]:
    """Return the slot of each chosen column, ``(k, r)`` int32, and by slot what the kernel makes of it.

    The second, ``(k, slots)`` float32, is the ``column`` of `lowrank_backends._triton_rows._outside`.
    """
    indices = job.indices.view(matrices, -1).long()
    place = slots_of(cut, indices.device)
    slot = place[indices]
    chosen = -1.0 if job.rest == "bounded" else 1.0
    column = torch.zeros(matrices, cut.slots, dtype=torch.float32, device=indices.device)
    if job.column is not None:
        # Of the bounded rest, columns of nothing but rounding are -1: to the kernel these are 0.
        by_column = job.column.view(matrices, -1).clamp(min=0.0)
        column.scatter_(1, place.expand(matrices, -1), by_column)
    column.scatter_(1, slot, chosen)
    return slot.to(torch.int32), column


def _state_key(array: Tensor, salt: int, step: int) -> int:
    """Return the key of the draws that round a narrow array of state: of `lowrank_core.numerics.rounding.store`."""
    if array.dtype == torch.float32:
        return _NO_KEY
    key: Any = torch.full((1,), salt, dtype=torch.int32, device="cpu")
    return int(fold(key, step))
