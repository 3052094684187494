"""Trion for one matrix: momentum orthonormalised on the few basis columns it aligns with.

Source: I.-V. Modoranu, M. Safaryan, E. Schultheis, M. Ryabinin, A. Chumachenko, D. Alistarh, "FFT-based
dynamic subspace selection for low-rank adaptive optimization of large language models", arXiv 2505.17967.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from lowrank_core._checks import check_choice, check_matrix, check_number
from lowrank_core._typing import Array, Device, DType, Namespace, Scalar
from lowrank_core.bases import get_basis
from lowrank_core.columns import SCORES, top_columns
from lowrank_core.layout import SIDES, Layout, check_rank, cut_across, layout_of, with_side_of
from lowrank_core.ops import METHODS, Ops, ops_for, ops_for_namespace
from lowrank_core.orthogonalization import check_orthogonalization, orthogonalize_factor
from lowrank_core.quantization import BITS, block_grain
from lowrank_core.state import (
    ArraySpec,
    buffer_spec,
    check_state,
    check_state_dtype,
    empty_state,
    load_buffer,
    store_buffer,
)
from lowrank_core.update import LowRankUpdate, product_vectors, subtract_lifted

SCALES = ("none", "spectral", "dion", "rms")


@dataclass(frozen=True)
class TrionConfig:
    """Options of Trion; numbers may be traced values, everything else is static.

    Attributes
    ----------
    rank
        Basis columns the update has: an integer, or a fraction in (0, 1) of the transformed dimension.
    momentum
        Decay rate of the momentum in [0, 1), dimensionless.
    basis
        Name of a fixed orthonormal basis (see `DCTAdamWConfig`).
    score
        Norm by which columns are chosen at every step, ``"l2"`` or ``"l1"``.
    side
        ``"right"`` transforms rows, ``"left"`` columns, ``"auto"`` along the shorter dimension.
    method
        How to transform: ``"auto"``, ``"matmul"`` or ``"fft"``. A choice of speed alone.
    steps, coefficients
        Newton-Schulz steps, and their polynomials: ``"muon"`` or ``"polar_express"``.
    scale
        What an ``m x n`` update is multiplied by: ``"none"`` 1, ``"spectral"`` ``sqrt(max(1, m / n))`` (the paper's),
        ``"dion"`` ``sqrt(m / n)``, ``"rms"`` ``0.2 sqrt(max(m, n))``.
    rank_scaling
        Multiply the update by ``sqrt(size / rank)`` as well, so that its norm, and with it the best rate, does not
        depend on the rank.
    momentum_bits
        8 or 4 to keep the momentum in that many bits; ``None`` for ``state_dtype``.
    state_dtype
        Name of the dtype the momentum is kept in; ``None`` for float32 (float64 for float64 gradients).

    Raises
    ------
    TypeError, ValueError
        If an option is none of the above.
    """

    rank: int | float
    momentum: Scalar = 0.85
    basis: str = "dct"
    score: str = "l2"
    side: str = "auto"
    method: str = "auto"
    steps: int = 5
    coefficients: str = "muon"
    scale: str = "spectral"
    rank_scaling: bool = False
    momentum_bits: int | None = None
    state_dtype: str | None = None

    def __post_init__(self) -> None:
        check_rank(self.rank)
        check_number("momentum", self.momentum, low=0, high=1)
        get_basis(self.basis)
        check_choice("score", self.score, SCORES)
        check_choice("side", self.side, SIDES)
        check_choice("method", self.method, METHODS)
        check_orthogonalization(self.steps, self.coefficients)
        check_choice("scale", self.scale, SCALES)
        check_choice("rank_scaling", self.rank_scaling, (False, True))
        check_choice("momentum_bits", self.momentum_bits, (None, *BITS))
        check_state_dtype(self.state_dtype)

    def layout(self, shape: tuple[int, ...]) -> Layout:
        """Return the geometry of matrices of ``shape`` under these options."""
        layout = layout_of(shape, rank=self.rank, side=self.side)
        get_basis(self.basis).check_size(layout.size)
        return layout

    def grain(self, axis: int) -> int:
        """Return the multiples at which blocks of the dimension that is not ``axis`` begin, to be stepped alone."""
        return block_grain(axis, self.momentum_bits)

    def state_spec(self, shape: tuple[int, ...], dtype: str = "float32") -> dict[str, ArraySpec]:
        """Return shape and dtype of every array of the state of matrices of ``shape``.

        ``dtype`` names the dtype the momentum is kept in unless ``state_dtype`` says otherwise.
        """
        layout = self.layout(shape)
        kept = self.state_dtype or dtype
        return buffer_spec("momentum", layout.shape, kept, dtype, self.momentum_bits)


class TrionState(NamedTuple):
    """What Trion remembers of one matrix (or of a stack of matrices) between steps."""

    #: Steps done, a host number, or a 0-d int32 array where steps are traced.
    step: int | Array
    #: Momentum and error feedback in one, ``(..., m, n)``, or codes for it (see `lowrank_core.Quantized`).
    momentum: Array
    #: Minimum of each block of codes, or ``None``.
    momentum_minimum: Array | None = None
    #: Scale of each block of codes, or ``None``.
    momentum_scale: Array | None = None


class TrionSurvey(NamedTuple):
    """What a step has to know of a whole matrix; the rest treats every row (axis -1) or column (axis -2) alone."""

    #: The columns of this step, ``(..., r)`` int32.
    indices: Array
    #: Momentum and gradient on them.
    low_rank: Array
    #: The direction in them, scaled.
    factor: Array
    #: The basis vectors of the columns ``(..., size, r)``, where products with these are faster than transforms.
    vectors: Array | None
    axis: int

    def across(self, block: slice) -> TrionSurvey:
        """Return what a block of the dimension that is not transformed needs to know."""
        low_rank, factor = (cut_across(x, block, self.axis) for x in (self.low_rank, self.factor))
        return self._replace(low_rank=low_rank, factor=factor)


def trion_init(
    shape: tuple[int, ...],
    config: TrionConfig,
    *,
    xp: Namespace,
    dtype: DType = None,
    device: Device = None,
) -> TrionState:
    """Return the state before the first step: a momentum of zero.

    The arguments are those of :func:`lowrank_core.dct_adamw_init`.
    """
    ops = ops_for_namespace(xp)
    spec = config.state_spec(shape, ops.compute_dtype_name(dtype))
    return TrionState(step=ops.step_counter(device), **empty_state(spec, ops, device))


def trion_step(
    gradient: Array,
    state: TrionState,
    config: TrionConfig,
    /,
    *,
    survey: TrionSurvey | None = None,
    ops: Ops | None = None,
) -> tuple[LowRankUpdate, TrionState]:
    """Return the direction of one step and the state after it; neither argument is changed.

    With ``B = M + G`` and ``b = B Q_I`` its coefficients on the ``r`` best columns, ``M <- B - (1 - mu) b Q_I^T`` and
    the direction is ``s(m, n) orthogonalize(b) Q_I^T``. What is left in ``M`` comes again: momentum and error feedback
    are one buffer.

    Parameters
    ----------
    gradient
        ``(..., m, n)``, real floating-point.
    state
        From :func:`trion_init` or an earlier step on the same shape.
    config
        The options the state was made with.
    survey
        Where ``gradient`` and ``state`` are a block of a matrix: what :func:`trion_survey` found in the whole, for that
        block (``survey.across(block)``).
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
    axis, step = layout.axis, state.step + 1

    full = ops.to_compute(gradient)
    before = load_buffer(state, "momentum", config.momentum_bits, shape, full.dtype, ops)
    full = ops.add(full, before)
    if survey is None:
        survey = _survey(full, None, config, layout, ops)
    indices = survey.indices
    used = survey.low_rank * (1 - config.momentum)
    used_up = LowRankUpdate(used, indices, axis, layout.size, config.basis, survey.vectors)
    momentum = subtract_lifted(full, used_up, config.method, ops)
    update = replace(used_up, factor=survey.factor)
    state = state._replace(step=step)
    return update, store_buffer(state, "momentum", momentum, config.momentum_bits, step, ops)


def trion_survey(
    gradient: Array, state: TrionState, config: TrionConfig, /, *, ops: Ops | None = None
) -> TrionSurvey:
    """Return what the next step has to know of the whole of ``gradient``, so that it can be done block by block.

    What then remains treats rows (axis -1) or columns (axis -2) alone: see :func:`lowrank_core.dct_adamw_survey`. With
    ``momentum_bits`` blocks of columns begin at multiples of 256, which share a scale.

    Parameters
    ----------
    gradient, state, config, ops
        As for :func:`trion_step`.

    Returns
    -------
    TrionSurvey
        For the whole; ``across`` cuts it.

    Raises
    ------
    TypeError, ValueError
        As :func:`trion_step`.
    """
    ops = ops_for(gradient) if ops is None else ops
    check_matrix("gradient", gradient, ops.xp)
    shape = tuple(gradient.shape)
    layout = config.layout(shape)
    check_state(state, config.state_spec(shape), shape)
    full = ops.to_compute(gradient)
    before = load_buffer(state, "momentum", config.momentum_bits, shape, full.dtype, ops)
    survey = _survey(full, before, config, layout, ops)
    vectors = product_vectors(survey.indices, layout.size, config.basis, full, config.method, ops)
    return survey._replace(vectors=vectors)


def _survey(
    full: Array, plus: Array | None, config: TrionConfig, layout: Layout, ops: Ops
) -> TrionSurvey:
    """Return the columns that ``full + plus`` aligns with best, and the direction in them."""
    axis, norms = layout.axis, (config.score,)
    seen = get_basis(config.basis).analyse(
        full, ops, axis=axis, method=config.method, norms=norms, plus=plus
    )
    indices = top_columns(ops.sum_shards(seen.sums[config.score]), layout.rank, ops)
    low_rank = seen.take(indices, slice(None))
    # Holds an array as large as the gradient: gone before others are made.
    del seen
    factor = orthogonalize_factor(
        low_rank,
        ops,
        steps=config.steps,
        coefficients=config.coefficients,
        form="auto",
        scale=_scale(config, layout, ops),
        sharded_axis=ops.sharded_axis,
    )
    return TrionSurvey(indices, low_rank, factor, None, axis)


def _scale(config: TrionConfig, layout: Layout, ops: Ops) -> float:
    across = ops.count_shards(layout.across)
    rows, columns = (across, layout.size) if layout.axis == -1 else (layout.size, across)
    scale = {
        "none": 1.0,
        "spectral": math.sqrt(max(1.0, rows / columns)),
        "dion": math.sqrt(rows / columns),
        "rms": 0.2 * math.sqrt(max(rows, columns)),
    }[config.scale]
    return scale * math.sqrt(layout.size / layout.rank) if config.rank_scaling else scale
