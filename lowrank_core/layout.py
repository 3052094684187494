"""Which dimension of a matrix is transformed, and how many of its basis vectors are kept."""

from __future__ import annotations

import dataclasses
from numbers import Integral, Real
from typing import Any, NamedTuple, TypeVar, get_args

from lowrank_core._checks import check_choice
from lowrank_core._typing import Scalar
from lowrank_core.option_types import Side

SIDES = get_args(Side)
#: What the options call a transformed axis.
SIDE_OF = {-1: "right", -2: "left"}

Config = TypeVar("Config", bound=Any)


class Layout(NamedTuple):
    """The static geometry of one matrix, or of a stack of same-shaped matrices.

    Attributes
    ----------
    axis
        -1 if the rows are transformed (right side), -2 if the columns are (left side).
    size
        Length of the transformed dimension, which is the size of the basis.
    rank
        Number of basis vectors kept, ``1 <= rank <= size``.
    rows
        Length of the other dimension: how many rows (axis -1) or columns (axis -2) are transformed, each by itself.
    batch
        Leading dimensions: one matrix per entry.
    """

    axis: int
    size: int
    rank: int
    rows: int
    batch: tuple[int, ...]

    @property
    def low_rank_shape(self) -> tuple[int, ...]:
        """Shape of what is kept: ``(..., m, r)`` on the right side, ``(..., r, n)`` on the left."""
        return (*self.batch, *self._ordered(self.rank))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole matrix (with its leading dimensions)."""
        return (*self.batch, *self._ordered(self.size))

    @property
    def indices_shape(self) -> tuple[int, ...]:
        """Shape of the chosen indices: ``(..., r)``."""
        return (*self.batch, self.rank)

    @property
    def scores_shape(self) -> tuple[int, ...]:
        """Shape of one number per basis vector: ``(..., size)``."""
        return (*self.batch, self.size)

    @property
    def rows_shape(self) -> tuple[int, ...]:
        """Shape of one number per row: ``(..., m, 1)`` on the right side, ``(..., 1, n)`` on the left."""
        return (*self.batch, *self._ordered(1))

    def _ordered(self, along: int) -> tuple[int, int]:
        return (self.rows, along) if self.axis == -1 else (along, self.rows)


def check_rank(rank: object) -> None:
    """Raise unless ``rank`` is a positive integer or a fraction in (0, 1]."""
    rule = "rank must be a positive integer or a fraction in (0, 1]"
    if isinstance(rank, bool) or not isinstance(rank, Real):
        raise TypeError(f"{rule}, got {rank!r}")
    if not (int(rank) >= 1 if isinstance(rank, Integral) else 0.0 < float(rank) <= 1.0):
        raise ValueError(f"{rule}, got {rank!r}")


def resolve_rank(rank: int | float, size: int) -> int:
    """Return ``rank`` as a number of basis vectors out of ``size``.

    A fraction in (0, 1] means ``round(rank * size)``, at least 1. An integer is returned as it is,
    even above ``size``: whether that is an error depends on the caller.
    """
    check_rank(rank)
    given: object = rank
    return int(given) if isinstance(given, Integral) else max(1, round(float(rank) * size))


def resolve_axis(shape: tuple[int, ...], side: str) -> int:
    """Return the transformed axis of a matrix of ``shape``, its last two dimensions being the matrix.

    ``"right"`` transforms the rows (axis -1), ``"left"`` the columns (axis -2), ``"auto"`` along the
    shorter dimension, the last one if both are equal: the fewer basis vectors there are to choose
    from, the fewer numbers the same share of them leaves to keep.
    """
    check_choice("side", side, SIDES)
    if side == "auto":
        return -1 if shape[-1] <= shape[-2] else -2
    return -1 if side == "right" else -2


def layout_of(shape: tuple[int, ...], *, rank: int | float, side: str = "auto") -> Layout:
    """Return the geometry of matrices of ``shape``.

    Raises
    ------
    ValueError
        If ``shape`` has fewer than two dimensions or an empty matrix, or if ``rank`` exceeds the
        length of the transformed dimension.
    """
    shape = tuple(shape)
    if len(shape) < 2:
        raise ValueError(f"shape must have at least two dimensions, got {shape}")
    axis = resolve_axis(shape, side)
    size, rows = shape[axis], shape[-3 - axis]
    if size < 1:
        raise ValueError(f"shape must have a transformed dimension of at least 1, got {shape}")
    count = resolve_rank(rank, size)
    if count > size:
        raise ValueError(
            f"rank must not exceed the transformed dimension, which is {size} for shape {shape} "
            f"with side={side!r}, got {rank!r}"
        )
    return Layout(axis, size, count, rows, shape[:-2])


def is_low_rank(shape: tuple[int, ...], *, rank: int | float, side: str) -> bool:
    """Return whether fewer basis vectors are kept of matrices of ``shape`` than there are."""
    size = shape[resolve_axis(shape, side)]
    return resolve_rank(rank, size) < size


def with_fitting_rank(config: Config, shape: tuple[int, ...]) -> Config:
    """Return ``config`` with a rank of at most the transformed size of matrices of ``shape``."""
    size = shape[resolve_axis(shape, config.side)]
    if resolve_rank(config.rank, size) <= size:
        return config
    fitting: Config = dataclasses.replace(config, rank=size)
    return fitting


def with_side_of(config: Config, axis: int) -> Config:
    """Return ``config`` with the side that transforms ``axis``: the shape of a part of a matrix does not tell it."""
    if config.side == SIDE_OF[axis]:
        return config
    sided: Config = dataclasses.replace(config, side=SIDE_OF[axis])
    return sided


def on_axis(per_vector: Scalar, axis: int) -> Any:
    """Return one number for each basis vector, ``(..., r)``, so that it broadcasts over matrices; a scalar as it is."""
    if isinstance(per_vector, (int, float)) or per_vector.ndim == 0:
        return per_vector
    return per_vector[..., None, :] if axis == -1 else per_vector[..., :, None]


def cut_rows(x: Any, rows: slice, axis: int) -> Any:
    """Return a slice of the dimension of matrices that is not ``axis``."""
    return x[(..., rows, slice(None)) if axis == -1 else (..., rows)]
