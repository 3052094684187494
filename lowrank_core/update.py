"""What one step moves a parameter by, kept low-rank until it is added."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lowrank_core._typing import Array
from lowrank_core.bases import get_basis
from lowrank_core.ops import Ops, ops_for
from lowrank_core.projection import lift_from


@dataclass(frozen=True)
class LowRankUpdate:
    """The direction of one step: the parameter moves by ``-rate`` times the matrix this stands for.

    Attributes
    ----------
    factor
        ``(..., m, r)`` (axis -1) or ``(..., r, n)`` (axis -2): coefficients on the chosen basis vectors.
    indices
        ``(..., r)`` int32: the chosen basis vectors.
    axis
        The transformed axis, -1 or -2.
    size
        Its length.
    basis
        Name of the basis.
    residual
        ``(..., m, n)`` or ``None``: what a residual policy adds, in the parameter's own coordinates.
    """

    factor: Array
    indices: Array
    axis: int
    size: int
    basis: str = "dct"
    residual: Array | None = None


def slice_across(update: LowRankUpdate, block: slice) -> LowRankUpdate:
    """Return the part of ``update`` for a block of the dimension that is not transformed.

    That dimension's rows (axis -1) or columns (axis -2) do not mix, so a large update can be materialized and
    added block by block.
    """
    key = (..., block, slice(None)) if update.axis == -1 else (..., block)
    residual = update.residual
    return replace(
        update,
        factor=update.factor[key],
        residual=None if residual is None else residual[key],
    )


def materialize(update: LowRankUpdate, /, *, method: str = "auto", ops: Ops | None = None) -> Array:
    """Return the full ``(..., m, n)`` matrix of ``update``: ``u Q_I^T`` or ``Q_I u``, plus the residual part.

    ``method`` is that of :func:`lowrank_core.lift`.
    """
    ops = ops_for(update.factor) if ops is None else ops
    full = lift_from(
        update.factor,
        update.indices,
        update.size,
        get_basis(update.basis),
        ops,
        axis=update.axis,
        method=method,
    )
    return full if update.residual is None else full + update.residual
