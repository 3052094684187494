"""DCT-AdamW between refreshes, on coefficients instead of gradients: for accumulation and averaging in the subspace."""

from __future__ import annotations

from lowrank_core._checks import check_kind, check_matrix
from lowrank_core._typing import Array, DType
from lowrank_core.ops.axes import apply_matrix
from lowrank_core.ops.precision import to_compute
from lowrank_core.ops.registry import ops_for
from lowrank_core.ops.standard import Ops
from lowrank_core.rules.dct_adamw import adam_step, bind_checked, wide_moments
from lowrank_core.rules.dct_adamw_columns import ColumnSelection, columns_due, select
from lowrank_core.rules.dct_adamw_config import DCTAdamWConfig, DCTAdamWState
from lowrank_core.rules.rule import MatrixStep, bind
from lowrank_core.rules.state import check_state
from lowrank_core.subspace.projection import project_on
from lowrank_core.subspace.update import LowRankUpdate


def dct_adamw_step_projected(
    low_rank: Array,
    state: DCTAdamWState,
    config: DCTAdamWConfig,
    /,
    *,
    shape: tuple[int, ...],
    ops: Ops | None = None,
) -> tuple[LowRankUpdate, DCTAdamWState]:
    """Return what :func:`dct_adamw_step` returns where the gradient's coefficients on the current columns are known.

    Projection is linear: between refreshes the coefficients of a sum of gradients are the sum of theirs. So
    micro-batches can be accumulated, and replicas averaged, in ``m x r`` numbers instead of ``m x n``.

    Parameters
    ----------
    low_rank
        ``(..., m, r)`` (axis -1) or ``(..., r, n)`` (axis -2): from :func:`dct_adamw_project`.
    state
        From an earlier step; this one must not be one that chooses columns.
    config
        The options the state was made with, by which `DCTAdamWConfig.projects`.
    shape
        Shape of the gradient.
    ops
        Operations to use; those of the array's library by default.

    Returns
    -------
    tuple
        The update and the new state.

    Raises
    ------
    TypeError, ValueError
        If the options need more than these coefficients at this step, or shapes do not fit.
    """
    check_kind("config", config, DCTAdamWConfig, "a DCTAdamWConfig")
    ops = ops_for(low_rank) if ops is None else ops
    check_matrix("low_rank", low_rank, ops.xp)
    matrix = bind(config, shape, ops, ops.device_of(low_rank))
    check_state(state, config.state_spec(shape), shape)
    _check_projected(state, matrix)
    if tuple(low_rank.shape) != matrix.layout.low_rank_shape:
        raise ValueError(
            f"low_rank must be of shape {matrix.layout.low_rank_shape} for gradients of shape {tuple(shape)}, "
            f"got {tuple(low_rank.shape)}"
        )
    return step_projected(low_rank, state, matrix)


def dct_adamw_project(
    gradient: Array, state: DCTAdamWState, config: DCTAdamWConfig, /, *, ops: Ops | None = None
) -> Array:
    """Return the coefficients of a gradient on the current columns, for :func:`dct_adamw_step_projected`.

    Parameters
    ----------
    gradient
        ``(..., m, n)``, real floating-point.
    state, config
        As for the step.
    ops
        Operations to use; those of the gradient's library by default.

    Returns
    -------
    Array
        ``(..., m, r)`` (axis -1) or ``(..., r, n)`` (axis -2), float32 (float64 for float64 gradients), in the units
        of the gradient.

    Raises
    ------
    TypeError, ValueError
        If the gradient is not a matrix, the state is not one for it, or the next step chooses columns.
    """
    matrix = bind_checked(gradient, state, config, ops)
    _check_projected(state, matrix)
    return project_current(gradient, state, matrix)


def _check_projected(state: DCTAdamWState, matrix: MatrixStep[DCTAdamWConfig]) -> None:
    """Raise ``ValueError`` unless the next step can be done on coefficients on the current columns alone."""
    matrix.config.check_projected(state.step + 1)
    ops, kept = matrix.ops, state.first_moment
    if ops.is_readable(kept) and bool(ops.xp.any(columns_due(state, matrix))):
        raise ValueError(
            "a step that chooses columns needs the whole gradient, and the next one does: gradients were zero at all "
            "choices so far"
        )


def project_current(
    gradient: Array, state: DCTAdamWState, matrix: MatrixStep[DCTAdamWConfig]
) -> Array:
    """Return the coefficients of ``gradient`` on the columns of the step before."""
    full = to_compute(gradient, matrix.ops)
    columns, axis = _current(state, full.dtype, matrix), matrix.layout.axis
    if matrix.basis is None:
        return apply_matrix(full, columns.vectors, axis, matrix.ops.xp)
    return project_on(full, columns.indices, columns.vectors, matrix.basis, axis, matrix.ops)


def step_projected(
    low_rank: Array, state: DCTAdamWState, matrix: MatrixStep[DCTAdamWConfig]
) -> tuple[LowRankUpdate, DCTAdamWState]:
    """Return Adam's step on coefficients on the columns of the step before."""
    low_rank = to_compute(low_rank, matrix.ops)
    moments = wide_moments(state, low_rank, matrix)
    columns = _current(state, low_rank.dtype, matrix)
    return adam_step(low_rank, moments, columns, state, matrix, overwrite=False)


def _current(
    state: DCTAdamWState, dtype: DType, matrix: MatrixStep[DCTAdamWConfig]
) -> ColumnSelection:
    """Return the columns or vectors of the step before."""
    if matrix.basis is None:
        return ColumnSelection(None, None, matrix.ops.astype(state.vectors, dtype))
    return select(state, matrix, False, dtype, None)
