"""Column selection of DCT-AdamW for one matrix: column sums in, the columns and what follows from them out."""

from __future__ import annotations

from typing import Any, NamedTuple

from lowrank_core._typing import Array, DType
from lowrank_core.rules.dct_adamw_config import SEED_COUNT, DCTAdamWConfig, DCTAdamWState
from lowrank_core.rules.rule import MatrixStep
from lowrank_core.subspace.columns import favour_current, perturb_scores, top_columns
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


def select(
    state: DCTAdamWState,
    matrix: MatrixStep[DCTAdamWConfig],
    refresh: bool,
    dtype: DType,
    total: Any,
) -> ColumnSelection:
    """Return the column selection by ``total``, the column sums over all rows of the matrix (`Coefficients.sums`).

    If not ``refresh`` the columns stay what they are in ``state``. ``dtype`` is that of the arithmetic.
    """
    config, layout, ops = matrix.config, matrix.layout, matrix.ops
    norms = config.norms(refresh)
    energy = state.energy
    if energy is not None and "l2" in norms:
        squares = total[norms.index("l2"), ...]
        energy = update_energy(energy, squares, layout.rows, config.energy_decay)
    indices, moved, newcomers = state.indices, None, None
    if refresh:
        indices = _best_columns(total, energy, state, matrix)
        moved = ops.index_in(state.indices, indices)
        if config.bias_correction == "gentle":
            mean = mean_energy(
                energy, config.energy_decay, config.energy_count(state.step + 1), ops
            )
            newcomers = ops.take_along(mean, indices)
            newcomers = newcomers * decayed_weight(config.betas[1], SEED_COUNT, ops, mean)
    vectors = None
    # Where every step transforms, all coefficients go back through one whole transform.
    if matrix.by_columns and not config.transforms_every_step:
        vectors = matrix.basis.columns(indices, layout.size, dtype, ops)
    return ColumnSelection(indices, energy, vectors, moved, newcomers)


def _best_columns(
    total: Any,
    energy: Any,
    state: DCTAdamWState,
    matrix: MatrixStep[DCTAdamWConfig],
) -> Array:
    config, ops, t = matrix.config, matrix.ops, state.step + 1
    if config.score_decay is None:
        scores = total[0, ...]  # of the norms of a step that chooses columns, `score` is the first
    else:
        scores = mean_energy(energy, config.energy_decay, config.energy_count(t), ops)
    if config.score == "l2":
        scores = ops.xp.sqrt(scores)
    if not isinstance(config.hysteresis, (int, float)) or config.hysteresis > 0:
        scores = favour_current(scores, state.indices, config.hysteresis, t, ops)
    if state.key is not None:
        scores = perturb_scores(scores, state.key, t, ops)
    return top_columns(scores, matrix.layout.rank, ops)


def compute_vectors(
    A: Array,
    previous: Array,
    moments: Moments,
    count: int | Array,
    matrix: MatrixStep[DCTAdamWConfig],
) -> tuple[ColumnSelection, Moments]:
    """Return vectors computed anew from ``A``, and the moments, after ``count`` steps, in their coordinates."""
    config, layout, ops = matrix.config, matrix.layout, matrix.ops
    if config.basis == "svd":
        vectors = leading_vectors(A, layout.rank, ops, axis=layout.axis)
    else:
        vectors = iterated_vectors(A, previous, ops, axis=layout.axis)
    rotation = ops.xp.matrix_transpose(previous) @ vectors
    beta1, beta2 = config.betas
    weights = (
        decayed_weight(beta1, count, ops, moments.first),
        decayed_weight(beta2, count, ops, moments.first),
    )
    return ColumnSelection(None, None, vectors), rotate_moments(
        moments, rotation, weights, layout.axis, ops
    )
