"""What a step does to one matrix, in a few numbers: how much of a gradient its columns hold, and how long they stay.

With ``G`` the gradient and ``Q_I`` the columns of the step, its coefficients on them are ``a = G Q_I``, what they hold
of its energy is ``||a||^2 / ||G||^2`` (Frobenius norms), and what they leave ``||G - a Q_I^T||``. A choice that keeps a
share ``k`` of the columns at every ``T``-th step replaces each after ``T / (1 - k)`` steps on average, the mean of a
geometric distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from lowrank_core._typing import Array
from lowrank_core.ops.axes import apply_matrix
from lowrank_core.ops.precision import to_compute
from lowrank_core.rules.rule import MatrixStep, Rule
from lowrank_core.subspace.empty import columns_of, held_columns
from lowrank_core.subspace.projection import project_on


class MatrixDiagnostics(NamedTuple):
    """What one step did to one matrix, in plain numbers."""

    #: The parameter's name; of one with several matrices followed by the number of the matrix in brackets.
    name: str
    #: The step, from 1.
    step: int
    #: Share of the gradient's energy that the chosen columns hold, in [0, 1]; NaN for a gradient of zeros.
    captured: float
    #: Frobenius norm of what they leave of the gradient, in its units.
    residual_norm: float
    #: Share of the columns that were held before the step; NaN at the first step, and where the state has no columns.
    kept: float
    #: Steps that a column stays; NaN where ``kept`` is.
    age: float
    #: Root mean square of what the parameter moved by, weight decay included, in its units.
    update_rms: float
    #: Root mean square of the parameter.
    weight_rms: float
    #: The chosen columns, ascending; none of a basis that is not fixed.
    columns: tuple[int, ...]

    def numbers(self) -> dict[str, float]:
        """Return the measured numbers by name, for loggers."""
        kept = self._asdict()
        return {name: value for name, value in kept.items() if isinstance(value, float)}


class Observation(NamedTuple):
    """What is to be known of a matrix before a step, which may overwrite its state."""

    #: Steps done.
    step: int | Array
    #: The columns held, ``(..., r)``; ``None`` where the state has none.
    held: Any
    #: The columns that the step takes, where the state after it does not have them.
    chosen: Any


class Measures(NamedTuple):
    """What a step did to each matrix of a stack: arrays ``(...)`` in float32 (float64 for float64 gradients)."""

    #: Share of the gradient's energy that the columns hold, in [0, 1]; NaN for a gradient of zeros.
    captured: Array
    #: Frobenius norm of what they leave, in the units of the gradient: of its energy less what they hold, and so known
    #: to about a thousandth of the gradient's norm in float32.
    residual_norm: Array
    #: Share of the columns that were held before the step; NaN at the first step, and where the state has no columns.
    kept: Array
    #: Steps that a column stays: the mean of the ages where the state counts them, else ``T / (1 - kept)``, and no more
    #: than there have been; NaN where ``kept`` is.
    age: Array
    #: The columns, ``(..., r)``; ``None`` of a basis that is not fixed.
    columns: Any


def observe(gradient: Array, state: Any, matrix: MatrixStep[Any], rule: Rule) -> Observation:
    """Return what `measure` needs to know from before a step on all rows of a matrix or of a stack of them.

    Parameters
    ----------
    gradient
        ``(..., m, n)``.
    state
        The state before the step.
    matrix
        What the step is bound to.
    rule
        The rule that does the step.
    """
    held = getattr(state, "indices", None)
    if held is not None:
        held = columns_of(held, matrix.layout.size)
    chosen = None if rule.choose is None else rule.choose(gradient, state, matrix)
    return Observation(state.step, held, chosen)


def measure(before: Observation, gradient: Array, state: Any, matrix: MatrixStep[Any]) -> Measures:
    """Return what a step did, of its gradient and the state after it; nothing is read by the host.

    Parameters
    ----------
    before
        What `observe` returned.
    gradient
        ``(..., m, n)``, as it was given to the step.
    state
        The state after the step.
    matrix
        What the step is bound to.
    """
    ops, axis, size = matrix.ops, matrix.layout.axis, matrix.layout.size
    xp, G = ops.xp, to_compute(gradient, ops)
    columns = before.chosen
    if columns is None and matrix.basis is not None:
        columns = columns_of(state.indices, size)
    if columns is None:
        a = apply_matrix(G, ops.astype(state.vectors, G.dtype), axis, xp)
    else:
        vectors = None
        if matrix.by_columns:
            vectors = matrix.basis.columns(columns, size, G.dtype, ops)
        a = project_on(G, columns, vectors, matrix.basis, axis, ops)
    whole, held = xp.sum(G * G, axis=(-2, -1)), xp.sum(a * a, axis=(-2, -1))
    some = whole > 0
    captured = xp.where(some, held / xp.where(some, whole, 1.0), xp.nan)
    # Of rounding, the columns may hold a little more than there is.
    left = xp.where(held < whole, whole - held, 0.0)
    kept = xp.full_like(captured, xp.nan)
    if columns is not None and before.held is not None:
        stayed = held_columns(before.held, size, ops) & held_columns(columns, size, ops)
        share = xp.sum(ops.astype(stayed, kept.dtype), axis=-1) / columns.shape[-1]
        kept = xp.where(xp.asarray(before.step) > 0, share, kept)
    return Measures(captured, xp.sqrt(left), kept, _age(kept, state, matrix), columns)


def _age(kept: Array, state: Any, matrix: MatrixStep[Any]) -> Array:
    """Return how many steps a column stays, from its count where there is one, else from what was ``kept``."""
    xp, ages = matrix.ops.xp, getattr(state, "ages", None)
    if ages is not None:
        return xp.mean(matrix.ops.astype(ages, kept.dtype), axis=-1)
    period = getattr(matrix.config, "refresh_every", 1)
    done = xp.full_like(kept, 1.0) * state.step
    lost: Any = 1 - kept
    life = period / xp.where(lost > 0, lost, 1.0)
    # Written so that NaN, which compares false with everything, stays.
    shorter = xp.where(life > done, done, life)
    return xp.where(lost == 0, done, xp.where(lost > 0, shorter, lost))


def root_mean_square(x: Array, matrix: MatrixStep[Any]) -> Array:
    """Return the root of the mean square of each matrix of ``x``, ``(..., m, n)``, in the dtype to compute in."""
    xp, wide = matrix.ops.xp, to_compute(x, matrix.ops)
    return xp.sqrt(xp.mean(wide * wide, axis=(-2, -1)))


def rows_of(
    name: str, step: int, parts: Sequence[tuple[Measures, Array, Array]]
) -> list[MatrixDiagnostics]:
    """Return a row for each matrix of a parameter, read to the host.

    Parameters
    ----------
    name
        The parameter's name.
    step
        The step that was measured.
    parts
        For each stack of matrices of the parameter what `measure` returned, and the root mean squares, ``(...)``, of
        what it moved by and of itself.
    """
    rows = []
    for measures, update_rms, weight_rms in parts:
        arrays = (*measures[:4], update_rms, weight_rms)
        numbers = [_listed(array) for array in arrays]
        count = len(numbers[0])
        columns: list[Any] = [()] * count
        if measures.columns is not None:
            columns = measures.columns.reshape(count, -1).tolist()
        rows += [(*one, tuple(own)) for *one, own in zip(*numbers, columns, strict=True)]
    several = len(rows) > 1
    return [
        MatrixDiagnostics(f"{name}[{number}]" if several else name, step, *row)
        for number, row in enumerate(rows)
    ]


def _listed(array: Any) -> list[float]:
    """Return the numbers of an array of any shape."""
    listed: list[float] = array.reshape(-1).tolist()
    return listed
