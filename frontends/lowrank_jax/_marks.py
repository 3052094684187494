"""Where in the state of an optimizer the arrays and step counts of each leaf stand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import optax

from lowrank_jax._axes import path_of
from lowrank_jax._scale import ScaleByLowRankState

# Adam's moments, by their names in a file.
_ADAM = {"first_moment": "mu", "second_moment": "nu"}


@dataclass(frozen=True)
class ArrayMark:
    """Stands in a state's tree for an array of the state of a leaf."""

    path: str
    name: str
    #: Whether it is of a leaf stepped as a matrix, not by Adam.
    of_matrix: bool = False


@dataclass(frozen=True)
class CountMark:
    """Stands in a state's tree for a step count: of the leaves with these paths, or of the whole run."""

    paths: tuple[str, ...] = ()


def marked(state: Any) -> Any:
    """Return ``state`` with an `ArrayMark` or a `CountMark` in the place of what files hold, and ``...`` elsewhere."""
    known = (
        ScaleByLowRankState,
        optax.ScaleByAdamState,
        optax.ScaleByScheduleState,
        optax.InjectStatefulHyperparamsState,
    )

    def arrays(tree: Any, name: str, of_matrix: bool = False) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda keys, _: ArrayMark(path_of(keys), name, of_matrix), tree
        )

    def adam(node: Any, beside: Any = ()) -> Any:
        moments = {field: arrays(getattr(node, field), name) for name, field in _ADAM.items()}
        paths = dict.fromkeys(array.path for array in jax.tree.leaves((beside, moments)))
        return node._replace(count=CountMark(tuple(paths)), **moments)

    def schedule(node: Any) -> Any:
        return node._replace(count=CountMark()) if hasattr(node, "count") else node

    def mark(node: Any) -> Any:
        if isinstance(node, ScaleByLowRankState):
            fields = node.matrices._asdict().items()
            own = {name: arrays(tree, name, True) for name, tree in fields if tree is not None}
            return ScaleByLowRankState(adam(node.adam, own), node.matrices._replace(**own))
        if isinstance(node, optax.ScaleByAdamState):
            return adam(node)
        if isinstance(node, optax.ScaleByScheduleState):
            return schedule(node)
        if isinstance(node, optax.InjectStatefulHyperparamsState):
            own = {name: schedule(one) for name, one in node.hyperparams_states.items()}
            kept = jax.tree.map(lambda _: ..., node.hyperparams)
            inner = marked(node.inner_state)
            return schedule(node)._replace(
                hyperparams=kept, hyperparams_states=own, inner_state=inner
            )
        return ...

    return jax.tree.map(mark, state, is_leaf=lambda node: isinstance(node, known))


def marks_of(state: Any) -> Iterator[tuple[Any, Any]]:
    """Yield mark and array of every leaf of a state."""
    if not any(map(_is_low_rank, jax.tree.leaves(state, is_leaf=_is_low_rank))):
        raise ValueError(
            "state must be of a low-rank transformation, got no ScaleByLowRankState in it"
        )
    yield from zip(jax.tree.leaves(marked(state)), jax.tree.leaves(state), strict=True)


def _is_low_rank(node: Any) -> bool:
    return isinstance(node, ScaleByLowRankState)
