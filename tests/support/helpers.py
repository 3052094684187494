"""How tests make arrays and compare them: one table of tolerances, one way to assert."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from array_api_compat import array_namespace

# Norm of the error allowed, relative to the norm of what is expected.
TOLERANCES = {
    # One transform, projection or product of any size up to 4096.
    "transform": {"float64": 1e-12, "float32": 2e-6},
    # Orthonormality of a whole basis.
    "basis": {"float64": 1e-13, "float32": 1e-6},
    # Fifty optimizer steps, each of which builds on the one before.
    "trajectory": {"float64": 1e-10, "float32": 1e-5},
}
# No single number may be off by more than this many times the tolerance, relative to the largest.
OUTLIER = 8
# Rounding once to a narrow dtype moves each number by at most this part of itself.
ROUNDING = {"bfloat16": 2.0**-8, "float16": 2.0**-11}


def tolerance(kind: str, dtype: str) -> float:
    """The allowed error; what is rounded to half precision is computed in float32."""
    return TOLERANCES[kind]["float64" if dtype == "float64" else "float32"]


def library_of(x: Any) -> str:
    """Name of the array library of an array or of a namespace: ``numpy``, ``jax``, ..."""
    namespace = x if hasattr(x, "__name__") else array_namespace(x)
    return namespace.__name__.removeprefix("array_api_compat.").split(".")[0]


def dtype_name(x: Any) -> str:
    """Name of an array's dtype, the same in every library: ``float32``, ``int32``, ..."""
    return str(getattr(x, "dtype", x)).removeprefix("torch.").removeprefix("array_api_strict.")


def to_numpy(x: Any) -> np.ndarray:
    """A NumPy copy of any library's array; half precision becomes float32, which holds it exactly."""
    if library_of(x) == "torch":
        x = x.detach().cpu()
        x = (x.float() if dtype_name(x) in ROUNDING else x).numpy()
    elif library_of(x) == "cupy":
        x = x.get()
    elif dtype_name(x) == "bfloat16":
        x = x.astype("float32")
    return np.array(x)


def from_numpy(values: Any, xp: Any, dtype: str | None = None) -> Any:
    """An array of library ``xp`` that shares no memory with ``values``."""
    values = np.array(values)
    array = xp.asarray(values)  # the copy above is nobody else's
    if dtype is None:
        return array
    kind = getattr(xp, dtype)
    if library_of(xp) == "torch":
        return array.to(kind)
    return array.astype(kind) if hasattr(array, "astype") else xp.astype(array, kind)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Seeded standard normal numbers in float64."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def assert_close(
    actual: Any, expected: Any, *, xp: Any, dtype: str, kind: str = "transform"
) -> None:
    """Assert library, shape and dtype first, then that the error stays within the table.

    ``expected`` is any array-like. What is not finite must be the same on both sides. Half precision may
    be off by its own rounding, number by number, and by no more than float32 beyond that.
    """
    assert library_of(actual) == library_of(xp)
    wanted = np.asarray(expected, dtype=np.float64)
    assert tuple(actual.shape) == wanted.shape
    assert dtype_name(actual) == dtype
    found = to_numpy(actual).astype(np.float64)
    finite = np.isfinite(wanted)
    np.testing.assert_array_equal(found[~finite], wanted[~finite])
    found, wanted = found[finite], wanted[finite]
    if wanted.size == 0:
        return
    error = np.maximum(np.abs(found - wanted) - ROUNDING.get(dtype, 0.0) * np.abs(wanted), 0.0)
    allowed, norm, largest = tolerance(kind, dtype), np.linalg.norm(wanted), np.abs(wanted).max()
    assert np.linalg.norm(error) <= allowed * norm, (
        f"error of norm {np.linalg.norm(error):.3g} in {dtype}, allowed {allowed * norm:.3g}"
    )
    worst = error.argmax()
    assert error[worst] <= OUTLIER * allowed * largest, (
        f"{found[worst]!r} differs from {wanted[worst]!r} by more than "
        f"{OUTLIER * allowed * largest:.3g} in {dtype}"
    )


def assert_identical(actual: Any, expected: Any) -> None:
    """Assert the same library, shape, dtype and bits (a NaN equals a NaN)."""
    assert library_of(actual) == library_of(expected)
    assert tuple(actual.shape) == tuple(expected.shape)
    assert dtype_name(actual) == dtype_name(expected)
    np.testing.assert_array_equal(to_numpy(actual), to_numpy(expected))


@contextmanager
def untouched(*arrays: Any) -> Iterator[None]:
    """Assert that the block leaves ``arrays`` bit for bit as they were."""
    before = [to_numpy(array) for array in arrays]
    yield
    for array, copy in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(to_numpy(array), copy)
