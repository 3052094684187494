"""DCT-AdamW in two passes over a gradient: column sums first, then all rows by themselves (`PassedRows.step`)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from lowrank_core.ops.passes import PassedRows
from lowrank_core.ops.rows import ROW_RESTS, RowCodes, RowMoments, RowStep, RowWrite
from lowrank_core.rules.dct_adamw import moment_weights, rest_scale
from lowrank_core.rules.dct_adamw_columns import ColumnSelection, select
from lowrank_core.rules.dct_adamw_config import DCTAdamWConfig, DCTAdamWState
from lowrank_core.rules.reductions import Steps, Sum
from lowrank_core.rules.residuals import column_factors
from lowrank_core.rules.rule import MatrixStep, RowPasses
from lowrank_core.subspace.empty import infinite_where, is_rounding
from lowrank_core.subspace.factored import column_shares
from lowrank_core.subspace.moments import decayed_weight, mean_energy


def fits_rows(matrix: MatrixStep[DCTAdamWConfig]) -> bool:
    """Return whether steps of ``matrix`` can be done in two passes.

    The basis is the DCT, the residual policy is said in coefficients, every column's moments are as old as the step
    count, and what numbers the options hold are the host's. Of a matrix whose columns are transformed (axis -2), the
    rows are those of its transpose.
    """
    config = matrix.config
    numbers = (*config.betas, config.eps, config.update_scale, config.energy_decay)
    scale = rest_scale(config)
    return (
        config.basis == "dct"
        and config.residual in ROW_RESTS
        and config.bias_correction == "step"
        and config.state_dtype in (None, "float32", "bfloat16")
        and all(isinstance(x, (int, float)) for x in (*numbers, scale))
    )


def dct_adamw_rows(
    rows: PassedRows[Any], state: DCTAdamWState, matrix: MatrixStep[DCTAdamWConfig], due: Any
) -> Steps[tuple[RowStep, DCTAdamWState]]:
    """Do all of a step but its rows: a generator of the sums that it needs, as `dct_adamw_steps`.

    Parameters
    ----------
    rows
        The gradients. Asked for are the column sums of their coefficients, where the options need any.
    state
        The state; the moments are not looked at.
    matrix
        What the steps of the matrix are bound to; it `fits_rows`.
    due
        Whether columns are chosen anew, as for `dct_adamw_steps`.

    Returns
    -------
    Generator
        Yields `Sum`; returns what the rows need and the state after the step, with the moments of before.
    """
    ops, norms = matrix.ops, matrix.config.norms(due is not False)
    sums = rows.sums(norms) if norms else None
    columns = yield Sum(sums, partial(select, state, matrix, due, ops.xp.float32))
    job = _row_step(columns, state, matrix, due)
    after = state._replace(step=job.step, indices=columns.kept, energy=columns.energy)
    return job, after


def _row_step(
    columns: ColumnSelection, state: DCTAdamWState, matrix: MatrixStep[DCTAdamWConfig], due: Any
) -> RowStep:
    config, layout, ops, t = matrix.config, matrix.layout, matrix.ops, state.step + 1
    xp, indices = ops.xp, columns.indices
    like = xp.zeros(indices.shape, dtype=xp.float32, device=ops.device_of(indices))
    eps = like + config.eps
    if columns.empty is not None:
        eps = infinite_where(columns.empty, config.eps, like, ops)
    before = None
    if due is not False:
        position, stayed = columns.moved
        before = ops.astype(xp.where(stayed, position, xp.full_like(position, -1)), xp.int32)
    rest = config.residual
    if rest == "sign" and layout.rank == layout.size:
        rest = "discard"
    rho = rest_scale(config)
    scale = like[..., 0] + rho
    if rest == "sign" and columns.outside is not None:
        scale = scale * ops.astype(columns.outside, xp.float32)
    decay, column, shares = config.energy_decay, None, None
    if rest == "normalized":
        mean = mean_energy(columns.energy, decay, config.energy_count(t), ops)
        column = column_factors(mean, rho, config.eps, ops)
    if config.factored:
        own = column_shares(mean_energy(columns.energy, decay, t, ops), ops)
        shares = ops.take_along(own, indices)
        if rest == "bounded":
            column = xp.where(is_rounding(own, ops), xp.full_like(own, -1.0), own)
    first, second = moment_weights(None, t, like, matrix)
    third = decayed_weight(decay, t, ops, like)
    return RowStep(
        indices, before, eps, config.betas, (first, second, third), rest, scale, column, shares, decay, config.eps, t
    )  # fmt: skip


def _write(
    rows: PassedRows[Any],
    states: Sequence[DCTAdamWState],
    matrix: MatrixStep[DCTAdamWConfig],
    job: RowStep,
    writes: Sequence[RowWrite],
) -> None:
    moments = []
    for state in states:
        first: Any = state.first_moment
        scale = state.first_moment_scale
        if scale is not None:
            first = RowCodes(first, state.first_moment_minimum, scale, matrix.layout.axis == -2)
        moments.append(RowMoments(first, state.second_moment, state.row_energy))
    rows.step(moments, job, writes)


#: DCT-AdamW in passes.
DCT_ADAMW_PASSES = RowPasses(
    fits_rows,
    dct_adamw_rows,
    _write,
    ("first_moment", "first_moment_minimum", "first_moment_scale", "second_moment", "row_energy"),
)
