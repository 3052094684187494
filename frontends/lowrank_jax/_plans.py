"""What an optimizer makes of parameters: noted as it makes their state, wherever in a chain a rule stands."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import optax

from lowrank_jax._axes import ResolvedAxes


class Plan(NamedTuple):
    """How a low-rank transformation steps one leaf."""

    #: The axes that make a matrix of it, ``None`` for a leaf that is said to be none.
    axes: ResolvedAxes | None
    #: The rule that steps it with its options, ``None`` where Adam does.
    options: Any


_noted: ContextVar[dict[str, Plan] | None] = ContextVar("noted", default=None)


def note(
    rows: Sequence[tuple[str, Any, ResolvedAxes | None]], matrices: Sequence[Any], options: Any
) -> None:
    """Note path, leaf and axes of every leaf of a tree, the ones among ``matrices`` being stepped by ``options``."""
    noted = _noted.get()
    if noted is not None:
        for (path, _, axes), matrix in zip(rows, matrices, strict=True):
            noted[path] = Plan(axes, options if matrix else None)


def plans_of(optimizer: optax.GradientTransformation, params: Any) -> dict[str, Plan]:
    """Return by path how the low-rank transformations in ``optimizer`` step ``params``; no array is made."""
    plans: dict[str, Plan] = {}

    # JAX would remember the result of a function that it has seen, and not call it.
    def init(tree: Any) -> Any:
        return optimizer.init(tree)

    token = _noted.set(plans)
    try:
        jax.eval_shape(init, params)
    finally:
        _noted.reset(token)
    return plans
