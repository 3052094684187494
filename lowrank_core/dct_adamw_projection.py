"""A gradient in its subspace: which columns or vectors are next, and the state in the same coordinates."""

from __future__ import annotations

from typing import NamedTuple

from lowrank_core._typing import Array, DType
from lowrank_core.adam import decayed_weight, update_moments
from lowrank_core.bases import get_basis
from lowrank_core.columns import score_sums
from lowrank_core.dct_adamw_config import SEED_COUNT, DCTAdamWConfig, DCTAdamWState
from lowrank_core.energy import mean_energy, update_energy
from lowrank_core.layout import Layout
from lowrank_core.ops import Ops
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


def project_fixed(
    full: Array,
    coefficients: Array | None,
    state: DCTAdamWState,
    step: int | Array,
    refresh: bool | Array,
    config: DCTAdamWConfig,
    layout: Layout,
    ops: Ops,
) -> tuple[Subspace, Array]:
    """Return the columns of a fixed basis, chosen anew if ``refresh``, and the gradient on them."""
    basis, axis, current = get_basis(config.basis), layout.axis, state.indices
    assert current is not None  # noqa: S101 - check_state has seen to it; this tells the type checker
    before = moments_before(state, full.dtype, ops)
    energy = state.energy
    if coefficients is not None and energy is not None:
        squares = score_sums(coefficients, axis, "l2", ops)
        energy = _gather_energy(energy, squares, config, layout, ops)

    def choose() -> tuple[Subspace, Array]:
        norms = tuple(dict.fromkeys((config.score, "l2") if energy is not None else (config.score,)))
        if coefficients is None:
            seen = basis.analyse(full, ops, axis=axis, method=config.method, norms=norms)
        else:
            seen = ops.analysis(coefficients, axis=axis, norms=(config.score,))
        louder = energy
        if coefficients is None and energy is not None:
            squares = ops.sum_shards(seen.sums["l2"])
            louder = _gather_energy(energy, squares, config, layout, ops)
        mean = None
        if louder is not None:
            mean = mean_energy(louder, config.energy_decay, config.energy_count(step), ops)
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
        low_rank = seen.take(indices, slice(None))
        # Holds the largest array of the step: gone before moments are made anew.
        del seen
        newcomers = None
        if config.bias_correction == "gentle" and mean is not None:
            seeded = decayed_weight(config.betas[1], SEED_COUNT, ops, mean)
            newcomers = ops.pick(mean, indices) * seeded
        moments = carry_moments(before, current, indices, ops, axis=axis, newcomers=newcomers)
        moments = with_gradient(moments, low_rank, config, ops, own=True)
        return Subspace(indices, None, moments, louder), low_rank

    def keep() -> tuple[Subspace, Array]:
        if coefficients is not None:
            low_rank = ops.take(coefficients, current, axis=axis)
        else:
            low_rank = basis.project(full, current, ops, axis=axis, method=config.method)
        moments = with_gradient(before, low_rank, config, ops, own=False)
        return Subspace(current, None, moments, energy), low_rank

    return ops.cond(refresh, choose, keep)


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


def _gather_energy(
    energy: Array, squares: Array, config: DCTAdamWConfig, layout: Layout, ops: Ops
) -> Array:
    rows = ops.count_shards(layout.across)
    return update_energy(energy, squares, rows, config.energy_decay)
