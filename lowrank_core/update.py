"""What one step moves a parameter by, kept low-rank until it is added."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from lowrank_core._typing import Array, Scalar
from lowrank_core.bases import get_basis
from lowrank_core.layout import cut_across
from lowrank_core.ops import Ops, ops_for


@dataclass(frozen=True)
class LowRankUpdate:
    """The direction of one step: the parameter moves by ``-rate`` times the matrix this stands for.

    Attributes
    ----------
    factor
        ``(..., m, r)`` (axis -1) or ``(..., r, n)`` (axis -2): coefficients on the chosen basis vectors.
    indices
        ``(..., r)`` int32: the chosen basis vectors; ``None`` where ``vectors`` has them.
    axis
        The transformed axis, -1 or -2.
    size
        Its length.
    basis
        Name of the basis.
    vectors
        ``(..., size, r)`` or ``None``: the basis vectors of a basis that is not fixed.
    complement
        ``(..., m, n)`` or ``None``: coefficients that a residual policy gives the basis vectors not chosen (those at
        the chosen ones are ignored).
    residual
        ``(..., m, n)`` or ``None``: what a residual policy adds, in the parameter's own coordinates.
    gradient, projected, sign_scale
        ``(..., m, n)`` and the shape of ``factor``, or both ``None``: a gradient and its coefficients on the chosen
        basis vectors. What these leave of it is stepped along its sign, times ``sign_scale``. Kept apart so that the
        sign, which is as large as the parameter, is made block by block.
    """

    factor: Array
    indices: Array | None
    axis: int
    size: int
    basis: str = "dct"
    vectors: Array | None = None
    complement: Array | None = None
    residual: Array | None = None
    gradient: Array | None = None
    projected: Array | None = None
    sign_scale: Scalar = 1.0


def slice_across(update: LowRankUpdate, block: slice) -> LowRankUpdate:
    """Return the part of ``update`` for a block of the dimension that is not transformed.

    That dimension's rows (axis -1) or columns (axis -2) do not mix, so a large update can be materialized and
    added block by block.
    """
    parts: dict[str, Any] = {
        name: getattr(update, name)
        for name in ("factor", "complement", "residual", "gradient", "projected")
    }
    cuts = {name: cut_across(x, block, update.axis) for name, x in parts.items() if x is not None}
    return replace(update, **cuts)


def materialize(update: LowRankUpdate, /, *, method: str = "auto", ops: Ops | None = None) -> Array:
    """Return the full ``(..., m, n)`` matrix of ``update``: ``u Q_I^T`` or ``Q_I u``, plus the residual part.

    ``method`` is that of :func:`lowrank_core.lift`.
    """
    ops = ops_for(update.factor) if ops is None else ops
    update = with_vectors(update, method, ops)
    if update.complement is not None and update.indices is not None:
        basis, axis = get_basis(update.basis), update.axis
        coefficients = ops.replace(update.complement, update.factor, update.indices, axis=axis)
        full = basis.inverse(coefficients, ops, axis=axis, method=method)
    else:
        full = lifted(update.factor, update, method, ops)
    if update.residual is not None:
        full = full + update.residual
    if update.gradient is not None and update.projected is not None:
        kept = lifted(update.projected, update, method, ops)
        full = ops.add_signs(full, update.gradient, kept, update.sign_scale)
    return full


def with_vectors(update: LowRankUpdate, method: str, ops: Ops) -> LowRankUpdate:
    """Return ``update`` with its basis vectors where a product lifts it: made once for all of its parts and blocks."""
    indices = update.indices
    if indices is None or update.vectors is not None or update.complement is not None:
        return update
    vectors = product_vectors(indices, update.size, update.basis, update.factor, method, ops)
    return update if vectors is None else replace(update, vectors=vectors)


def product_vectors(
    indices: Array, size: int, basis: str, like: Array, method: str, ops: Ops
) -> Array | None:
    """Return the basis vectors of ``indices`` where a product with them is faster than a transform, else ``None``."""
    if not ops.use_product(indices.shape[-1], size, method, ops.device_of(like)):
        return None
    return get_basis(basis).columns(indices, size, like, ops)


def subtract_lifted(x: Array, update: LowRankUpdate, method: str, ops: Ops) -> Array:
    """Return ``x`` less the matrix of ``update``, block by block; ``x`` is the caller's own and not used again."""
    update = with_vectors(update, method, ops)
    return ops.subtract(
        x,
        lambda block: materialize(slice_across(update, block), method=method, ops=ops),
        axis=update.axis,
    )


def lifted(factor: Array, update: LowRankUpdate, method: str, ops: Ops) -> Array:
    """Return the matrix with coefficients ``factor`` on the basis vectors of ``update``."""
    axis = update.axis
    if update.vectors is not None:
        return ops.apply_matrix(factor, ops.xp.matrix_transpose(update.vectors), axis=axis)
    if update.indices is None:
        raise ValueError("update must have indices or vectors, got neither")
    basis = get_basis(update.basis)
    return basis.lift(factor, update.indices, update.size, ops, axis=axis, method=method)
