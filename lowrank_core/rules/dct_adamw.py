"""DCT-AdamW for one matrix: Adam's moments kept for the few basis columns a gradient aligns with.

Source: I.-V. Modoranu, M. Safaryan, E. Schultheis, M. Ryabinin, A. Chumachenko, D. Alistarh, "FFT-based
dynamic subspace selection for low-rank adaptive optimization of large language models", arXiv 2505.17967.

Notation, for a matrix whose rows are transformed (axis -1); where columns are, transpose everything::

    G   m x n   gradient                     Q    n x n   orthonormal basis, Q_I its columns I
    Xi  m x n   what earlier steps left out  I    r       the chosen columns
    A   m x n   G + Xi                       a    m x r   A Q_I, the coefficients on them
    S   m x n   A Q, all coefficients        m, v m x r   Adam's moments of a
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from lowrank_core._checks import check_integer, check_kind, check_matrix
from lowrank_core._typing import Array, Device, DType, Namespace, Scalar
from lowrank_core.layout import on_axis
from lowrank_core.numerics.random import make_key
from lowrank_core.ops.axes import apply_matrix
from lowrank_core.ops.precision import compute_dtype, compute_dtype_name, to_compute
from lowrank_core.ops.registry import ops_for, ops_for_namespace
from lowrank_core.ops.standard import Ops
from lowrank_core.rules.dct_adamw_columns import (
    ColumnSelection,
    columns_due,
    compute_vectors,
    select,
)
from lowrank_core.rules.dct_adamw_config import SEED_COUNT, DCTAdamWConfig, DCTAdamWState
from lowrank_core.rules.reductions import Steps, Sum, run
from lowrank_core.rules.residuals import (
    DEFAULT_SCALE,
    limit_growth,
    normalize_columns,
    row_ratios,
)
from lowrank_core.rules.rule import MatrixStep, bind
from lowrank_core.rules.state import (
    check_state,
    empty_state,
    load_buffer,
    load_squares,
    store_buffer,
    store_squares,
)
from lowrank_core.subspace.empty import as_chosen, infinite_where, is_rounding
from lowrank_core.subspace.factored import Roots, factored_roots, row_squares
from lowrank_core.subspace.moments import (
    Moments,
    carry_moments,
    decayed_weight,
    mean_energy,
    update_energy,
)
from lowrank_core.subspace.projection import project_on
from lowrank_core.subspace.stored import starting_vectors
from lowrank_core.subspace.update import (
    CoefficientRest,
    DenseRest,
    LowRankUpdate,
    SignRest,
    lifted,
    without_chosen,
)


def dct_adamw_steps(
    gradient: Array, state: DCTAdamWState, matrix: MatrixStep[DCTAdamWConfig], due: Any
) -> Steps[tuple[LowRankUpdate, DCTAdamWState]]:
    """Do one step on some or all rows of a matrix: a generator of the sums over all rows that it needs.

    Parameters
    ----------
    gradient
        ``(..., m, n)``: all rows of a matrix or, where ``matrix`` says so, some.
    state
        The state of these rows.
    matrix
        What the steps of the matrix are bound to.
    due
        Whether columns are chosen anew, a host boolean; or for which matrices of a stack, booleans ``(...)``.

    Returns
    -------
    Generator
        Yields `Sum`; returns the update and the new state. The update may refer to ``gradient``.
    """
    config, ops = matrix.config, matrix.ops
    refresh = due is not False
    if config.factored:
        # p_i <- b2 p_i + (1 - b2) mean_j A_ij^2, which over a row of A is what it is over one of S.
        squares = row_squares(_with_feedback(gradient, state, matrix), matrix.layout.axis, ops)
        state = state._replace(
            row_energy=update_energy(
                state.row_energy, squares, matrix.layout.size, config.energy_decay
            )
        )
    # S = A Q, and I: its columns with the largest norms, or those of the step before. Stored vectors are computed from
    # the whole matrix instead: there is nothing to add up.
    S: Any = None
    columns: Any = None
    if matrix.basis is not None:
        if refresh or config.transforms_every_step:
            # Of A and S, as large as the matrix, S alone is held while the sum is waited for: A is made anew of G.
            S = matrix.basis.transform_scored(
                _with_feedback(gradient, state, matrix),
                ops, axis=matrix.layout.axis, method=matrix.method, norms=config.norms(refresh),
            )  # fmt: skip
        choose = partial(select, state, matrix, due, compute_dtype(gradient.dtype, ops.xp))
        columns = yield Sum(None if S is None else S.sums, choose)
    # a = A Q_I, and m, v of the columns: one that stays keeps them, a newcomer starts at zero.
    projected = _project(gradient, state, columns, S, matrix, due)
    # m <- b1 m + (1 - b1) a,  v <- b2 v + (1 - b2) a^2,  u = m_hat / (sqrt(v_hat) + eps)
    update, after = adam_step(
        projected.a, projected.moments, projected.columns, state, matrix, overwrite=refresh
    )
    # What becomes of E = A - a Q_I^T. The parameter moves by -lr (u Q_I^T + rest).
    rest, after = _rest(projected, update, after, matrix)
    if config.residual == "scaled":
        # The norm of it all grows by at most 1 % a step.
        E = rest.values
        square = ops.xp.sum(E * E, axis=(-2, -1))
        shrink, norm = yield Sum(square, partial(limit_growth, state.residual_norm, ops))
        rest = rest._replace(values=E * shrink[..., None, None])
        after = after._replace(residual_norm=norm)
    return replace(update, rest=rest), after


class _Projected(NamedTuple):
    """A gradient on the columns of a step; of ``A`` and ``S``, as large as the matrix, what is needed further on."""

    a: Array
    columns: ColumnSelection
    moments: Moments
    A: Any
    S: Any


def _project(
    gradient: Array,
    state: DCTAdamWState,
    columns: Any,
    S: Any,
    matrix: MatrixStep[DCTAdamWConfig],
    due: Any,
) -> _Projected:
    """Return the coefficients on the ``columns`` of this step, from all of them, ``S``, where these are known.

    And the moments carried to these columns; of stored vectors, which are computed here, ``columns`` is ``None``.
    """
    config, axis, ops = matrix.config, matrix.layout.axis, matrix.ops
    A = _with_feedback(gradient, state, matrix)
    moments = wide_moments(state, A, matrix)
    if columns is None:
        columns = ColumnSelection(None, None, ops.astype(state.vectors, A.dtype))
        if due is not False:
            columns, moments = compute_vectors(A, columns.vectors, moments, state.step, matrix, due)
        a = apply_matrix(A, columns.vectors, axis, ops.xp)
        # Of vectors too that stand for nothing but rounding, in all steps so far.
        beta2 = config.betas[1]
        squares = moments.second * beta2 + a * a * (1 - beta2)
        norms = ops.xp.sqrt(ops.xp.sum(squares, axis=-3 - axis))
        columns = columns._replace(empty=is_rounding(norms, ops))
        return _Projected(a, columns, moments, A, None)
    if S is None:
        a = project_on(A, columns.indices, columns.vectors, matrix.basis, axis, ops)
    else:
        a = S.take(columns.indices)
    if due is not False:
        moments = carry_moments(moments, columns.moved, columns.newcomers, axis, ops)
    kept = S if config.rest_in_coefficients else None
    return _Projected(a, columns, moments, None if config.residual == "discard" else A, kept)


def _rest(
    projected: _Projected,
    update: LowRankUpdate,
    state: DCTAdamWState,
    matrix: MatrixStep[DCTAdamWConfig],
) -> tuple[Any, DCTAdamWState]:
    """Return what the residual policy adds to the update, and ``state``, which is that after this step, with its part.

    With ``rho`` the option ``residual_scale``.
    """
    config, layout, ops, t = matrix.config, matrix.layout, matrix.ops, state.step
    a, columns, _, A, S = projected
    rho = rest_scale(config)
    if config.residual == "sign" and columns.outside is not None:
        rho = rho * ops.astype(columns.outside, A.dtype)[..., None, None]
    match config.residual:
        case "error_feedback":
            # Xi <- E
            E = A - lifted(a, update, ops)
            return None, store_buffer(state, "feedback", E, config.feedback_bits, t, ops)
        case "sign" if (
            layout.rank < layout.size
        ):  # of all columns E is rounding, which has signs too
            # rho sign(E)
            return SignRest(A, a, rho), state
        case "normalized":
            # rho S_j / (sqrt(c_j) + eps), with c_j the moving average of column j's mean square
            c = mean_energy(columns.energy, config.energy_decay, config.energy_count(t), ops)
            scaled = normalize_columns(S.values, c, rho, config.eps, ops, axis=layout.axis)
            return CoefficientRest(scaled), state
        case "bounded":
            # rho S_ij / sqrt(D_ij + S_ij^2)
            roots = _roots(columns, state, t, matrix).of_all(config.eps, layout.axis, ops)
            return CoefficientRest(ops.bounded(S.values, roots, rho)), state
        case "scaled":
            # rho ||u_i|| / ||a_i|| E_i for each row i
            ratios = row_ratios(update.factor, a, ops, axis=layout.axis) * rho
            if S is None:
                E = (A - lifted(a, update, ops)) * ratios
            else:
                E = without_chosen(S.values, columns.indices, layout.axis, ops) * ratios
            return (DenseRest(E) if S is None else CoefficientRest(E)), state
        case _:
            return None, state


def rest_scale(config: DCTAdamWConfig) -> Scalar:
    """Return what the residual part of a step is multiplied by, besides the learning rate."""
    rho = config.residual_scale
    if rho is None:
        rho = DEFAULT_SCALE.get(config.residual, 1.0)
    if config.residual != "scaled":  # as what is in the subspace, by whose length it is scaled
        rho = rho * config.update_scale
    return rho


def _with_feedback(
    gradient: Array, state: DCTAdamWState, matrix: MatrixStep[DCTAdamWConfig]
) -> Array:
    """Return ``A = G + Xi`` in the dtype to compute in."""
    full = to_compute(gradient, matrix.ops)
    if state.feedback is None:
        return full
    shape, bits = tuple(gradient.shape), matrix.config.feedback_bits
    return full + load_buffer(state, "feedback", bits, shape, full.dtype, matrix.ops)


def wide_moments(state: DCTAdamWState, x: Array, matrix: MatrixStep[DCTAdamWConfig]) -> Moments:
    """Return the moments of ``state`` in the dtype of ``x``: as many rows of the matrix, or of coefficients of it."""
    config, axis, ops = matrix.config, matrix.layout.axis, matrix.ops
    shape = (*x.shape[:-1], matrix.layout.rank if axis == -1 else x.shape[-1])
    first = load_buffer(state, "first_moment", config.moment_bits, shape, x.dtype, ops)
    second = None
    if not config.factored:
        second = load_squares(state.second_moment, x.dtype, ops)
    return Moments(first, second, state.ages)


def _roots(
    columns: ColumnSelection,
    state: DCTAdamWState,
    t: int | Array,
    matrix: MatrixStep[DCTAdamWConfig],
) -> Roots:
    """Return the roots of the factored second moment after step ``t``."""
    decay, ops = matrix.config.energy_decay, matrix.ops
    rows = mean_energy(state.row_energy, decay, t, ops)
    return factored_roots(rows, mean_energy(columns.energy, decay, t, ops), ops)


def adam_step(
    low_rank: Array,
    moments: Moments,
    columns: ColumnSelection,
    state: DCTAdamWState,
    matrix: MatrixStep[DCTAdamWConfig],
    *,
    overwrite: bool,
) -> tuple[LowRankUpdate, DCTAdamWState]:
    """Return Adam's step on the chosen columns, without a residual part, and the state after it."""
    config, layout, ops = matrix.config, matrix.layout, matrix.ops
    t, eps = state.step + 1, config.eps
    if columns.empty is not None:
        eps = on_axis(infinite_where(columns.empty, eps, low_rank, ops), layout.axis)
    ages = moments.ages
    if ages is not None:
        # No older than that: it makes no difference to any weight, and there is an end to int32.
        ages = ages + ops.astype(ages < 2**30, ages.dtype)
    weights = moment_weights(ages, t, low_rank, matrix)
    if config.factored:
        # sqrt(D_ij), with D_ij = p_i c_j / mean(c) in the place of v
        roots = _roots(columns, state, t, matrix).of_columns(columns.indices, layout.axis, ops)
        beta1, second = config.betas[0], None
        first = moments.first * beta1 + low_rank * (1 - beta1)
        factor = first / weights[0] / (roots + eps)
    else:
        factor, first, second = ops.adam_update(
            low_rank, (moments.first, moments.second), config.betas, weights, eps,
            overwrite=overwrite,
        )  # fmt: skip
        second = store_squares(second, state.second_moment.dtype, t, ops)
    update = LowRankUpdate(
        factor, columns.indices, layout.axis, layout.size, config.basis, columns.vectors,
        method=config.method,
    )  # fmt: skip
    vectors = state.vectors
    if vectors is not None:
        vectors = ops.astype(columns.vectors, vectors.dtype)
    kept = store_buffer(state, "first_moment", first, config.moment_bits, t, ops)
    return update, kept._replace(
        step=t,
        second_moment=second,
        indices=columns.kept,
        vectors=vectors,
        ages=ages,
        energy=columns.energy,
    )


def moment_weights(
    ages: Array | None, t: int | Array, like: Array, matrix: MatrixStep[DCTAdamWConfig]
) -> tuple[Scalar, Scalar]:
    """Return what the two moments are divided by: to correct for their start at zero, and to scale the update."""
    config, axis, ops = matrix.config, matrix.layout.axis, matrix.ops
    beta1, beta2 = config.betas
    seen = t if ages is None else ages
    first: Any = 1.0
    if config.bias_correction == "gentle":
        # A newcomer's first moment is left small, and its second was seeded: so it fades in.
        seen = seen + SEED_COUNT
    else:
        first = on_axis(decayed_weight(beta1, seen, ops, like), axis)
    second = on_axis(decayed_weight(beta2, seen, ops, like), axis)
    return first / config.update_scale, second


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
        Their dtype, an object or its name; float32 by default.
    device
        Where to keep the state; the library's default place by default.
    stream
        Number of the matrix among those of a model, so that each draws random numbers of its own.

    Raises
    ------
    ValueError
        If the rank exceeds the transformed dimension, or the basis does not exist at its size.
    """
    check_kind("config", config, DCTAdamWConfig, "a DCTAdamWConfig")
    check_integer("stream", stream, low=0)
    ops = ops_for_namespace(xp)
    layout = config.layout(shape)
    spec = config.state_spec(shape, compute_dtype_name(dtype))
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
    ops: Ops | None = None,
) -> tuple[LowRankUpdate, DCTAdamWState]:
    """Return the direction of one step and the state after it; neither argument is changed.

    With ``A`` the gradient plus the fed-back residual and ``a = A Q_I`` its coefficients on the chosen columns,
    ``m <- b1 m + (1 - b1) a``, ``v <- b2 v + (1 - b2) a^2`` and ``u = m_hat / (sqrt(v_hat) + eps)``. The parameter
    is to move by ``-lr * (u Q_I^T + residual part)``; decoupled weight decay is the caller's.

    Parameters
    ----------
    gradient
        ``(..., m, n)``, real floating-point. The update does not refer to it.
    state
        From :func:`dct_adamw_init` or an earlier step on the same shape.
    config
        The options the state was made with.
    refresh
        Whether to choose columns anew at this step; ``None`` follows ``config.refresh_every``, and chooses besides
        for matrices whose gradients were zero at all choices so far, where the host can tell without waiting for a
        device. A host boolean where steps are not traced.
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
    matrix = bind_checked(gradient, state, config, ops)
    ops = matrix.ops
    if not (refresh is None or isinstance(refresh, bool)):
        kind = getattr(refresh, "dtype", None)
        if kind is None or not ops.xp.isdtype(kind, "bool"):
            raise TypeError(f"refresh must be a boolean or None, got {refresh!r}")
    due = columns_due(state, matrix) if refresh is None else True
    if refresh is None:
        refresh = due is True or ops.xp.any(due)
        if due is not True and isinstance(state.step, int) and not ops.is_readable(due):
            refresh, state = False, as_chosen(state, matrix.layout.size, ops)

    def step(due: Any) -> tuple[LowRankUpdate, DCTAdamWState]:
        return run(dct_adamw_steps(gradient, state, matrix, due))

    update, after = ops.cond(refresh, lambda: step(due), lambda: step(False))
    if isinstance(update.rest, SignRest) and update.rest.gradient is gradient:
        own = update.rest._replace(gradient=ops.copy(gradient))
        update = replace(update, rest=own)
    return update, after


def bind_checked(
    gradient: Array, state: DCTAdamWState, config: DCTAdamWConfig, ops: Ops | None
) -> MatrixStep[DCTAdamWConfig]:
    """Return what a step is bound to, its arguments checked."""
    check_kind("config", config, DCTAdamWConfig, "a DCTAdamWConfig")
    ops = ops_for(gradient) if ops is None else ops
    check_matrix("gradient", gradient, ops.xp)
    shape = tuple(gradient.shape)
    matrix = bind(config, shape, ops, ops.device_of(gradient))
    check_state(state, config.state_spec(shape), shape)
    return matrix
