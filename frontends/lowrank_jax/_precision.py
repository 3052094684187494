"""Arithmetic in float32 at least, whatever the dtype of gradients and parameters."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from lowrank_jax._strict import check_real


def compute_dtype(dtype: Any) -> Any:
    """Return the dtype to compute in: float64 for float64, float32 for anything narrower."""
    return jnp.float64 if dtype == jnp.float64 else jnp.float32


def widened(tree: Any) -> Any:
    """Return ``tree`` with every leaf in the dtype to compute in."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype=compute_dtype(leaf.dtype)), tree)


def in_wide_precision(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Return ``inner`` run on widened gradients and parameters, its result rounded once to the gradients' dtypes.

    In bfloat16 a weight decay below a 256th of the update it is added to would be lost before it reached the parameter.

    Raises
    ------
    TypeError
        By ``init`` and ``update``, for a leaf of complex numbers.
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: Any) -> Any:
        check_real("params", params)
        return inner.init(params)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        check_real("updates", updates)
        wide = None if params is None else widened(params)
        new, state = inner.update(widened(updates), state, wide, **extra)
        return jax.tree.map(lambda u, gradient: u.astype(gradient.dtype), new, updates), state

    return optax.GradientTransformationExtraArgs(init, update)
