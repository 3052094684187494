"""Work along one of the last two axes of matrices, and maps between indices, from the array API alone."""

from __future__ import annotations

from collections.abc import Callable

from lowrank_core._typing import A, Device, Namespace
from lowrank_core.layout import on_axis


def along_last(function: Callable[[A], A], x: A, axis: int, xp: Namespace) -> A:
    """Return ``function``, which works along the last axis, applied along ``axis``, -1 or -2."""
    if axis == -1:
        return function(x)
    transformed: A = xp.matrix_transpose(function(xp.matrix_transpose(x)))
    return transformed


def apply_matrix(x: A, matrix: A, axis: int, xp: Namespace) -> A:
    """Return ``x @ matrix`` (axis -1) or ``matrix.T @ x`` (axis -2), batched."""
    return x @ matrix if axis == -1 else xp.matrix_transpose(matrix) @ x


def apply_transpose(x: A, matrix: A, axis: int, xp: Namespace) -> A:
    """Return ``x @ matrix.T`` (axis -1) or ``matrix @ x`` (axis -2), batched: `apply_matrix` back."""
    return x @ xp.matrix_transpose(matrix) if axis == -1 else matrix @ x


def expand_index(index: A, x: A, axis: int, xp: Namespace) -> A:
    """Return ``index`` ``(..., r)`` repeated over the rows of the matrices ``x`` that are not indexed."""
    shape = list(x.shape)
    shape[axis] = index.shape[-1]
    expanded: A = xp.broadcast_to(on_axis(index, axis), tuple(shape))
    return expanded


def inverse_index(indices: A, size: int, xp: Namespace, device: Device) -> tuple[A, A]:
    """Return for ``0 .. size - 1`` its position among ``indices`` ``(..., r)``, ``r`` if none, and if it has one."""
    places = xp.arange(size, dtype=indices.dtype, device=device)
    match = indices[..., None] == places
    found = xp.any(match, axis=-2)
    first = xp.argmax(xp.astype(match, xp.int8), axis=-2)
    return xp.where(found, first, indices.shape[-1]), found
