"""Column selection of DCT-AdamW for one matrix: column sums in, the columns and what follows from them out."""

from __future__ import annotations

from typing import Any, NamedTuple

from lowrank_core._typing import Array, DType
from lowrank_core.ops.standard import Ops
from lowrank_core.rules.dct_adamw_config import SEED_COUNT, DCTAdamWConfig, DCTAdamWState
from lowrank_core.rules.rule import MatrixStep
from lowrank_core.subspace.columns import favour_current, perturb_scores, top_columns
from lowrank_core.subspace.empty import (
    UNDECIDED_LENGTH,
    columns_of,
    held_columns,
    is_rounding,
    is_undecided,
    rank_last,
)
from lowrank_core.subspace.moments import (
    Moments,
    decayed_weight,
    mean_energy,
    update_energy,
)
from lowrank_core.subspace.stored import iterated_vectors, leading_vectors, rotate_moments


class ColumnSelection(NamedTuple):
    """Column selection for one matrix: the same for all of its rows."""

    #: The columns ``I`` of this step, ``(..., r)`` int32, ascending; ``None`` where the vectors are state.
    indices: Any
    #: Moving average of each column's mean squared coefficient, this gradient included, or ``None``.
    energy: Any
    #: The basis vectors ``Q_I``, where products with them are faster than transforms, or where they are state.
    vectors: Any
    #: Each column's place among the columns before, and whether it has one; ``None`` where they have been kept.
    moved: Any = None
    #: Second moments that newcomers begin with, ``(..., r)``; ``None`` for zeros.
    newcomers: Any = None
    #: What the state keeps: the columns, those of empty places as `lowrank_core.subspace.empty` says.
    kept: Any = None
    #: Which places are empty, ``(..., r)``; ``None`` where none is.
    empty: Any = None
    #: Of which matrices other columns have more than rounding, ``(...)``; ``None`` for all.
    outside: Any = None


def columns_due(state: DCTAdamWState, matrix: MatrixStep[DCTAdamWConfig]) -> Any:
    """Return whether the next step chooses columns: ``True``, or booleans ``(...)`` that say for which matrices."""
    scheduled = matrix.config.refreshes(state.step + 1)
    if scheduled is True:
        return True
    return is_undecided(state.indices, state.vectors, matrix.ops) | scheduled


def select(
    state: DCTAdamWState,
    matrix: MatrixStep[DCTAdamWConfig],
    due: Any,
    dtype: DType,
    total: Any,
) -> ColumnSelection:
    """Return the column selection by ``total``, the column sums over all rows of the matrix (`Coefficients.sums`).

    ``due`` is ``False`` if the columns stay what they are in ``state``, else what `columns_due` returns. ``dtype`` is
    that of the arithmetic.
    """
    config, layout, ops = matrix.config, matrix.layout, matrix.ops
    refresh = due is not False
    norms = config.norms(refresh)
    energy = state.energy
    if energy is not None and "l2" in norms:
        squares = total[norms.index("l2"), ...]
        mean = update_energy(energy, squares, layout.rows, config.energy_decay)
        # Of a matrix that keeps its columns at this step, `energy_count` does not count the gradient.
        counted = due is True or config.transforms_every_step
        energy = mean if counted else ops.xp.where(due[..., None], mean, energy)
    chosen = _choose(total, energy, state, matrix, due) if refresh else _kept(state, matrix)
    indices, newcomers = chosen.indices, None
    if refresh and config.bias_correction == "gentle":
        mean = mean_energy(energy, config.energy_decay, config.energy_count(state.step + 1), ops)
        newcomers = ops.take_along(mean, indices)
        newcomers = newcomers * decayed_weight(config.betas[1], SEED_COUNT, ops, mean)
    vectors = None
    # Where the rest is coefficients, all go back through one whole transform.
    if matrix.by_columns and not config.rest_in_coefficients:
        vectors = matrix.basis.columns(indices, layout.size, dtype, ops)
    return chosen._replace(energy=energy, vectors=vectors, newcomers=newcomers)


def _kept(state: DCTAdamWState, matrix: MatrixStep[DCTAdamWConfig]) -> ColumnSelection:
    """Return the columns of the step before."""
    kept, ops = state.indices, matrix.ops
    empty = kept < 0
    if _is_false(empty, ops):
        return ColumnSelection(kept, None, None, kept=kept)
    outside = ~ops.xp.any(empty, axis=-1)
    columns = columns_of(kept, matrix.layout.size)
    return ColumnSelection(columns, None, None, kept=kept, empty=empty, outside=outside)


def _is_false(x: Array, ops: Ops) -> bool:
    """Return whether the host can see now that no entry of ``x`` is true."""
    return ops.is_readable(x) and not bool(ops.xp.any(x))


def _choose(
    total: Any,
    energy: Any,
    state: DCTAdamWState,
    matrix: MatrixStep[DCTAdamWConfig],
    due: Any,
) -> ColumnSelection:
    """Return the columns chosen for the matrices that are ``due``, with their places among those before."""
    config, layout, ops, t = matrix.config, matrix.layout, matrix.ops, state.step + 1
    xp, before = ops.xp, state.indices
    if config.score_decay is None:
        scores = total[0, ...]  # of the norms of a step that chooses columns, `score` is the first
    else:
        scores = mean_energy(energy, config.energy_decay, config.energy_count(t), ops)
    if config.score == "l2":
        scores = ops.xp.sqrt(scores)
    rounding = is_rounding(scores, ops)
    if not isinstance(config.hysteresis, (int, float)) or config.hysteresis > 0:
        scores = favour_current(scores, before, config.hysteresis, t, ops)
    if state.key is not None:
        scores = perturb_scores(scores, state.key, t, ops)
    all_real = _is_false(rounding, ops)
    if not all_real:
        scores = rank_last(scores, rounding, held_columns(before, layout.size, ops), ops)
    columns = top_columns(scores, layout.rank, ops)
    moved = ops.index_in(before, columns)
    if all_real and due is True:
        return ColumnSelection(columns, None, None, moved, kept=columns)
    # A column that was chosen before goes on with its moments; the columns that a state begins with never were.
    empty = ops.take_along(rounding, columns) & ~(moved[1] & (t > 1))
    kept = xp.where(empty, columns - layout.size, columns)
    outside = xp.sum(ops.astype(rounding, xp.int32), axis=-1) < layout.size - layout.rank
    if due is not True:
        kept = xp.where(due[..., None], kept, before)
        empty, moved = kept < 0, ops.index_in(before, kept)
        outside = xp.where(due, outside, ~xp.any(empty, axis=-1))
        columns = columns_of(kept, layout.size)
    return ColumnSelection(columns, None, None, moved, kept=kept, empty=empty, outside=outside)


def compute_vectors(
    A: Array,
    previous: Array,
    moments: Moments,
    count: int | Array,
    matrix: MatrixStep[DCTAdamWConfig],
    due: Any,
) -> tuple[ColumnSelection, Moments]:
    """Return vectors computed anew from ``A``, and the moments, after ``count`` steps, in their coordinates.

    Of matrices that are not ``due``, or whose ``A`` is zero, vectors and moments stay.
    """
    config, layout, ops = matrix.config, matrix.layout, matrix.ops
    xp = ops.xp
    if config.basis == "svd":
        vectors, stays = leading_vectors(A, layout.rank, ops, axis=layout.axis)
    else:
        vectors, stays = iterated_vectors(A, previous, ops, axis=layout.axis)
    if due is not True:
        stays = stays | ~due
    stays = stays[..., None, None]
    rotation = xp.matrix_transpose(previous) @ vectors
    beta1, beta2 = config.betas
    weights = (
        decayed_weight(beta1, count, ops, moments.first),
        decayed_weight(beta2, count, ops, moments.first),
    )
    rotated = rotate_moments(moments, rotation, weights, layout.axis, ops)
    first = xp.where(stays, moments.first, rotated.first)
    second = xp.where(stays, moments.second, rotated.second)
    # Undecided from the first step on.
    start = xp.where(stays & (count == 0), UNDECIDED_LENGTH * previous, previous)
    vectors = xp.where(stays, start, vectors)
    return ColumnSelection(None, None, vectors), Moments(first, second, None)
