"""Updates that hold NaN or infinity: stepped on like others, or a step is skipped for them, or they are an error."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from lowrank_core._checks import check_choice
from lowrank_core.rules.options import NONFINITE
from lowrank_jax._trees import path_of

# Of steps in a row that `optax.apply_if_finite` skips before it lets one pass; its count stops here.
_ALWAYS = 2**31 - 1


def watched(
    inner: optax.GradientTransformationExtraArgs, nonfinite: str
) -> optax.GradientTransformationExtraArgs:
    """Return ``inner`` with its option ``nonfinite``.

    Raises
    ------
    ValueError
        If there is no such choice; by ``update`` with ``"raise"``, for an update that is not finite, or traced.
    """
    check_choice("nonfinite", nonfinite, NONFINITE)
    if nonfinite == "propagate":
        return inner
    if nonfinite == "skip":
        return optax.with_extra_args_support(optax.apply_if_finite(inner, _ALWAYS))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        _check_finite(updates)
        return inner.update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _check_finite(updates: Any) -> None:
    leaves = jax.tree_util.tree_flatten_with_path(updates)[0]
    for keys, leaf in leaves:
        if isinstance(leaf, jax.core.Tracer):
            raise ValueError(
                "nonfinite must be 'propagate' or 'skip' where steps are traced, as by jax.jit, and cannot raise, got "
                "'raise'; 'skip' counts in its state (see optax.apply_if_finite), and jax_debug_nans raises"
            )
        if not bool(jnp.all(jnp.isfinite(leaf))):
            raise ValueError(
                f"the update of {path_of(keys)!r} must be finite with nonfinite='raise', got NaN or infinity"
            )
