"""DCT-AdamW for one matrix: Adam's moments kept for the few basis columns a gradient aligns with.

Source: I.-V. Modoranu, M. Safaryan, E. Schultheis, M. Ryabinin, A. Chumachenko, D. Alistarh, "FFT-based
dynamic subspace selection for low-rank adaptive optimization of large language models", arXiv 2505.17967.
"""

from __future__ import annotations

from dataclasses import replace

from lowrank_core._checks import check_matrix
from lowrank_core._typing import Array, Device, DType, Namespace, Scalar
from lowrank_core.adam import adam_direction, decayed_weight
from lowrank_core.dct_adamw_config import SEED_COUNT, DCTAdamWConfig, DCTAdamWState
from lowrank_core.dct_adamw_projection import (
    Subspace,
    Survey,
    project_fixed,
    project_stored,
    survey_matrix,
)
from lowrank_core.energy import mean_energy
from lowrank_core.layout import Layout, on_axis, with_side_of
from lowrank_core.ops import Ops, ops_for, ops_for_namespace
from lowrank_core.random import make_key
from lowrank_core.residuals import (
    DEFAULT_SCALE,
    limit_growth,
    normalize_columns,
    row_ratios,
    without_chosen,
)
from lowrank_core.rounding import store
from lowrank_core.state import check_state, empty_state, load_buffer, store_buffer
from lowrank_core.subspaces import starting_vectors
from lowrank_core.update import LowRankUpdate, lifted, product_vectors, subtract_lifted


def dct_adamw_init(
    shape: tuple[int, ...],
    config: DCTAdamWConfig,
    *,
    xp: Namespace,
    dtype: DType = None,
    device: Device = None,
    stream: int = 0,
) -> DCTAdamWState:
    """Return the state before the first step: moments of zero for the first ``r`` columns.

    Parameters
    ----------
    shape
        ``(..., m, n)``: leading dimensions stack independent matrices.
    config
        The options.
    xp
        Array namespace of the gradients to come.
    dtype
        Their dtype; float32 by default.
    device
        Where to keep the state; the library's default place by default.
    stream
        Number of the matrix among those of a model, so that each draws random numbers of its own.

    Raises
    ------
    ValueError
        If the rank exceeds the transformed dimension, or the basis does not exist at its size.
    """
    ops = ops_for_namespace(xp)
    layout = config.layout(shape)
    spec = config.state_spec(shape, ops.compute_dtype_name(dtype))
    arrays = empty_state(spec, ops, device)
    if config.stored:
        vectors = arrays["vectors"]
        arrays["vectors"] = starting_vectors(tuple(vectors.shape), config.seed, ops, vectors)
    else:
        first = ops.xp.arange(layout.rank, dtype=ops.xp.int32, device=device)
        arrays["indices"] = arrays["indices"] + first
    if config.selection == "sampled":
        arrays["key"] = make_key(config.seed, stream, layout.batch, ops, device)
    return DCTAdamWState(step=ops.step_counter(device), **arrays)


def dct_adamw_step(
    gradient: Array,
    state: DCTAdamWState,
    config: DCTAdamWConfig,
    /,
    *,
    refresh: bool | Array | None = None,
    survey: Survey | None = None,
    ops: Ops | None = None,
) -> tuple[LowRankUpdate, DCTAdamWState]:
    """Return the direction of one step and the state after it; neither argument is changed.

    With ``A`` the gradient plus the fed-back residual and ``a = A Q_I`` its coefficients on the chosen columns,
    ``m <- b1 m + (1 - b1) a``, ``v <- b2 v + (1 - b2) a^2`` and ``u = m_hat / (sqrt(v_hat) + eps)``. The parameter
    is to move by ``-rate * (u Q_I^T + residual part)``; decoupled weight decay is the caller's.

    Parameters
    ----------
    gradient
        ``(..., m, n)``, real floating-point.
    state
        From :func:`dct_adamw_init` or an earlier step on the same shape.
    config
        The options the state was made with.
    refresh
        Whether to choose columns anew at this step; ``None`` follows ``config.refresh_every``. A host
        boolean where steps are not traced.
    survey
        Where ``gradient`` and ``state`` are a block of a matrix: what :func:`dct_adamw_survey` found in the whole,
        for that block (``survey.across(block)``).
    ops
        Operations to use; those of the gradient's library by default.

    Returns
    -------
    tuple
        The update, in float32 (float64 for float64 gradients), dimensionless, and the new state.

    Raises
    ------
    TypeError, ValueError
        If the gradient is not a matrix of real floating-point numbers, or the state is not one for it.
    """
    ops = ops_for(gradient) if ops is None else ops
    check_matrix("gradient", gradient, ops.xp)
    if survey is not None:
        config = with_side_of(config, survey.axis)
    shape = tuple(gradient.shape)
    layout = config.layout(shape)
    check_state(state, config.state_spec(shape), shape)

    step = state.step + 1
    full = _with_feedback(gradient, state, config, ops)
    if refresh is None:
        refresh = config.refreshes(step)

    coefficients = None
    if config.stored:
        at, low_rank = project_stored(full, state, step, refresh, config, layout, ops)
    else:
        at, low_rank, coefficients = project_fixed(
            full, survey, state, step, refresh, config, layout, ops
        )
    if config.residual == "discard":
        # In the moments, and of no other use: gone before the direction is made.
        del low_rank
        return advance(at, state, step, config, layout, ops)
    update, kept = advance(at, state, step, config, layout, ops)
    return _add_residual(update, kept, full, coefficients, low_rank, config, layout, ops)


def dct_adamw_survey(
    gradient: Array, state: DCTAdamWState, config: DCTAdamWConfig, /, *, ops: Ops | None = None
) -> Survey:
    """Return what the next step has to know of the whole of ``gradient``, so that it can be done block by block.

    Columns are chosen here. All that then remains treats rows (axis -1) or columns (axis -2) alone: for blocks of these
    in turn ``dct_adamw_step(..., survey=survey.across(block))`` gives the update and the state of the block, and no
    array as large as the matrix is made beside the one that the survey holds. With ``feedback_bits`` blocks of columns
    begin at multiples of 256, which share a scale.

    Parameters
    ----------
    gradient, state, config, ops
        As for :func:`dct_adamw_step`, the step count being a host number.

    Returns
    -------
    Survey
        For the whole; ``across`` cuts it.

    Raises
    ------
    TypeError, ValueError
        As :func:`dct_adamw_step`; and if the rest of the step is not one that treats rows alone: with a basis that is
        not fixed, or a residual limited by its norm.
    """
    ops = ops_for(gradient) if ops is None else ops
    check_matrix("gradient", gradient, ops.xp)
    shape = tuple(gradient.shape)
    layout = config.layout(shape)
    check_state(state, config.state_spec(shape), shape)
    if config.grain(layout.axis) is None:
        raise ValueError(f"config must be of a rule that treats rows alone, got {config!r}")
    step = state.step + 1
    full, plus = ops.to_compute(gradient), None
    if state.feedback is not None:
        plus = load_buffer(state, "feedback", config.feedback_bits, shape, full.dtype, ops)
    survey = survey_matrix(full, plus, state, step, config.refreshes(step), config, layout, ops)
    vectors = product_vectors(survey.indices, layout.size, config.basis, full, config.method, ops)
    return survey._replace(vectors=vectors)


def _with_feedback(
    gradient: Array, state: DCTAdamWState, config: DCTAdamWConfig, ops: Ops
) -> Array:
    """Return the gradient in a compute dtype plus what earlier steps left out; that makes it the step's own."""
    full = ops.to_compute(gradient)
    if state.feedback is None:
        return full
    shape = tuple(gradient.shape)
    before = load_buffer(state, "feedback", config.feedback_bits, shape, full.dtype, ops)
    return ops.add(full, before)


def advance(
    at: Subspace,
    state: DCTAdamWState,
    step: int | Array,
    config: DCTAdamWConfig,
    layout: Layout,
    ops: Ops,
) -> tuple[LowRankUpdate, DCTAdamWState]:
    """Return Adam's step in the subspace."""
    ages = None if at.moments.ages is None else at.moments.ages + 1
    first, second = at.moments.first, at.moments.second
    weights = _weights(config, step, ages, first, layout.axis, ops)
    factor = adam_direction(first, second, weights, config.eps, ops)
    update = LowRankUpdate(factor, at.indices, layout.axis, layout.size, config.basis, at.vectors)
    kept = state._replace(
        step=step,
        first_moment=store(first, state.first_moment.dtype, step, 1, ops),
        second_moment=store(second, state.second_moment.dtype, step, 2, ops),
        indices=at.indices,
        vectors=at.vectors if config.stored else None,
        ages=ages,
        energy=at.energy,
    )
    return update, kept


def _add_residual(
    update: LowRankUpdate,
    state: DCTAdamWState,
    full: Array,
    coefficients: Array | None,
    low_rank: Array,
    config: DCTAdamWConfig,
    layout: Layout,
    ops: Ops,
) -> tuple[LowRankUpdate, DCTAdamWState]:
    """Return the update and the state with what the residual policy makes of the rest of the gradient."""
    axis = layout.axis
    scale = config.residual_scale
    if scale is None:
        scale = DEFAULT_SCALE.get(config.residual, 1.0)
    if config.residual == "normalized" and coefficients is not None and state.energy is not None:
        decay, count = config.energy_decay, config.energy_count(state.step)
        mean = mean_energy(state.energy, decay, count, ops)
        complement = normalize_columns(coefficients, mean, scale, config.eps, ops, axis=axis)
        return replace(update, complement=complement), state
    if config.residual == "scaled" and state.residual_norm is not None:
        ratios = row_ratios(update.factor, low_rank, ops, axis=axis) * scale
        if coefficients is None or update.indices is None:
            rest = full - lifted(low_rank, update, config.method, ops)
        else:
            rest = without_chosen(coefficients, update.indices, ops, axis=axis)
        rest, norm = limit_growth(rest * ratios, state.residual_norm, ops)
        state = state._replace(residual_norm=norm)
        if coefficients is None:
            return replace(update, residual=rest), state
        return replace(update, complement=rest), state
    if config.residual == "sign":
        if layout.rank == layout.size:  # what is left is rounding, which has signs too
            return update, state
        return replace(update, gradient=full, projected=low_rank, sign_scale=scale), state
    # What is fed back makes `full` this step's own.
    rest = subtract_lifted(full, replace(update, factor=low_rank), config.method, ops)
    return update, store_buffer(state, "feedback", rest, config.feedback_bits, state.step, ops)


def _weights(
    config: DCTAdamWConfig,
    step: int | Array,
    ages: Array | None,
    like: Array,
    axis: int,
    ops: Ops,
) -> tuple[Scalar, Scalar]:
    """Return what the two moments are divided by to correct for their start."""
    beta1, beta2 = config.betas
    if ages is None:
        return decayed_weight(beta1, step, ops, like), decayed_weight(beta2, step, ops, like)
    if config.bias_correction == "column":
        first = decayed_weight(beta1, ages, ops, like)
        return on_axis(first, axis), on_axis(decayed_weight(beta2, ages, ops, like), axis)
    return 1.0, on_axis(decayed_weight(beta2, ages + SEED_COUNT, ops, like), axis)
