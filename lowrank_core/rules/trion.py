"""Trion for one matrix: momentum orthonormalised on the few basis columns it aligns with.

Source: I.-V. Modoranu, M. Safaryan, E. Schultheis, M. Ryabinin, A. Chumachenko, D. Alistarh, "FFT-based
dynamic subspace selection for low-rank adaptive optimization of large language models", arXiv 2505.17967; for rows,
Z. Li, L. Liu, C. Liang, W. Chen, T. Zhao, "NorMuon: making Muon more efficient and scalable", arXiv 2510.05491.

Notation, for a matrix whose rows are transformed (axis -1); where columns are, transpose everything::

    G   m x n   gradient                        Q    n x n   orthonormal basis, Q_I its columns I
    M   m x n   momentum and what was left out  I    r       the chosen columns
    B   m x n   M + G                           b    m x r   B Q_I, the coefficients on them
    S   m x n   B Q, all coefficients           o    m x r   b orthonormalised
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

from lowrank_core._checks import check_kind, check_matrix
from lowrank_core._typing import Array, Device, DType, Namespace, Scalar
from lowrank_core.layout import Layout
from lowrank_core.numerics.orthogonalization import (
    NewtonSchulz,
    gram,
    is_direct,
    multiply,
    orthogonalize_directly,
)
from lowrank_core.ops.precision import compute_dtype_name, to_compute
from lowrank_core.ops.registry import ops_for, ops_for_namespace
from lowrank_core.ops.standard import Ops
from lowrank_core.rules.reductions import Steps, Sum, run
from lowrank_core.rules.rule import MatrixStep, bind
from lowrank_core.rules.state import (
    check_state,
    empty_state,
    load_buffer,
    store_buffer,
)
from lowrank_core.rules.trion_config import TrionConfig, TrionState
from lowrank_core.subspace.columns import top_columns
from lowrank_core.subspace.factored import row_squares
from lowrank_core.subspace.moments import update_energy
from lowrank_core.subspace.update import LowRankUpdate, lifted

T = TypeVar("T")

# Norms of columns between which the squares of a matrix are right in float32, and what brings it back there.
_SMALL, _LARGE, _SHRINK = 1e-14, 1e17, 2.0**-96


def trion_steps(
    gradient: Array, state: TrionState, matrix: MatrixStep[TrionConfig], _refresh: bool = True
) -> Steps[tuple[LowRankUpdate, TrionState]]:
    """Do one step on some or all rows of a matrix: a generator of the sums over all rows that it needs.

    Parameters
    ----------
    gradient
        ``(..., m, n)``, all rows of a matrix or, where ``matrix`` says so, some.
    state
        The state of these rows.
    matrix
        What the steps of the matrix are bound to.

    Returns
    -------
    Generator
        Yields `Sum`; returns the update and the new state.
    """
    ask = partial(_asked, gradient, state, matrix)
    finish = partial(_updated, gradient, state, matrix)
    return aligned_steps(ask, finish, state.row_energy, matrix)


class Aligned(NamedTuple):
    """What a step finds out: which columns, and what it does on them."""

    #: ``I``, ``(..., r)`` int32.
    indices: Array
    #: ``Q_I`` where products with it are faster than a transform, or ``None``.
    vectors: Array | None
    #: ``b``, as ``(..., m, r)`` or with its dimensions swapped.
    coefficients: Array
    #: ``o``, likewise.
    update: Array
    #: The mean squares of its rows, brought up to date; ``None`` where these are left as they are.
    row_energy: Any


def aligned_steps(
    ask: Callable[[], tuple[Array, Callable[[Array], Array]]],
    finish: Callable[[Aligned], T],
    row_energy: Any,
    matrix: MatrixStep[TrionConfig],
) -> Steps[T]:
    """Choose columns and orthonormalise the coefficients on them: a generator of the sums that it needs.

    Parameters
    ----------
    ask
        Returns the column sums of ``S`` over the rows at hand, ``(1, ..., n)``, and a function of indices that returns
        columns of ``S``; that is called once, and what it holds is let go of then.
    finish
        Makes the result of what was found out.
    row_energy
        That of the state.
    matrix
        What the steps of the matrix are bound to.

    Returns
    -------
    Generator
        Yields `Sum`; returns the result.
    """
    config, layout, ops = matrix.config, matrix.layout, matrix.ops
    iteration = NewtonSchulz(config.steps, config.coefficients, _scale(config, layout))
    # I: the r columns with the largest norms; b = B Q_I.
    sums, take = ask()
    indices, vectors, shrink = yield Sum(sums, partial(_choose, matrix))
    b = take(indices)
    # S, which it holds, is gone before other arrays are made.
    del take

    # o: b with its singular values brought near 1, times s(m, n).
    o = b if shrink is None else b * shrink
    if not matrix.in_parts and is_direct(layout.rows, layout.rank):
        o = orthogonalize_directly(o, iteration, ops)
    else:
        # K = b^T b is a sum over rows; o = b times polynomials in K.
        tall = matrix.in_parts or layout.rank <= layout.rows
        gram_axis = layout.axis if tall else -3 - layout.axis
        for round_ in iteration.rounds():
            factor = partial(iteration.factor, round_=round_, ops=ops)
            o = multiply(o, (yield Sum(gram(o, gram_axis, ops), factor)), gram_axis)
    if config.row_decay is not None:
        row_energy, roots, lengths = _even(o, row_energy, config.row_decay, matrix)
        o = o * ((yield Sum(lengths, partial(_root_of_ratio, ops))) / roots)
    return finish(Aligned(indices, vectors, b, o, row_energy))


def _asked(gradient: Array, state: TrionState, matrix: MatrixStep[TrionConfig]) -> Any:
    S = _coefficients(gradient, state, matrix)
    return S.sums, S.take


def _updated(
    gradient: Array, state: TrionState, matrix: MatrixStep[TrionConfig], found: Aligned
) -> tuple[LowRankUpdate, TrionState]:
    """Return the update, and the state with ``M <- B - (1 - mu) b Q_I^T``; B is made again, as large as S was."""
    config, layout, ops, t = matrix.config, matrix.layout, matrix.ops, state.step + 1
    left = LowRankUpdate(
        found.coefficients * (1 - config.momentum), found.indices, layout.axis, layout.size,
        config.basis, found.vectors, method=config.method,
    )  # fmt: skip
    M = _momentum(gradient, state, matrix) - lifted(left.factor, left, ops)
    before = state._replace(step=t, row_energy=found.row_energy)
    after = store_buffer(before, "momentum", M, config.momentum_bits, t, ops)
    return replace(left, factor=found.update), after


def _even(
    o: Array, row_energy: Array, decay: Scalar, matrix: MatrixStep[TrionConfig]
) -> tuple[Array, Array, Array]:
    """Return what rows of ``o`` are divided by to be even, ``sqrt(v)``, and the sums that keep its length (NorMuon).

    ``v_i <- d v_i + (1 - d) mean_j o_ij^2``, ``o_i <- ||o|| / ||o / sqrt(v)|| o_i / sqrt(v_i)``: whatever corrected
    ``v`` for its start at zero would cancel. A row that was never but zeros stays so. Returned are ``v``, its roots and
    the squares of both lengths, ``(2, ...)``.
    """
    layout, ops = matrix.layout, matrix.ops
    xp = ops.xp
    squares = row_squares(o, layout.axis, ops)
    row_energy = update_energy(row_energy, squares, layout.rank, decay)
    square = xp.where(row_energy > 0, row_energy, xp.ones_like(row_energy))
    lengths = [xp.sum(x, axis=(-2, -1)) for x in (squares, squares / square)]
    return row_energy, xp.sqrt(square), xp.stack(lengths)


def _root_of_ratio(ops: Ops, squares: Array) -> Array:
    """Return the root of the first of two numbers over the second, ``(..., 1, 1)``, zero where both are."""
    xp, (first, second) = ops.xp, (squares[0, ...], squares[1, ...])
    ratio = xp.sqrt(first / xp.where(second > 0, second, xp.ones_like(second)))
    return ratio[..., None, None]


def _coefficients(gradient: Array, state: TrionState, matrix: MatrixStep[TrionConfig]) -> Any:
    """Return ``S = B Q`` with the sums that columns are chosen by."""
    return matrix.basis.transform_scored(
        _momentum(gradient, state, matrix),
        matrix.ops,
        axis=matrix.layout.axis,
        method=matrix.method,
        norms=(matrix.config.score,),
    )


def trion_columns(gradient: Array, state: TrionState, matrix: MatrixStep[TrionConfig]) -> Array:
    """Return the columns ``(..., r)`` that the next step takes; ``gradient`` has all rows of the matrix."""
    return _choose(matrix, _coefficients(gradient, state, matrix).sums)[0]


def _momentum(gradient: Array, state: TrionState, matrix: MatrixStep[TrionConfig]) -> Array:
    """Return ``B = M + G`` in the dtype to compute in."""
    full, shape = to_compute(gradient, matrix.ops), tuple(gradient.shape)
    bits = matrix.config.momentum_bits
    return full + load_buffer(state, "momentum", bits, shape, full.dtype, matrix.ops)


def _choose(
    matrix: MatrixStep[TrionConfig], sums: Array
) -> tuple[Array, Array | None, Array | None]:
    """Return the columns with the largest ``sums``, and their basis vectors where products with them are faster.

    And what to multiply coefficients by before they are squared, ``(..., 1, 1)``; ``None`` for nothing.
    """
    layout, ops = matrix.layout, matrix.ops
    xp = ops.xp
    sums = sums[0, ...]
    indices = top_columns(sums, layout.rank, ops)
    vectors = shrink = None
    if matrix.by_columns:
        vectors = matrix.basis.columns(indices, layout.size, sums.dtype, ops)
    least, most = (_SMALL, _LARGE) if matrix.config.score == "l1" else (_SMALL**2, _LARGE**2)
    largest = xp.max(sums, axis=-1)
    # Written so that NaN, which compares false with everything, is large.
    small, large = largest < least, ~(largest < most)
    if not ops.is_readable(large) or bool(xp.any(small | large)):
        ones = xp.ones_like(largest)
        shrink = xp.where(large, ones * _SHRINK, xp.where(small, ones / _SHRINK, ones))
        shrink = shrink[..., None, None]
    return indices, vectors, shrink


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
    check_kind("config", config, TrionConfig, "a TrionConfig")
    ops = ops_for_namespace(xp)
    spec = config.state_spec(shape, compute_dtype_name(dtype))
    return TrionState(step=ops.step_counter(device), **empty_state(spec, ops, device))


def trion_step(
    gradient: Array,
    state: TrionState,
    config: TrionConfig,
    /,
    *,
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
    check_kind("config", config, TrionConfig, "a TrionConfig")
    ops = ops_for(gradient) if ops is None else ops
    check_matrix("gradient", gradient, ops.xp)
    shape = tuple(gradient.shape)
    matrix = bind(config, shape, ops, ops.device_of(gradient))
    check_state(state, config.state_spec(shape), shape)
    return run(trion_steps(gradient, state, matrix))


def _scale(config: TrionConfig, layout: Layout) -> Scalar:
    """Return ``s(m, n)``, what an update with singular values of one is multiplied by."""
    rows, columns = layout.shape[-2:]
    scale = (
        config.update_scale
        * {
            "none": 1.0,
            "spectral": math.sqrt(max(1.0, rows / columns)),
            "dion": math.sqrt(rows / columns),
            "rms": 0.2 * math.sqrt(max(rows, columns)),
        }[config.scale]
    )
    return scale * math.sqrt(layout.size / layout.rank) if config.rank_scaling else scale
