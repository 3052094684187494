"""DCT-AdamW between refreshes, on coefficients instead of gradients: for accumulation and averaging in the subspace."""

from __future__ import annotations

from lowrank_core._checks import check_matrix
from lowrank_core._typing import Array
from lowrank_core.bases import get_basis
from lowrank_core.dct_adamw import advance
from lowrank_core.dct_adamw_config import DCTAdamWConfig, DCTAdamWState
from lowrank_core.dct_adamw_projection import Subspace, moments_before, with_gradient
from lowrank_core.ops import Ops, ops_for
from lowrank_core.state import check_state
from lowrank_core.update import LowRankUpdate


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
    ops = ops_for(low_rank) if ops is None else ops
    check_matrix("low_rank", low_rank, ops.xp)
    layout = config.layout(shape)
    check_state(state, config.state_spec(shape), shape)
    config.check_projected(state.step + 1)
    if tuple(low_rank.shape) != layout.low_rank_shape:
        raise ValueError(
            f"low_rank must be of shape {layout.low_rank_shape} for gradients of shape {tuple(shape)}, "
            f"got {tuple(low_rank.shape)}"
        )
    low_rank = ops.to_compute(low_rank)
    before = moments_before(state, low_rank.dtype, ops)
    moments = with_gradient(before, low_rank, config, ops, own=False)
    at = Subspace(state.indices, state.vectors, moments, state.energy)
    return advance(at, state, state.step + 1, config, layout, ops)


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
    ops = ops_for(gradient) if ops is None else ops
    check_matrix("gradient", gradient, ops.xp)
    shape = tuple(gradient.shape)
    axis = config.layout(shape).axis
    check_state(state, config.state_spec(shape), shape)
    config.check_projected(state.step + 1)
    full = ops.to_compute(gradient)
    if state.vectors is not None:
        return ops.apply_matrix(full, ops.astype(state.vectors, full.dtype), axis=axis)
    assert state.indices is not None  # noqa: S101 - check_state has seen to it; this tells the type checker
    basis = get_basis(config.basis)
    return basis.project(full, state.indices, ops, axis=axis, method=config.method)
