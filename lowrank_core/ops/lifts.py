"""The last pass of a step of Trion: what a step found on few columns is brought to momentum and parameter, row by row.

An adapter that has a kernel for it reads and writes each once (`PassedRows.lift`); here it is said in plain
steps.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from lowrank_core._typing import Scalar
from lowrank_core.ops.rows import RowWrite


class RowLift(NamedTuple):
    """What rows need besides themselves, of one matrix or of stacked ones ``(...)``, in the dtype of arithmetic."""

    #: The chosen columns, ``(..., r)`` int32, ascending.
    indices: Any
    #: ``b``, the coefficients of momentum and gradient on them, ``(..., m, r)``, in the gradient's units.
    coefficients: Any
    #: ``o``, what the parameter moves by on them, ``(..., m, r)``, dimensionless.
    update: Any
    #: The share of ``b`` that leaves the momentum, dimensionless.
    share: Scalar
    #: The number of this step, from 1: a narrow momentum is rounded at random by it.
    step: Any

    def of(self, place: int) -> RowLift:
        """Return what the rows of entry ``place`` of the first stacked dimension need."""
        names = ("indices", "coefficients", "update")
        return self._replace(**{name: getattr(self, name)[place, ...] for name in names})


def lift_rows(
    parameter: Any, gradient: Any, momentum: Any, job: RowLift, write: RowWrite, ops: Any
) -> tuple[Any, Any]:
    """Return what `PassedRows.lift` returns for a matrix.

    ``M <- M + G - share b Q_I^T`` and ``W <- (1 - lr * weight_decay) W - lr (o Q_I^T)``.
    """
    size = gradient.shape[-1]
    held = ops.idct_columns(job.coefficients, job.indices, size, axis=-1)
    update = ops.idct_columns(job.update, job.indices, size, axis=-1)
    keep = 1 - write.lr * write.weight_decay
    return parameter * keep - update * write.lr, momentum + gradient - held * job.share
