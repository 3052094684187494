"""FFT-based transforms of rows that JAX shards by rows.

XLA's partitioner gathers whatever is sharded before an FFT, even where only whole rows are transformed. Told that rows
are independent, it leaves them where they are. That in turn hides the FFT from `jax.vmap` and `jax.grad`, which are
told what to do with rows as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding

from lowrank_core.makhoul import dct_by_fft, fft_phases, idct_by_fft


def _by_rows(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """Return a linear ``function`` of rows ``(..., n)`` to rows ``(..., n)``, sharded along any axis but the last."""
    partitioned: Any = custom_partitioning(function)  # type: ignore[no-untyped-call]  # JAX annotates little of it

    def partition(mesh: Any, arguments: Any, result: Any) -> tuple[Any, Any, Any, Any]:
        spec = arguments[0].sharding.spec
        rows = NamedSharding(mesh, type(spec)(*tuple(spec)[: len(result.shape) - 1]))
        return mesh, function, rows, (rows,)

    def infer(mesh: Any, arguments: Any, result: Any) -> Any:
        return partition(mesh, arguments, result)[2]

    partitioned.def_partition(
        partition=partition,
        infer_sharding_from_operands=infer,
        sharding_rule="... n -> ... n",
    )
    batched = custom_vmap(partitioned)

    @batched.def_vmap
    def more_rows(_size: int, _batched: list[bool], rows: Array) -> tuple[Array, bool]:
        return batched(rows), True

    differentiable = jax.custom_jvp(batched)

    @differentiable.defjvp
    def linear(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
        return differentiable(*primals), function(*tangents)

    return differentiable


def _dct(rows: Array) -> Array:
    return dct_by_fft(rows, jnp, fft_phases(rows.shape[-1], jnp, rows.dtype, None))


def _idct(rows: Array) -> Array:
    return idct_by_fft(rows, jnp, fft_phases(rows.shape[-1], jnp, rows.dtype, None))


#: The orthonormal DCT-II of every row ``(..., n)``.
dct_rows = jax.jit(_by_rows(_dct))
#: The inverse of :func:`dct_rows`.
idct_rows = jax.jit(_by_rows(_idct))
