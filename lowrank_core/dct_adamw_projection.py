"""A gradient in its subspace: which columns or vectors are next, and the state in the same coordinates."""

from __future__ import annotations

from typing import Any, NamedTuple

from lowrank_core._typing import Array, DType
from lowrank_core.adam import decayed_weight, update_moments
from lowrank_core.bases import get_basis
from lowrank_core.columns import score_sums
from lowrank_core.dct_adamw_config import SEED_COUNT, DCTAdamWConfig, DCTAdamWState
from lowrank_core.energy import mean_energy, update_energy
from lowrank_core.layout import Layout, cut_across
from lowrank_core.ops import Analysis, Ops
from lowrank_core.selection import choose_columns
from lowrank_core.subspaces import (
    Moments,
    carry_moments,
    iterated_vectors,
    leading_vectors,
    rotate_moments,
)


class Subspace(NamedTuple):
    """Where a step goes: columns or vectors, and the state in their coordinates, the gradient in its moments."""

    indices: Array | None
    vectors: Array | None
    moments: Moments
    energy: Array | None


def moments_before(state: DCTAdamWState, dtype: DType, ops: Ops) -> Moments:
    """Return the moments of a state in the dtype to compute in."""
    first, second = (ops.astype(m, dtype) for m in (state.first_moment, state.second_moment))
    return Moments(first, second, state.ages)


def with_gradient(
    moments: Moments, low_rank: Array, config: DCTAdamWConfig, ops: Ops, *, own: bool
) -> Moments:
    """Return the moments with one more gradient in them; ``own`` ones are not used again."""
    first, second = update_moments(
        low_rank, moments.first, moments.second, config.betas, ops, own=own
    )
    return moments._replace(first=first, second=second)


class Survey(NamedTuple):
    """What a step has to know of a whole matrix: its columns and all that depends on sums over it.

    The rest treats every row (axis -1) or column (axis -2) alone, so that it can be done block by block.
    """

    #: The columns of this step, ``(..., r)`` int32.
    indices: Array
    #: The running energy after this step, where there is one.
    energy: Array | None
    #: For each column its place among those before, and if it has one; ``None`` where the columns have been kept.
    match: tuple[Array, Array] | None
    #: Second moments that columns which were not there before begin with, ``(..., r)``, or ``None`` for zeros.
    newcomers: Array | None
    #: The basis vectors of the columns ``(..., size, r)``, where products with these are faster than transforms.
    vectors: Array | None
    #: All coefficients, where every step needs them.
    coefficients: Array | None
    #: Gives the coefficients of chosen columns; ``None`` where the columns have been kept.
    analysis: Analysis[Any] | None
    axis: int
    #: The part of the dimension that is not transformed that this is for.
    block: slice = slice(None)

    def across(self, block: slice) -> Survey:
        """Return what a block needs to know; to be called on what is for the whole."""
        coefficients = self.coefficients
        if coefficients is not None:
            coefficients = cut_across(coefficients, block, self.axis)
        return self._replace(coefficients=coefficients, block=block)

    def low_rank(self, full: Array, config: DCTAdamWConfig, ops: Ops) -> Array:
        """Return the coefficients on the columns of ``full``, the block's gradient."""
        if self.coefficients is not None:
            return ops.take(self.coefficients, self.indices, axis=self.axis)
        if self.analysis is not None:
            return self.analysis.take(self.indices, self.block)
        if self.vectors is not None:
            return ops.apply_matrix(full, self.vectors, axis=self.axis)
        basis = get_basis(config.basis)
        return basis.project(full, self.indices, ops, axis=self.axis, method=config.method)


def survey_matrix(
    full: Array,
    plus: Array | None,
    state: DCTAdamWState,
    step: int | Array,
    refresh: bool,
    config: DCTAdamWConfig,
    layout: Layout,
    ops: Ops,
) -> Survey:
    """Return the columns of a fixed basis for a step on ``full + plus``, chosen anew if ``refresh``, a host boolean."""
    coefficients, energy = _coefficients(full, state, config, layout, ops)
    if refresh:
        return _chosen(full, coefficients, energy, state, step, config, layout, ops, plus)
    return _kept(coefficients, energy, state, layout)


def _coefficients(
    full: Array, state: DCTAdamWState, config: DCTAdamWConfig, layout: Layout, ops: Ops
) -> tuple[Array | None, Array | None]:
    """Return all coefficients where every step needs them, and the energy with these in it if so."""
    if not config.transforms_every_step:
        return None, state.energy
    basis, axis = get_basis(config.basis), layout.axis
    coefficients = basis.transform(full, ops, axis=axis, method=config.method)
    if state.energy is None:
        return coefficients, None
    squares = score_sums(coefficients, axis, "l2", ops)
    return coefficients, _with_energy(state.energy, squares, config, layout, ops)


def _kept(
    coefficients: Array | None, energy: Array | None, state: DCTAdamWState, layout: Layout
) -> Survey:
    assert state.indices is not None  # noqa: S101 - check_state has seen to it; this tells the type checker
    return Survey(state.indices, energy, None, None, None, coefficients, None, layout.axis)


def _chosen(
    full: Array,
    coefficients: Array | None,
    energy: Array | None,
    state: DCTAdamWState,
    step: int | Array,
    config: DCTAdamWConfig,
    layout: Layout,
    ops: Ops,
    plus: Array | None = None,
) -> Survey:
    basis, axis, current = get_basis(config.basis), layout.axis, state.indices
    assert current is not None  # noqa: S101 - check_state has seen to it; this tells the type checker
    if coefficients is not None:
        seen = ops.analysis(coefficients, axis=axis, norms=(config.score,))
    else:
        norms = dict.fromkeys((config.score,) if energy is None else (config.score, "l2"))
        seen = basis.analyse(
            full, ops, axis=axis, method=config.method, norms=tuple(norms), plus=plus
        )
        if energy is not None:
            squares = ops.sum_shards(seen.sums["l2"])
            energy = _with_energy(energy, squares, config, layout, ops)
    mean = None
    if energy is not None:
        mean = mean_energy(energy, config.energy_decay, config.energy_count(step), ops)
    scores = mean
    if config.score_decay is None or scores is None:
        scores = ops.sum_shards(seen.sums[config.score])
    if config.score == "l2":
        scores = ops.xp.sqrt(scores)
    indices = choose_columns(
        scores,
        current,
        layout.rank,
        ops,
        hysteresis=config.hysteresis,
        key=state.key,
        step=step,
    )
    newcomers = None
    if config.bias_correction == "gentle" and mean is not None:
        seeded = decayed_weight(config.betas[1], SEED_COUNT, ops, mean)
        newcomers = ops.pick(mean, indices) * seeded
    match = ops.match(current, indices)
    return Survey(indices, energy, match, newcomers, None, coefficients, seen, axis)


def project_fixed(
    full: Array,
    survey: Survey | None,
    state: DCTAdamWState,
    step: int | Array,
    refresh: bool | Array,
    config: DCTAdamWConfig,
    layout: Layout,
    ops: Ops,
) -> tuple[Subspace, Array, Array | None]:
    """Return the columns of a fixed basis, chosen anew if ``refresh``, the gradient on them, and all coefficients.

    A ``survey`` of the whole matrix that ``full`` is a block of has them already.
    """
    axis, current = layout.axis, state.indices
    assert current is not None  # noqa: S101 - check_state has seen to it; this tells the type checker
    before = moments_before(state, full.dtype, ops)
    if survey is None:
        coefficients, energy = _coefficients(full, state, config, layout, ops)
    else:
        coefficients, energy = survey.coefficients, survey.energy

    def choose() -> tuple[Subspace, Array]:
        seen = survey
        if seen is None:
            seen = _chosen(full, coefficients, energy, state, step, config, layout, ops)
        low_rank = seen.low_rank(full, config, ops)
        # Its analysis holds the largest array of the step: gone before moments are made anew.
        seen = seen._replace(analysis=None)
        assert seen.match is not None  # noqa: S101 - columns have been chosen; this tells the type checker
        newcomers = seen.newcomers
        moments = carry_moments(before, seen.match, ops, axis=axis, newcomers=newcomers)
        moments = with_gradient(moments, low_rank, config, ops, own=True)
        return Subspace(seen.indices, seen.vectors, moments, seen.energy), low_rank

    def keep() -> tuple[Subspace, Array]:
        seen = _kept(coefficients, energy, state, layout) if survey is None else survey
        low_rank = seen.low_rank(full, config, ops)
        moments = with_gradient(before, low_rank, config, ops, own=False)
        return Subspace(current, seen.vectors, moments, seen.energy), low_rank

    at, low_rank = ops.cond(refresh, choose, keep)
    return at, low_rank, coefficients


def project_stored(
    full: Array,
    state: DCTAdamWState,
    step: int | Array,
    refresh: bool | Array,
    config: DCTAdamWConfig,
    layout: Layout,
    ops: Ops,
) -> tuple[Subspace, Array]:
    """Return the stored vectors, computed anew if ``refresh``, and the gradient on them."""
    axis, current = layout.axis, state.vectors
    assert current is not None  # noqa: S101 - check_state has seen to it; this tells the type checker
    previous = ops.astype(current, full.dtype)
    before = moments_before(state, full.dtype, ops)

    def choose() -> tuple[Subspace, Array]:
        if config.basis == "svd":
            vectors = leading_vectors(full, layout.rank, ops, axis=axis)
        else:
            vectors = iterated_vectors(full, previous, ops, axis=axis)
        moments = rotate_moments(before, previous, vectors, config.betas, step - 1, ops, axis=axis)
        return on(vectors, moments, own=True)

    def on(vectors: Array, moments: Moments, *, own: bool) -> tuple[Subspace, Array]:
        low_rank = ops.apply_matrix(full, vectors, axis=axis)
        moments = with_gradient(moments, low_rank, config, ops, own=own)
        return Subspace(None, ops.astype(vectors, current.dtype), moments, None), low_rank

    return ops.cond(refresh, choose, lambda: on(previous, before, own=False))


def _with_energy(
    energy: Array, squares: Array, config: DCTAdamWConfig, layout: Layout, ops: Ops
) -> Array:
    rows = ops.count_shards(layout.across)
    return update_energy(energy, squares, rows, config.energy_decay)
