"""What lets a step run under JAX's strict settings, and what is refused before it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from lowrank_jax._trees import path_of


def check_real(name: str, tree: Any) -> None:
    """Raise ``TypeError`` for a leaf of complex numbers, whose imaginary part would be dropped; it names the leaf."""
    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        dtype = getattr(leaf, "dtype", None)
        if dtype is not None and jnp.issubdtype(dtype, jnp.complexfloating):
            raise TypeError(
                f"{name} must hold real numbers, got {dtype} for {path_of(keys)!r}; step real and imaginary parts as "
                "leaves of their own, as optax.contrib.split_real_and_imaginary makes them"
            )


def with_implicit_ranks(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return ``inner`` run with implicit rank promotion, whatever ``jax_numpy_rank_promotion`` says outside of it.

    The core is written on the array API, which broadcasts arrays of unlike ranks.
    """

    def init(params: Any) -> Any:
        with jax.numpy_rank_promotion("allow"):
            return inner.init(params)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        with jax.numpy_rank_promotion("allow"):
            return inner.update(updates, state, params)

    return optax.GradientTransformation(init, update)
