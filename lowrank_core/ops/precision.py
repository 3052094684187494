"""The dtypes that arithmetic is done in, and their names."""

from __future__ import annotations

from typing import Any

from lowrank_core._typing import Array, DType, Namespace
from lowrank_core.ops.standard import Ops


def dtype_name(dtype: Any) -> str:
    """Return the name of a dtype given by name or as any library's object: ``"float32"``, ``"bfloat16"``, ..."""
    if isinstance(dtype, str):
        return dtype
    name = getattr(dtype, "name", None) or getattr(dtype, "__name__", None) or str(dtype)
    return str(name).rpartition(".")[2]


def as_dtype(argument: str, dtype: Any, xp: Namespace) -> DType:
    """Return the dtype object of ``xp`` for a name or any library's object.

    Raises
    ------
    ValueError
        If ``xp`` has none of that name.
    """
    found = getattr(xp, dtype_name(dtype), None)
    if found is None:
        raise ValueError(f"{argument} must be a dtype of {xp.__name__}, which has no {dtype!r}")
    return found


def compute_dtype(dtype: DType, xp: Namespace) -> DType:
    """Return the dtype to compute in: float64 for float64 of any byte order, float32 for anything narrower."""
    if dtype == xp.float32:
        return xp.float32
    if dtype == xp.float64 or dtype_name(dtype) == "float64":
        return xp.float64
    return xp.float32


def compute_dtype_name(dtype: Any) -> str:
    """Return the name of the dtype to compute in; ``None`` stands for float32, a name for the dtype of that name."""
    return "float64" if dtype is not None and dtype_name(dtype) == "float64" else "float32"


def to_compute(x: Array, ops: Ops) -> Array:
    """Return ``x`` in the dtype to compute in, without a copy where none is needed."""
    return ops.astype(x, compute_dtype(x.dtype, ops.xp))
