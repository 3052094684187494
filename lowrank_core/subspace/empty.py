"""Columns that a gradient has nothing on: how they are told from others, and what a choice makes of them.

A coefficient that is zero, or as small as the rounding of the largest, says nothing of the gradient. Adam would divide
it by its own size all the same, and step it in full. So of a choice by norms:

- a column of nothing but rounding ranks below all others, one that is held already above one that is not. A gradient of
  zeros so leaves the columns and their moments as they are;
- where it is taken for want of others, its place stays *empty*: its index ``j`` is kept as ``j - size``, and what
  stands there moves no parameter, until the column is chosen for its coefficients;
- while all places are empty nothing has been chosen: the matrix is *undecided*, and every step chooses for it, not only
  those at which columns are due.

Vectors that are state (`lowrank_core.subspace.stored`) are kept at half their length while a matrix is undecided.
"""

from __future__ import annotations

from typing import Any, TypeVar

from lowrank_core._typing import Array
from lowrank_core.ops.standard import Ops

State = TypeVar("State", bound=Any)

# Units of the last place of the largest norm up to which another is rounding. A transform leaves about one.
_UNITS = 16
# What ranks below all scores, and below NaN not at all: `top_columns` puts these last.
_LAST = -1e38
#: What the vectors of an undecided matrix are multiplied by.
UNDECIDED_LENGTH = 0.5


def is_rounding(norms: Array, ops: Ops) -> Array:
    """Return which of the ``norms`` ``(..., n)`` of columns are zero, or rounding beside the largest.

    Where one is NaN, none is.
    """
    xp = ops.xp
    largest = xp.max(norms, axis=-1, keepdims=True)
    result: Array = norms <= largest * (_UNITS * float(xp.finfo(norms.dtype).eps))
    return result


def rank_last(scores: Array, rounding: Array, held: Array, ops: Ops) -> Array:
    """Return ``scores`` ``(..., n)``, columns of ``rounding`` after all others and of these the ``held`` ones first."""
    last = (2 - ops.astype(held, scores.dtype)) * _LAST
    ranked: Array = ops.xp.where(rounding, last, scores)
    return ranked


def held_columns(indices: Array, size: int, ops: Ops) -> Array:
    """Return for each of ``size`` columns, ``(..., size)``, if it has a place of ``indices`` that is not empty.

    By a scatter where a library has one: comparing all with all would cost as much as a transform.
    """
    held = ops.astype(indices >= 0, ops.xp.float32)[..., None, :]
    places: Array = ops.put(held, columns_of(indices, size), size, axis=-1)[..., 0, :] > 0
    return places


def columns_of(indices: Array, size: int) -> Array:
    """Return the columns that stand at ``indices``, those of empty places among them."""
    return indices % size


def is_undecided(indices: Any, vectors: Any, ops: Ops) -> Array:
    """Return of which matrices, ``(...)``, no columns or vectors have been chosen, though there were steps."""
    xp = ops.xp
    undecided: Array
    if vectors is None:
        undecided = xp.all(indices < 0, axis=-1)
    else:
        first = vectors[..., :, 0]
        undecided = xp.sum(first * first, axis=-1) < (1 + UNDECIDED_LENGTH**2) / 2
    return undecided


def as_chosen(state: State, size: int, ops: Ops) -> State:
    """Return a state in which the columns or vectors that it begins with count as chosen, where nobody may read it."""
    indices, vectors = (getattr(state, name, None) for name in ("indices", "vectors"))
    if indices is not None:
        return state._replace(indices=columns_of(indices, size))
    if vectors is None:
        return state
    undecided = is_undecided(None, vectors, ops)[..., None, None]
    whole = ops.xp.where(undecided, vectors / UNDECIDED_LENGTH, vectors)
    return state._replace(vectors=whole)


def infinite_where(empty: Array, x: Any, like: Array, ops: Ops) -> Array:
    """Return ``x``, infinite where ``empty``, in the dtype of ``like``: what is divided by that moves nothing."""
    zeros = ops.astype(empty, like.dtype) * 0.0
    result: Array = ops.xp.where(empty, ops.xp.inf, zeros) + x
    return result
