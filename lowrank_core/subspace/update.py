"""What one step moves a parameter by, kept low-rank until it is added."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

from lowrank_core._checks import check_choice, check_kind
from lowrank_core._typing import Array, Scalar
from lowrank_core.bases.registry import get_basis
from lowrank_core.layout import cut_rows, on_axis
from lowrank_core.ops.axes import apply_transpose
from lowrank_core.ops.crossovers import METHODS
from lowrank_core.ops.registry import ops_for
from lowrank_core.ops.standard import Ops
from lowrank_core.subspace.empty import held_columns


class CoefficientRest(NamedTuple):
    """Coefficients on the basis vectors not chosen, which go back through the transform that the chosen ones take."""

    #: ``(..., m, n)``; those at the chosen basis vectors are ignored.
    values: Array


class DenseRest(NamedTuple):
    """A matrix that is added in the parameter's own coordinates."""

    #: ``(..., m, n)``.
    values: Array


class SignRest(NamedTuple):
    """``scale * sign(G - g Q_I^T)``: a step along the sign of what the chosen basis vectors leave of a gradient.

    Kept as what it is made of, so that the sign, which is as large as the parameter, can be made part by part.
    """

    #: The gradient, ``(..., m, n)``.
    gradient: Array
    #: Its coefficients on the chosen basis vectors, of the shape of the update's ``factor``.
    projected: Array
    #: Share of the step's rate, one number or ``(..., 1, 1)``, dimensionless.
    scale: Scalar


#: What an update moves a parameter by outside the chosen basis vectors.
Rest: TypeAlias = CoefficientRest | DenseRest | SignRest | None


@dataclass(frozen=True)
class LowRankUpdate:
    """The direction of one step: the parameter moves by ``-lr`` times the matrix ``u Q_I^T + rest`` (or ``Q_I u``).

    Attributes
    ----------
    factor
        ``u``: ``(..., m, r)`` (axis -1) or ``(..., r, n)`` (axis -2), coefficients on the chosen basis vectors.
    indices
        ``(..., r)`` int32: the chosen basis vectors; ``None`` where ``vectors`` alone has them.
    axis
        The transformed axis, -1 or -2.
    size
        Its length.
    basis
        Name of the basis.
    vectors
        ``(..., size, r)`` or ``None``: the basis vectors themselves, of a basis that is not fixed or where a product
        with them is faster than a transform.
    rest
        What a residual policy adds: a `CoefficientRest`, a `DenseRest`, a `SignRest` or ``None``.
    method
        How to transform, as in :func:`lowrank_core.lift`.
    """

    factor: Array
    indices: Array | None
    axis: int
    size: int
    basis: str = "dct"
    vectors: Array | None = None
    rest: Rest = None
    method: str = "auto"


def materialize(
    update: LowRankUpdate, /, *, method: str | None = None, ops: Ops | None = None
) -> Array:
    """Return the full ``(..., m, n)`` matrix of ``update``: ``u Q_I^T`` or ``Q_I u``, plus the rest.

    Parameters
    ----------
    update
        From a step.
    method
        How to transform, as in :func:`lowrank_core.lift`; by default as the update says.
    ops
        Operations to use; those of the arrays' library by default.

    Raises
    ------
    TypeError, ValueError
        If ``method`` is not one there is, or the update has neither indices nor vectors.
    """
    check_kind("update", update, LowRankUpdate, "a LowRankUpdate")
    ops = ops_for(update.factor) if ops is None else ops
    if method is not None:
        check_choice("method", method, METHODS)
    if method is not None and method != update.method:
        own = update.vectors if update.indices is None else None
        update = replace(update, method=method, vectors=own)
    if isinstance(update.rest, CoefficientRest):
        update = replace(update, rest=CoefficientRest(ops.copy(update.rest.values)))
    return whole_of(update, ops)


def whole_of(update: LowRankUpdate, ops: Ops) -> Array:
    """Return what :func:`materialize` returns, unchecked; an adapter may write to the rest of ``update``."""
    rest = update.rest
    if isinstance(rest, CoefficientRest):
        return _lifted_with(rest, update, ops)
    full = lifted(update.factor, update, ops)
    if isinstance(rest, DenseRest):
        return full + rest.values
    if isinstance(rest, SignRest):
        return ops.add_signs(full, rest.gradient, lifted(rest.projected, update, ops), rest.scale)
    return full


def lifted(factor: Array, update: LowRankUpdate, ops: Ops) -> Array:
    """Return the matrix with coefficients ``factor`` on the basis vectors of ``update``, none on the others."""
    axis, indices, size = update.axis, update.indices, update.size
    if update.vectors is not None:
        return apply_transpose(factor, update.vectors, axis, ops.xp)
    if indices is None:
        raise ValueError("update must have indices or vectors, got neither")
    basis = get_basis(update.basis)
    vectors = basis.columns_if_faster(indices, size, factor.dtype, update.method, ops)
    if vectors is not None:
        return apply_transpose(factor, vectors, axis, ops.xp)
    return basis.put_inverse(factor, indices, size, ops, axis, "fft")


def slice_rows(update: LowRankUpdate, rows: slice) -> LowRankUpdate:
    """Return the part of ``update`` for a slice of the dimension that is not transformed.

    Its rows (axis -1) or columns (axis -2) do not mix, so a large update can be materialized and added part by part.
    """
    axis, rest = update.axis, update.rest
    if rest is not None:
        # A scale has one number for each matrix, whatever its rows.
        dim = -3 - axis
        parts: Any = rest
        cut = (
            cut_rows(x, rows, axis) if getattr(x, "ndim", 0) and x.shape[dim] > 1 else x
            for x in parts
        )
        rest = type(rest)(*cut)
    return replace(update, factor=cut_rows(update.factor, rows, axis), rest=rest)


def without_chosen(coefficients: Array, indices: Array, axis: int, ops: Ops) -> Array:
    """Return the coefficients with those of the chosen columns set to zero."""
    found = held_columns(indices, coefficients.shape[axis], ops)
    return ops.xp.where(on_axis(found, axis), ops.xp.zeros_like(coefficients), coefficients)


def _lifted_with(rest: CoefficientRest, update: LowRankUpdate, ops: Ops) -> Array:
    """Return the matrix with the chosen coefficients from the factor and all others from the rest."""
    axis, indices = update.axis, update.indices
    if indices is None:
        raise ValueError("update must have indices where its rest is coefficients, got None")
    coefficients = ops.put_over(rest.values, update.factor, indices, axis=axis)
    return get_basis(update.basis).inverse(coefficients, ops, axis=axis, method=update.method)
