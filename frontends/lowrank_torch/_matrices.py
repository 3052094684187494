"""Which matrices a parameter consists of: flattened, stacked, split into fused parts and heads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from lowrank_core._checks import check_choice, check_integer


@dataclass(frozen=True)
class ShapeOptions:
    """Options of a group that say how its parameters are matrices."""

    batch_dims: int = 0
    transposed: bool = False
    split_sizes: Sequence[int] | None = None
    num_heads: int | Sequence[int] | None = None


SHAPE_OPTIONS: Mapping[str, Any] = asdict(ShapeOptions())


def check_shape_options(group: Mapping[str, Any]) -> None:
    """Raise unless the group's `SHAPE_OPTIONS` are well formed."""
    check_integer("batch_dims", group["batch_dims"], low=0)
    check_choice("transposed", group["transposed"], (False, True))
    for name in ("split_sizes", "num_heads"):
        value = group[name]
        if isinstance(value, Sequence) and value and not isinstance(value, str):
            for entry in value:
                check_integer(f"each of {name}", entry, low=1)
        elif not (name == "num_heads" and isinstance(value, int)) and value is not None:
            raise TypeError(f"{name} must be a list of integers or None, got {value!r}")
    sizes, heads = group["split_sizes"], group["num_heads"]
    if isinstance(heads, int):
        check_integer("num_heads", heads, low=1)
    elif heads is not None and len(heads) != len(sizes or (0,)):
        raise ValueError(
            f"num_heads must be one number or one for each of split_sizes={sizes!r}, got {heads!r}"
        )


def matrix_shapes(shape: Sequence[int], group: Mapping[str, Any]) -> list[tuple[int, ...]]:
    """Return the shapes of the stacks of matrices that a parameter of ``shape`` consists of.

    The ``batch_dims`` leading dimensions stack matrices; of the rest, the first dimension is the rows and all others
    together the columns. ``transposed`` says that the parameter is kept as (in, out): its columns, so flattened, are
    the rows of the matrices, as `torch.nn.Linear` would have them. ``split_sizes`` cuts the rows into parts of a fused
    projection (query, key and value), and ``num_heads``, one number or one for each part, cuts the rows of a part into
    as many matrices of equal height.

    Raises
    ------
    ValueError
        If the rows cannot be cut so.
    """
    batch_dims = group["batch_dims"]
    batch, (rows, *rest) = tuple(shape[:batch_dims]), shape[batch_dims:]
    columns = math.prod(rest)
    if group["transposed"]:
        rows, columns = columns, rows
    sizes = group["split_sizes"] or [rows]
    if sum(sizes) != rows:
        raise ValueError(
            f"split_sizes must add up to the {rows} rows of a parameter of shape {tuple(shape)}, got {sizes!r}"
        )
    heads = group["num_heads"]
    counts = [heads] * len(sizes) if heads is None or isinstance(heads, int) else heads
    shapes = []
    for size, count in zip(sizes, counts, strict=True):
        if count is None:
            shapes.append((*batch, size, columns))
        elif size % count:
            raise ValueError(
                f"num_heads must divide the rows it cuts, {size} of a parameter of shape {tuple(shape)}, got {count}"
            )
        else:
            shapes.append((*batch, count, size // count, columns))
    return shapes


def matrix_views(
    tensor: Tensor, shapes: Sequence[tuple[int, ...]], batch_dims: int
) -> list[Tensor]:
    """Return the stacks of matrices of `matrix_shapes`: ``tensor``, which is laid out as matrices, or views of it."""
    if len(shapes) == 1 and tensor.shape == shapes[0]:
        return [tensor]
    start, views = 0, []
    for shape in shapes:
        rows = math.prod(shape[batch_dims:-1])
        views.append(tensor.narrow(batch_dims, start, rows).view(shape))
        start += rows
    return views


def as_matrices(tensor: Tensor, batch_dims: int, *, transposed: bool = False) -> Tensor:
    """Return ``tensor`` as matrices ``(*batch, rows, columns)``, its columns flattened.

    A view, or a copy where its memory is laid out otherwise. If it is ``transposed``, (in, out), the view is (out, in).
    """
    flat = tensor.flatten(batch_dims + 1) if tensor.ndim > batch_dims + 2 else tensor
    return flat.mT if transposed else flat


def from_matrices(matrices: Tensor, shape: Sequence[int], *, transposed: bool = False) -> Tensor:
    """Return ``matrices``, made by `as_matrices` of a tensor of ``shape``, laid out as that is."""
    flat = matrices.mT if transposed else matrices
    return flat.view(shape)
