"""DCT-AdamW for one matrix: Adam's moments kept for the few basis columns a gradient aligns with.

Source: I.-V. Modoranu, M. Safaryan, E. Schultheis, M. Ryabinin, A. Chumachenko, D. Alistarh, "FFT-based
dynamic subspace selection for low-rank adaptive optimization of large language models", arXiv 2505.17967.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from lowrank_core._checks import (
    check_betas,
    check_choice,
    check_integer,
    check_matrix,
    check_number,
)
from lowrank_core._typing import Array, Device, DType, Namespace, Scalar
from lowrank_core.adam import adam_direction, decayed_weight, update_moments
from lowrank_core.bases import basis_names, get_basis
from lowrank_core.columns import (
    SCORES,
    gather_matched,
    match_columns,
    score_sums,
    top_columns,
)
from lowrank_core.layout import SIDES, Layout, check_rank, layout_of
from lowrank_core.ops import METHODS, Ops, ops_for, ops_for_namespace
from lowrank_core.projection import lift_from, project_onto
from lowrank_core.state import ArraySpec, check_state, check_state_dtype, empty_state
from lowrank_core.update import LowRankUpdate

RESIDUALS = ("discard", "error_feedback")
BIAS_CORRECTIONS = ("step", "column")


@dataclass(frozen=True)
class DCTAdamWConfig:
    """Options of DCT-AdamW; numbers may be traced values, everything else is static.

    Attributes
    ----------
    rank
        Basis columns kept: an integer, or a fraction in (0, 1) of the transformed dimension.
    betas
        Decay rates of the first and second moment, each in [0, 1), dimensionless.
    eps
        Added to the root of the second moment, in the units of the gradient.
    basis
        Name of a fixed orthonormal basis.
    score
        Norm by which columns are chosen, ``"l2"`` or ``"l1"``.
    refresh_every
        Columns are chosen anew at step 1 and at every step divisible by this.
    side
        ``"right"`` transforms rows, ``"left"`` columns, ``"auto"`` along the shorter dimension.
    method
        How to transform: ``"auto"``, ``"matmul"`` or ``"fft"``. A choice of speed alone.
    residual
        What becomes of the part of the gradient outside the chosen columns: ``"discard"`` drops it,
        ``"error_feedback"`` adds it to the next gradient (state of the size of the parameter).
    bias_correction
        ``"step"`` corrects both moments by the step count; ``"column"`` by the age of each column, so that a
        newcomer moves by a full unit step at first.
    state_dtype
        Name of the dtype the moments are kept in; ``None`` for float32 (float64 for float64 gradients).
        Arithmetic is in float32 at least.

    Raises
    ------
    TypeError, ValueError
        If an option is none of the above.
    """

    rank: int | float
    betas: tuple[Scalar, Scalar] = (0.9, 0.999)
    eps: Scalar = 1e-8
    basis: str = "dct"
    score: str = "l2"
    refresh_every: int = 1
    side: str = "auto"
    method: str = "auto"
    residual: str = "discard"
    bias_correction: str = "step"
    state_dtype: str | None = None

    def __post_init__(self) -> None:
        check_rank(self.rank)
        check_betas(self.betas)
        check_number("eps", self.eps, low=0)
        check_choice("basis", self.basis, basis_names())
        check_choice("score", self.score, SCORES)
        check_integer("refresh_every", self.refresh_every, low=1)
        check_choice("side", self.side, SIDES)
        check_choice("method", self.method, METHODS)
        check_choice("residual", self.residual, RESIDUALS)
        check_choice("bias_correction", self.bias_correction, BIAS_CORRECTIONS)
        check_state_dtype(self.state_dtype)

    def layout(self, shape: tuple[int, ...]) -> Layout:
        """Return the geometry of matrices of ``shape`` under these options."""
        layout = layout_of(shape, rank=self.rank, side=self.side)
        get_basis(self.basis).check_size(layout.size)
        return layout

    def state_spec(self, shape: tuple[int, ...], dtype: str = "float32") -> dict[str, ArraySpec]:
        """Return shape and dtype of every array of the state of matrices of ``shape``.

        ``dtype`` names the dtype that moments are kept in unless ``state_dtype`` says otherwise.
        """
        layout, moments = self.layout(shape), self.state_dtype or dtype
        spec = {
            "indices": ArraySpec(layout.indices_shape, "int32"),
            "first_moment": ArraySpec(layout.low_rank_shape, moments),
            "second_moment": ArraySpec(layout.low_rank_shape, moments),
        }
        if self.bias_correction == "column":
            spec["ages"] = ArraySpec(layout.indices_shape, "int32")
        if self.residual == "error_feedback":
            spec["feedback"] = ArraySpec(layout.shape, moments)
        return spec


class DCTAdamWState(NamedTuple):
    """What DCT-AdamW remembers of one matrix (or of a stack of matrices) between steps."""

    #: Steps done: a host number, or a 0-d int32 array where steps are traced.
    step: int | Array
    #: ``(..., r)`` int32, ascending: the chosen basis columns.
    indices: Array
    #: ``(..., m, r)`` (right side) or ``(..., r, n)`` (left side): running mean of the coefficients.
    first_moment: Array
    #: As ``first_moment``: running mean of their squares.
    second_moment: Array
    #: ``(..., r)`` int32: steps each column has been chosen for, with ``bias_correction="column"``.
    ages: Array | None = None
    #: ``(..., m, n)``: what earlier steps left out, with ``residual="error_feedback"``.
    feedback: Array | None = None


def dct_adamw_init(
    shape: tuple[int, ...],
    config: DCTAdamWConfig,
    *,
    xp: Namespace,
    dtype: DType = None,
    device: Device = None,
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

    Raises
    ------
    ValueError
        If the rank exceeds the transformed dimension, or the basis does not exist at its size.
    """
    ops = ops_for_namespace(xp)
    layout = config.layout(shape)
    spec = config.state_spec(shape, ops.compute_dtype_name(dtype))
    arrays = empty_state(spec, ops, device)
    arrays["indices"] = arrays["indices"] + ops.xp.arange(
        layout.rank, dtype=ops.xp.int32, device=device
    )
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
    is to move by ``-rate * (u Q_I^T)``; decoupled weight decay is the caller's.

    Parameters
    ----------
    gradient
        ``(..., m, n)``, real floating-point.
    state
        From :func:`dct_adamw_init` or an earlier step on the same shape.
    config
        The options the state was made with.
    refresh
        Whether to choose columns anew at this step; ``None`` follows ``config.refresh_every``. A host boolean
        where steps are not traced.
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
    shape = tuple(gradient.shape)
    layout, basis = config.layout(shape), get_basis(config.basis)
    check_state(state, config.state_spec(shape), shape)
    axis = layout.axis

    full = ops.to_compute(gradient)
    like = full
    if state.feedback is not None:
        full = full + ops.astype(state.feedback, full.dtype)
    first = ops.astype(state.first_moment, full.dtype)
    second = ops.astype(state.second_moment, full.dtype)
    step = state.step + 1

    def choose() -> tuple[Array, Array, Array, Array | None, Array]:
        coefficients = basis.transform(full, ops, axis=axis, method=config.method)
        scores = score_sums(coefficients, axis, config.score, ops)
        indices = top_columns(scores, layout.rank, ops)
        position, stayed = match_columns(state.indices, indices, ops)
        ages = state.ages
        return (
            indices,
            gather_matched(first, position, stayed, ops, axis=axis),
            gather_matched(second, position, stayed, ops, axis=axis),
            None if ages is None else _carry_ages(ages, position, stayed, ops),
            ops.take(coefficients, indices, axis=axis),
        )

    def keep() -> tuple[Array, Array, Array, Array | None, Array]:
        low_rank = project_onto(full, state.indices, basis, ops, axis=axis, method=config.method)
        return state.indices, first, second, state.ages, low_rank

    if refresh is None:
        refresh = (step == 1) | (step % config.refresh_every == 0)
    indices, first, second, ages, low_rank = ops.cond(refresh, choose, keep)

    feedback = None
    if state.feedback is not None:
        kept = lift_from(
            low_rank, indices, layout.size, basis, ops, axis=axis, method=config.method
        )
        feedback = ops.astype(full - kept, state.feedback.dtype)

    if ages is not None:
        ages = ages + 1
    first, second = update_moments(low_rank, first, second, config.betas)
    count = step if ages is None else ages
    beta1, beta2 = config.betas
    weights = (
        _across(decayed_weight(beta1, count, ops, like), axis),
        _across(decayed_weight(beta2, count, ops, like), axis),
    )
    factor = adam_direction(first, second, weights, config.eps, ops)
    update = LowRankUpdate(factor, indices, axis, layout.size, config.basis)
    return update, DCTAdamWState(
        step=step,
        indices=indices,
        first_moment=ops.astype(first, state.first_moment.dtype),
        second_moment=ops.astype(second, state.second_moment.dtype),
        ages=ages,
        feedback=feedback,
    )


def _carry_ages(ages: Array, position: Array, stayed: Array, ops: Ops) -> Array:
    carried = ops.xp.take_along_axis(ages, ops.as_index(position), axis=-1)
    return ops.xp.where(stayed, carried, ops.xp.zeros_like(carried))


def _across(weight: Scalar, axis: int) -> Scalar:
    """Return a weight for each column ``(..., r)`` so that it broadcasts over the low-rank matrix."""
    if isinstance(weight, (int, float)) or weight.ndim == 0:
        return weight
    return weight[..., None, :] if axis == -1 else weight[..., :, None]
