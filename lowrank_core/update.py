"""What one step moves a parameter by, kept low-rank until it is added."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lowrank_core._typing import Array
from lowrank_core.bases import get_basis
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
    """

    factor: Array
    indices: Array | None
    axis: int
    size: int
    basis: str = "dct"
    vectors: Array | None = None
    complement: Array | None = None
    residual: Array | None = None


def slice_across(update: LowRankUpdate, block: slice) -> LowRankUpdate:
    """Return the part of ``update`` for a block of the dimension that is not transformed.

    That dimension's rows (axis -1) or columns (axis -2) do not mix, so a large update can be materialized and
    added block by block.
    """
    key = (..., block, slice(None)) if update.axis == -1 else (..., block)
    return replace(
        update,
        factor=update.factor[key],
        complement=None if update.complement is None else update.complement[key],
        residual=None if update.residual is None else update.residual[key],
    )


def materialize(update: LowRankUpdate, /, *, method: str = "auto", ops: Ops | None = None) -> Array:
    """Return the full ``(..., m, n)`` matrix of ``update``: ``u Q_I^T`` or ``Q_I u``, plus the residual part.

    ``method`` is that of :func:`lowrank_core.lift`.
    """
    ops = ops_for(update.factor) if ops is None else ops
    axis = update.axis
    if update.vectors is not None:
        full = ops.apply_matrix(update.factor, ops.xp.matrix_transpose(update.vectors), axis=axis)
    elif update.indices is None:
        raise ValueError("update must have indices or vectors, got neither")
    elif update.complement is not None:
        coefficients = ops.replace(update.complement, update.factor, update.indices, axis=axis)
        full = get_basis(update.basis).inverse(coefficients, ops, axis=axis, method=method)
    else:
        full = get_basis(update.basis).lift(
            update.factor, update.indices, update.size, ops, axis=axis, method=method
        )
    return full if update.residual is None else full + update.residual
