"""The check of indices of basis columns that callers pass."""

from __future__ import annotations

from typing import Any

from lowrank_core.ops.registry import ops_for
from lowrank_core.ops.standard import Ops


def check_indices(
    name: str, indices: Any, batch: tuple[int, ...], size: int | None, ops: Ops
) -> None:
    """Raise unless ``indices`` can be columns chosen out of ``size`` (unknown if ``None``).

    Kind, dtype and shape are checked always; that no index is out of range or out of order, where numbers can be read
    without waiting for a device.

    Parameters
    ----------
    name
        What the argument is called.
    indices
        ``(r,)``, or ``(..., r)`` with the leading dimensions ``batch``, integers, strictly ascending.
    batch
        Leading dimensions of the matrices they are for.
    size
        Number of columns to choose from.
    ops
        Operations of the matrices' library.

    Raises
    ------
    TypeError
        If they are no array of integers of the matrices' library.
    ValueError
        If they have another shape, or are not strictly ascending from 0 to ``size - 1``.
    """
    if not hasattr(indices, "dtype") or ops_for(indices) is not ops:
        raise TypeError(
            f"{name} must be an array of {ops.xp.__name__}, as the matrices are, got {type(indices).__name__}"
        )
    xp = ops.xp
    if not xp.isdtype(indices.dtype, "integral"):
        raise TypeError(f"{name} must be integers, got {indices.dtype}")
    shape = tuple(indices.shape)
    if not shape or not shape[-1] or shape[:-1] not in ((), tuple(batch)):
        raise ValueError(f"{name} must be of shape {(*batch, 'r')} or ('r',), got {shape}")
    if not ops.is_readable(indices):
        return
    rises = bool(xp.all(indices[..., 1:] > indices[..., :-1]))
    low, high = int(xp.min(indices)), int(xp.max(indices))
    if not rises or low < 0 or (size is not None and high >= size):
        limit = "" if size is None else f" to {size - 1}"
        raise ValueError(
            f"{name} must be strictly ascending from 0{limit}, got numbers from {low} to {high}"
            + ("" if rises else ", not ascending")
        )
