"""What an optimizer makes of parameters: noted as it makes their state, wherever in a chain a rule stands."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import optax

from lowrank_jax._axes import AxesRule, ResolvedAxes, axes_of_leaves, resolve_axes
from lowrank_jax._rules import Leaf, axes_by_name, decide, in_layer, names_of
from lowrank_jax._trees import leaves_with_place

# A matrix of this many rows, so much longer than wide and in no layer, is likely to be a table or a head.
_MANY_WORDS, _WORDS_A_FEATURE = 1000, 8
# Numbers of a model below which there is little to save, and nothing to warn of.
_LEAST_NUMBERS = 2**20
# How many examples a warning gives.
_EXAMPLES = 3


class Plan(NamedTuple):
    """How a low-rank transformation steps one leaf."""

    #: The axes that make a matrix of it, ``None`` for a leaf that is said to be none.
    axes: ResolvedAxes | None
    #: The rule that steps it with its options, ``None`` where Adam does.
    options: Any
    #: Why, in words.
    reason: str = ""
    #: Whether it has the shape and the place of a vocabulary's table or of an output head.
    like_vocabulary: bool = False
    #: The options of the transformation that it is given to, whoever steps it there.
    given_to: Any = None


_noted: ContextVar[dict[str, Plan] | None] = ContextVar("noted", default=None)


def note(params: Any, matrix_axes: AxesRule, matrices: Sequence[Any], options: Any) -> None:
    """Note how every leaf of ``params`` is stepped, the ones among ``matrices`` by ``options``, the others by Adam.

    Where nobody takes notes, warn of what looks wrong, unless ``matrix_axes`` states it leaf by leaf.
    """
    noted = _noted.get()
    if noted is None and not callable(matrix_axes):
        return
    plans = {}
    places = {path: place for path, _, place in leaves_with_place(params)}
    for (path, _, axes), matrix in zip(axes_of_leaves(params, matrix_axes), matrices, strict=True):
        place = places[path]
        reason = _reason(path, place, axes, matrix_axes)
        if axes is not None and not matrix:
            reason = f"rank {options.config.rank} is not below the transformed size"
        like = axes is not None and _like_vocabulary(path, place, axes)
        plans[path] = Plan(axes, options if matrix else None, reason, like, options)
    if noted is not None:
        noted.update(plans)
        return
    warn_of((path, places[path].size, plan) for path, plan in plans.items())


def warn_of(stepped: Iterable[tuple[str, int, Plan]]) -> None:
    """Warn where most numbers are stepped by plain Adam, or a matrix of the shape of a vocabulary is not.

    ``stepped`` has path, number of numbers and plan of every leaf.
    """
    rows = list(stepped)
    total = sum(size for _, size, _ in rows)
    plain = [(size, path, plan.reason) for path, size, plan in rows if plan.options is None]
    whole = sum(size for size, *_ in plain)
    hint = "lowrank_jax.summary(optimizer, params) lists all leaves, and matrix_axes says otherwise"
    if 2 * whole > total >= _LEAST_NUMBERS:
        largest = sorted(plain, key=lambda row: -row[0])[:_EXAMPLES]
        named = ", ".join(f"{path!r} ({reason})" for _, path, reason in largest)
        warnings.warn(
            f"plain Adam steps most of the parameters, {whole:,} of {total:,} numbers, such as {named}; {hint}",
            stacklevel=2,
        )
    tables = [path for path, _, plan in rows if plan.like_vocabulary and plan.options is not None]
    if tables:
        named = ", ".join(map(repr, tables[:_EXAMPLES]))
        warnings.warn(
            f"stepped as hidden matrices, but of the shape of a vocabulary's table or head: {named}; Adam is better "
            f"for those; {hint}",
            stacklevel=2,
        )


def plans_of(optimizer: optax.GradientTransformation, params: Any) -> dict[str, Plan]:
    """Return by path how the low-rank transformations in ``optimizer`` step ``params``; no array is made."""
    return plans_and_state(optimizer, params)[0]


def plans_and_state(
    optimizer: optax.GradientTransformation, params: Any
) -> tuple[dict[str, Plan], Any]:
    """Return what `plans_of` does, and the shapes of the state of ``optimizer``; no array is made."""
    if not hasattr(optimizer, "init"):
        raise TypeError(
            f"optimizer must be an Optax transformation, got {type(optimizer).__name__}"
        )
    plans: dict[str, Plan] = {}

    # JAX would remember the result of a function that it has seen, and not call it.
    def init(tree: Any) -> Any:
        return optimizer.init(tree)

    token = _noted.set(plans)
    try:
        state = jax.eval_shape(init, params)
    finally:
        _noted.reset(token)
    return plans, state


def _reason(path: str, place: Leaf, axes: ResolvedAxes | None, rule: AxesRule) -> str:
    """Return the words of the rule that gave a leaf these axes."""
    if callable(rule):
        # A function of the user's that comes to what the rules say has most likely asked them.
        bound = {}
        if isinstance(rule, functools.partial) and rule.func is axes_by_name:
            bound = rule.keywords
        decision = decide(path, place, **bound)
        stated = None
        if decision.axes is not None:
            stated = resolve_axes(decision.axes, place.shape, path)
        if stated == axes:
            return decision.reason
    return "matrix_axes says so"


def _like_vocabulary(path: str, place: Leaf, axes: ResolvedAxes) -> bool:
    """Return whether a leaf in no layer is as long as a table of the tree, or many times longer than wide."""
    shorter, longer = sorted(axes.matrix_shape(place.shape)[-2:])
    if in_layer(names_of(path), place) or longer < _MANY_WORDS:
        return False
    return longer in place.vocabularies or longer >= _WORDS_A_FEATURE * shorter
