"""What optimizer state is made of: shape, dtype and law of every array, and so its size in bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, TypeVar, get_args

from lowrank_core._checks import check_choice
from lowrank_core._typing import Array, Device, DType
from lowrank_core.numerics.quantization import Quantized, dequantize, quantize, quantized_shapes
from lowrank_core.numerics.random import fold
from lowrank_core.numerics.rounding import round_stochastically
from lowrank_core.ops.precision import as_dtype, dtype_name
from lowrank_core.ops.standard import Ops
from lowrank_core.option_types import StateDType
from lowrank_core.rules.laws import ANY, NON_NEGATIVE, Law

_ITEM_BYTES = {"float64": 8, "float32": 4, "int32": 4, "bfloat16": 2, "float16": 2, "uint8": 1}
State = TypeVar("State", bound=Any)

STATE_DTYPES = get_args(StateDType)

#: Which of a step's random numbers round each array, so that no two of one state are rounded alike.
_SALTS = {"first_moment": 1, "second_moment": 2, "feedback": 3, "momentum": 3}

# The dtype that a second moment is kept in as its root: it holds no squares of small gradients.
_ROOTS = "float16"


class ArraySpec(NamedTuple):
    """Shape of an array, the name of its dtype and what its numbers can be."""

    shape: tuple[int, ...]
    dtype: str
    law: Law = ANY

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * _ITEM_BYTES[self.dtype]


class HasState(Protocol):
    """A configuration that knows the state it leads to."""

    def state_spec(self, shape: tuple[int, ...], dtype: str = "float32") -> dict[str, ArraySpec]:
        """Return shape and dtype of every array of the state of matrices of ``shape``."""


def check_state_dtype(name: str | None) -> None:
    """Raise ``ValueError`` unless ``name`` names a dtype that moments can be kept in."""
    check_choice("state_dtype", name, (None, *STATE_DTYPES))


def empty_state(spec: Mapping[str, ArraySpec], ops: Ops, device: Device) -> dict[str, Array]:
    """Return arrays of zeros as ``spec`` says.

    Raises
    ------
    ValueError
        If the array library has no such dtype.
    """
    arrays = {}
    for name, (shape, dtype, _) in spec.items():
        kind = as_dtype("state_dtype", dtype, ops.xp)
        arrays[name] = ops.xp.zeros(shape, dtype=kind, device=device)
    return arrays


def check_state(state: Any, spec: Mapping[str, ArraySpec], shape: tuple[int, ...]) -> None:
    """Raise unless ``state`` has the arrays of ``spec``, which matrices of ``shape`` ask for."""
    if not hasattr(state, "_asdict"):
        raise TypeError(f"state must be one that init or a step has returned, got {state!r}")
    for name, array in state._asdict().items():
        if name == "step":
            continue
        wanted = spec[name].shape if name in spec else None
        found = None if array is None else tuple(array.shape)
        if wanted != found:
            raise ValueError(
                f"state must fit the gradient and the config: for a gradient of shape {shape}, {name} is "
                f"{_described(wanted)}, got {_described(found)}"
            )


def state_bytes(shape: tuple[int, ...], config: HasState, *, dtype: DType = "float32") -> int:
    """Return the bytes of optimizer state of matrices of ``shape``, without making an array.

    Parameters
    ----------
    shape
        ``(..., m, n)``: leading dimensions stack independent matrices.
    config
        A `DCTAdamWConfig` or a `TrionConfig`.
    dtype
        The dtype the moments are kept in unless ``config.state_dtype`` says otherwise, an object or its name.

    Returns
    -------
    int
        Bytes of all arrays of the state. The step count, a number, is not among them.

    Raises
    ------
    TypeError, ValueError
        If ``config`` is neither, the options do not fit the shape, or state cannot be of such a dtype.
    """
    if not hasattr(config, "state_spec"):
        raise TypeError(f"config must be a DCTAdamWConfig or a TrionConfig, got {config!r}")
    name = dtype_name(dtype)
    check_choice("dtype", name, STATE_DTYPES)
    return sum(array.nbytes for array in config.state_spec(tuple(shape), name).values())


def buffer_spec(
    name: str, shape: tuple[int, ...], dtype: str, scale_dtype: str, bits: int | None
) -> dict[str, ArraySpec]:
    """Return what a buffer of the size of the parameter is kept as: one array, or codes with their scales."""
    if bits is None:
        return {name: ArraySpec(shape, dtype)}
    codes, scales = quantized_shapes(shape, bits)
    return {
        name: ArraySpec(codes, "uint8"),
        f"{name}_minimum": ArraySpec(scales, scale_dtype),
        f"{name}_scale": ArraySpec(scales, scale_dtype, NON_NEGATIVE),
    }


def store(x: Array, dtype: DType, step: int | Array, salt: int, ops: Ops) -> Array:
    """Return ``x`` in the dtype it is kept in: as it is where that is wide, else rounded at random by ``step``."""
    if dtype == x.dtype or dtype in (ops.xp.float32, ops.xp.float64):
        return ops.astype(x, dtype)
    key = ops.xp.full((1,), salt, dtype=ops.xp.int32, device=ops.device_of(x))
    return round_stochastically(ops.astype(x, ops.xp.float32), dtype, fold(key, step), ops)


def load_squares(kept: Array, dtype: DType, ops: Ops) -> Array:
    """Return a second moment that was kept by `store_squares`."""
    wide = ops.astype(kept, dtype)
    return wide * wide if kept.dtype == getattr(ops.xp, _ROOTS, None) else wide


def store_squares(x: Array, dtype: DType, step: int | Array, ops: Ops) -> Array:
    """Return a second moment as it is kept: in float16, which holds no squares of small gradients, its root."""
    if dtype == getattr(ops.xp, _ROOTS, None):
        # Below its least number float16 would have zero, and Adam divide by it.
        root = ops.xp.sqrt(x)
        x = ops.xp.maximum(root, ops.xp.full_like(root, 2.0**-24))
    return store(x, dtype, step, _SALTS["second_moment"], ops)


def load_buffer(
    state: Any, name: str, bits: int | None, shape: tuple[int, ...], dtype: DType, ops: Ops
) -> Array:
    """Return the buffer ``name`` of a state as numbers of ``dtype``."""
    kept = getattr(state, name)
    if bits is not None:
        minimum, scale = getattr(state, f"{name}_minimum"), getattr(state, f"{name}_scale")
        kept = dequantize(Quantized(kept, minimum, scale, bits, shape[-1]))
    return ops.astype(kept, dtype)


def store_buffer(
    state: State, name: str, x: Array, bits: int | None, step: int | Array, ops: Ops
) -> State:
    """Return the state with ``x`` kept as its buffer ``name``."""
    if bits is None:
        salt = _SALTS[name]
        return state._replace(**{name: store(x, getattr(state, name).dtype, step, salt, ops)})
    quantized = quantize(x, bits)
    scale_dtype = getattr(state, f"{name}_scale").dtype
    return state._replace(
        **{
            name: quantized.codes,
            f"{name}_minimum": ops.astype(quantized.minimum, scale_dtype),
            f"{name}_scale": ops.astype(quantized.scale, scale_dtype),
        }
    )


def _described(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else f"of shape {shape}"
