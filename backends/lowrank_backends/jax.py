"""JAX: branches and step counts that trace, transforms sharded by rows, constants made outside the trace."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, experimental

from lowrank_backends._jax_rows import dct_rows, idct_columns_rows, idct_rows, take_rows
from lowrank_core import LowRankUpdate, StandardOps
from lowrank_core.layout import on_axis
from lowrank_core.ops.axes import along_last, inverse_index

T = TypeVar("T")

# Bases are computed in float64, whether or not the user's own numbers may be. Before JAX 0.8 the switch was in
# `jax.experimental`.
if hasattr(jax, "enable_x64"):
    _enable_x64: Any = jax.enable_x64
else:
    _enable_x64 = vars(experimental)["enable_x64"]

# An update leaves `jax.jit` like any other result: its arrays are traced, its geometry is static.
jax.tree_util.register_dataclass(
    LowRankUpdate,
    data_fields=["factor", "indices", "vectors", "rest"],
    meta_fields=["axis", "size", "basis", "method"],
)


class JaxOps(StandardOps[Array]):
    """Operations on JAX arrays."""

    def device_of(self, x: Array) -> None:
        """Return ``None``: an array made without a device follows the arrays it meets."""
        return

    def copy(self, x: Array) -> Array:
        """Return ``x``: nobody can write to it."""
        return x

    def is_readable(self, x: Array) -> bool:
        """Return whether ``x`` is an array of numbers and not a traced one."""
        return not isinstance(x, jax.core.Tracer) and x.is_fully_addressable

    def cond(self, predicate: bool | Array, then: Callable[[], T], otherwise: Callable[[], T]) -> T:
        """Return ``then()`` or ``otherwise()``: a host branch, or ``lax.cond`` inside a trace.

        Outside of one, ``lax.cond`` would compile both branches anew at every step, their closures being new.
        """
        if not isinstance(predicate, jax.core.Tracer):
            return super().cond(predicate, then, otherwise)
        chosen: T = jax.lax.cond(predicate, then, otherwise)
        return chosen

    def step_counter(self, device: object = None) -> Array:
        """Return a step count of zero as a 0-d int32 array."""
        return jnp.zeros((), dtype=jnp.int32, device=device)

    def dct(self, x: Array, *, axis: int) -> Array:
        """Return the orthonormal DCT-II by FFT, of sharded rows where they are."""
        return along_last(dct_rows, x, axis, self.xp)

    def idct(self, coefficients: Array, *, axis: int) -> Array:
        """Return the inverse of :meth:`dct`."""
        return along_last(idct_rows, coefficients, axis, self.xp)

    def idct_columns(self, values: Array, indices: Array, size: int, *, axis: int) -> Array:
        """Return the inverse of :meth:`dct` of few coefficients, which are never put among zeros in memory."""
        if indices.ndim > 1:
            return super().idct_columns(values, indices, size, axis=axis)
        position, _ = inverse_index(indices, size, self.xp, None)
        return along_last(lambda rows: idct_columns_rows(rows, position), values, axis, self.xp)

    def take(self, x: Array, indices: Array, *, axis: int) -> Array:
        """Return rows or columns of matrices, each whole: an index for every number would be as large as they are."""
        if indices.ndim > 1:
            return jnp.take_along_axis(x, on_axis(indices, axis), axis=axis)
        return take_rows(x, indices) if axis == -1 else super().take(x, indices, axis=axis)

    def constant(self, key: Hashable, build: Callable[[], Array]) -> Array:
        """Return the shared constant, made of concrete numbers even inside a trace.

        A transfer guard is for what a program moves at every step; this moves a few numbers once.
        """
        with jax.ensure_compile_time_eval(), _enable_x64(True), jax.transfer_guard("allow"):
            value: Array = super().constant(key, build)
        return value
