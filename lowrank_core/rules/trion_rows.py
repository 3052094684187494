"""Trion in three passes over its rows: column sums, the chosen columns, and the step (`PassedRows.lift`).

Before the last are products of matrices as wide as the rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lowrank_core._typing import Array
from lowrank_core.ops.lifts import RowLift
from lowrank_core.ops.passes import PassedRows
from lowrank_core.ops.rows import RowWrite
from lowrank_core.rules.reductions import Steps
from lowrank_core.rules.rule import MatrixStep, RowPasses
from lowrank_core.rules.trion import Aligned, aligned_steps
from lowrank_core.rules.trion_config import TrionConfig, TrionState


def fits_rows(matrix: MatrixStep[TrionConfig]) -> bool:
    """Return whether steps of ``matrix`` can be done in passes.

    The basis is the DCT, the momentum is kept as numbers, and the options' are the host's. Of a matrix whose columns
    are transformed (axis -2), the rows are those of its transpose.
    """
    config = matrix.config
    return (
        config.basis == "dct"
        and config.momentum_bits is None
        and config.state_dtype in (None, "float32", "bfloat16")
        and isinstance(config.momentum, (int, float))
    )


def trion_rows(
    rows: PassedRows[Any], state: TrionState, matrix: MatrixStep[TrionConfig], _due: Any = True
) -> Steps[tuple[RowLift, TrionState]]:
    """Do all of a step but its last pass: a generator of the sums that it needs, as `trion_steps`.

    Parameters
    ----------
    rows
        Gradients, to which momenta are added.
    state
        The state; the momentum is not looked at.
    matrix
        What the steps of the matrix are bound to; it `fits_rows`.

    Returns
    -------
    Generator
        Yields `Sum`; returns what the rows need and the state after the step, with the momentum of before.
    """
    t = state.step + 1

    def turned(x: Array) -> Array:
        return x if matrix.layout.axis == -1 else matrix.ops.xp.matrix_transpose(x)

    def ask() -> Any:
        return rows.sums((matrix.config.score,)), lambda indices: turned(rows.take(indices))

    def finish(found: Aligned) -> tuple[RowLift, TrionState]:
        b, o = turned(found.coefficients), turned(found.update)
        job = RowLift(found.indices, b, o, 1 - matrix.config.momentum, t)
        return job, state._replace(step=t, row_energy=found.row_energy)

    # The kernels lift columns: nobody asks for their vectors.
    return aligned_steps(ask, finish, state.row_energy, replace(matrix, by_columns=False))


def _write(
    rows: PassedRows[Any],
    _states: Sequence[TrionState],
    _matrix: MatrixStep[TrionConfig],
    job: RowLift,
    writes: Sequence[RowWrite],
) -> None:
    rows.lift(job, writes)


#: Trion in passes.
TRION_PASSES = RowPasses(fits_rows, trion_rows, _write, ("momentum",), "momentum")
