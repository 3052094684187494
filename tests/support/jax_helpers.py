"""What the tests of the JAX frontend share: seeded trees, runs, comparisons bit for bit, every transformation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import lowrank_jax
import numpy as np
import optax
from helpers import assert_identical, from_numpy, normal
from jax import numpy as jnp

#: Optimizers by name, each made with a few options that make a difference.
OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "dct_adamw": lowrank_jax.dct_adamw,
    "trion": lowrank_jax.trion,
}
SCALERS: dict[str, Callable[..., Any]] = {
    "scale_by_dct_adam": lowrank_jax.scale_by_dct_adam,
    "scale_by_trion": lowrank_jax.scale_by_trion,
}
RATE, RANK = 0.05, 3

#: A tree with everything in it: a kernel, a stack of kernels, an embedding, a vector.
SHAPES = {
    "embed": {"embedding": (14, 8)},
    "layer": {"kernel": (8, 12), "bias": (12,)},
    "scanned": {"kernel": (2, 9, 6)},
}
AXES = {
    "embed": None,
    "layer": {"kernel": lowrank_jax.MatrixAxes(1, 0), "bias": None},
    # What stands at a node holds for all leaves below it.
    "scanned": lowrank_jax.MatrixAxes(outputs=-1, inputs=-2),
}
MATRICES = ("layer/kernel", "scanned/kernel")


def tree(seed: int = 0, dtype: str = "float32", shapes: Any = None) -> Any:
    """A tree of seeded numbers."""
    shapes = SHAPES if shapes is None else shapes
    return jax.tree.map(
        lambda shape: from_numpy(normal(*shape, seed=seed), jnp, dtype),
        shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def gradients(params: Any, step: int) -> Any:
    return jax.tree.map(
        lambda p: from_numpy(normal(*p.shape, seed=1000 + step), jnp, str(p.dtype)), params
    )


def make(name: str, **options: Any) -> Any:
    return OPTIMIZERS[name](
        RATE if "learning_rate" not in options else options.pop("learning_rate"),
        **{"rank": RANK, "matrix_axes": AXES, **options},
    )


@functools.lru_cache(maxsize=8)
def compiled_step(optimizer: Any) -> Any:
    """One step under ``jit``, compiled once for each optimizer object."""

    @jax.jit
    def step(params: Any, state: Any, gradient: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    return step


def train(
    optimizer: Any, params: Any, steps: int, *, state: Any = None, start: int = 0
) -> tuple[Any, Any]:
    """Do steps ``start .. start + steps - 1`` on seeded gradients and return parameters and state."""
    state = optimizer.init(params) if state is None else state
    for index in range(start, start + steps):
        params, state = compiled_step(optimizer)(params, state, gradients(params, index))
    return params, state


def assert_same_bits(found: Any, wanted: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert_identical(one, other)


def assert_moved(found: Any, start: Any) -> None:
    """Assert that every leaf has changed and is finite."""
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(start), strict=True):
        assert not np.array_equal(np.asarray(one), np.asarray(other))
        assert bool(jnp.all(jnp.isfinite(one)))


class Counted:
    """A function under ``jax.jit`` that counts how often it is traced."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.traces = 0

        def counted(*arguments: Any) -> Any:
            self.traces += 1
            return function(*arguments)

        self.compiled = jax.jit(counted)

    def __call__(self, *arguments: Any) -> Any:
        return self.compiled(*arguments)

    def check_once(self) -> None:
        assert self.traces == 1
        assert self.compiled._cache_size() == 1
