"""Functions of rows on JAX arrays that are sharded by rows.

XLA's partitioner gathers whatever is sharded before an FFT or a loop, even where each row is treated by itself. Told
that rows are independent, it leaves them where they are. That in turn hides the function from `jax.vmap` and
`jax.grad`, which are told what to do with rows as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding

from lowrank_backends import _jax_blocks
from lowrank_core.ops.makhoul import dct_by_fft, fft_phases, idct_by_fft


def _by_rows(
    function: Callable[..., Array], on_cpu: Callable[..., Array], rule: str
) -> Callable[..., Array]:
    """Return a ``function``, linear in rows ``(..., n)``, to rows ``(..., k)``, sharded along any axis but the last.

    Further arguments are shared by all rows. ``on_cpu`` does the same, and is what runs on a CPU; ``rule`` names axes.
    """

    def placed(rows: Array, *shared: Array) -> Array:
        if any(jax.typeof(rows).sharding.spec):
            # Types tell the sharding of all rows, which blocks would cut; those of a shard, that they are whole.
            return function(rows, *shared)
        result: Array = lax.platform_dependent(rows, *shared, cpu=on_cpu, default=function)
        return result

    partitioned: Any = custom_partitioning(placed)  # type: ignore[no-untyped-call]  # JAX annotates little of it

    def partition(mesh: Any, arguments: Any, result: Any) -> tuple[Any, Any, Any, Any]:
        spec = arguments[0].sharding.spec
        rows = NamedSharding(mesh, type(spec)(*tuple(spec)[: len(result.shape) - 1]))
        everywhere = NamedSharding(mesh, type(spec)())
        return mesh, placed, rows, (rows, *(everywhere for _ in arguments[1:]))

    def infer(mesh: Any, arguments: Any, result: Any) -> Any:
        return partition(mesh, arguments, result)[2]

    partitioned.def_partition(
        partition=partition, infer_sharding_from_operands=infer, sharding_rule=rule
    )
    batched = custom_vmap(partitioned)

    @batched.def_vmap
    def more_rows(
        _size: int, stacked: list[bool], rows: Array, *shared: Array
    ) -> tuple[Array, bool]:
        if any(stacked[1:]):
            axes = [0 if each else None for each in stacked]
            return jax.vmap(function, axes)(rows, *shared), True
        return batched(rows, *shared), True

    differentiable = jax.custom_jvp(batched)

    @differentiable.defjvp
    def linear(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
        return differentiable(*primals), function(tangents[0], *primals[1:])

    compiled: Callable[..., Array] = jax.jit(differentiable)
    return compiled


def _dct(rows: Array) -> Array:
    return dct_by_fft(rows, jnp, fft_phases(rows.shape[-1], jnp, rows.dtype, None))


def _idct(rows: Array) -> Array:
    return idct_by_fft(rows, jnp, fft_phases(rows.shape[-1], jnp, rows.dtype, None))


def _idct_columns(values: Array, position: Array) -> Array:
    return _idct(jnp.take(values, position, axis=-1, mode="fill", fill_value=0))


def _take(rows: Array, indices: Array) -> Array:
    return jnp.take(rows, indices, axis=-1)


#: The orthonormal DCT-II of every row ``(..., n)``.
dct_rows = _by_rows(_dct, _jax_blocks.dct, "... n -> ... n")
#: The inverse of :data:`dct_rows`.
idct_rows = _by_rows(_idct, _jax_blocks.idct, "... n -> ... n")
#: :data:`idct_rows` of coefficients at positions ``(n,)`` among few ``(..., r)``, zero where there is no such position.
idct_columns_rows = _by_rows(_idct_columns, _jax_blocks.idct_columns, "... r, n -> ... n")
#: The columns ``(r,)`` of rows ``(..., n)``.
take_rows = _by_rows(_take, _jax_blocks.take, "... n, r -> ... r")
