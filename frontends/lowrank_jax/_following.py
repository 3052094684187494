"""State laid out as a file has it: a run goes on as it began, whatever the rule would make of its leaves today."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lowrank_core.layout import with_fitting_rank
from lowrank_jax._axes import layouts_of_leaves, path_of
from lowrank_jax._marks import ArrayMark, marks_of
from lowrank_jax._plans import Plan, plans_of
from lowrank_jax._precision import compute_dtype
from lowrank_jax._scale import ScaleByLowRankState
from lowrank_jax._trees import leaves_with_place

# How many examples a warning gives.
_EXAMPLES = 3
_NONE = optax.MaskedNode()
# JAX declares no types for it.
_shaped: Any = jax.ShapeDtypeStruct


def as_in_file(
    optimizer: optax.GradientTransformation,
    state: Any,
    params: Any,
    algorithms: Mapping[str, object],
) -> tuple[Any, list[str]]:
    """Return ``state`` with the shapes of what a file has for leaves that it steps otherwise, and their paths.

    Parameters
    ----------
    optimizer, state, params
        As in `load_state`.
    algorithms
        By path, the algorithm of the file.
    """
    held = {m.path for m, _ in marks_of(state) if isinstance(m, ArrayMark) and m.of_matrix}
    changed = _changed(plans_of(optimizer, params), params, algorithms, held)

    def relaid(node: Any) -> Any:
        if not isinstance(node, ScaleByLowRankState):
            return node
        own = {mark.path for mark, _ in marks_of(node) if isinstance(mark, ArrayMark)}
        here = {path: one for path, one in changed.items() if path in own}
        moments = {path: one.moment for path, one in here.items()}
        adam = {name: _replaced(getattr(node.adam, name), moments) for name in ("mu", "nu")}
        fields = {
            name: _replaced(tree, {path: one.fields.get(name, _NONE) for path, one in here.items()})
            for name, tree in node.matrices._asdict().items()
            if tree is not None
        }
        return ScaleByLowRankState(node.adam._replace(**adam), node.matrices._replace(**fields))

    if changed:
        state = jax.tree.map(
            relaid, state, is_leaf=lambda node: isinstance(node, ScaleByLowRankState)
        )
    return state, list(changed)


def warn_of_followed(paths: Sequence[str], algorithms: Mapping[str, object]) -> None:
    """Warn if leaves are stepped as in a file and not as the rule says."""
    if not paths:
        return
    named = ", ".join(f"{path!r} ({algorithms[path]})" for path in paths[:_EXAMPLES])
    warnings.warn(
        f"{len(paths)} leaves are stepped as in the file, not as matrix_axes says: {named}; the state has another "
        "structure than init makes, so save and load it by these functions, or state those leaves in matrix_axes",
        stacklevel=3,
    )


class _Entry(NamedTuple):
    """The shapes of the state of one leaf."""

    #: Of each of Adam's moments, `optax.MaskedNode` where it has none.
    moment: Any
    #: Of the fields of a matrix's state, by name.
    fields: Mapping[str, Any]


def _changed(
    plans: Mapping[str, Plan], params: Any, algorithms: Mapping[str, object], held: set[str]
) -> dict[str, _Entry]:
    """Return by path the state of leaves that a file steps otherwise than a state, where ``held`` are matrices."""
    layouts = layouts_of_leaves(params)
    leaves = {path: leaf for path, leaf, _ in leaves_with_place(params)}
    changed = {}
    for path, plan in plans.items():
        given, axes, wanted = plan.given_to, plan.axes or layouts[path], algorithms.get(path)
        shape, dtype = leaves[path].shape, compute_dtype(leaves[path].dtype)
        if wanted == "adamw" and path in held:
            changed[path] = _Entry(_shaped(shape, dtype), {})
        elif axes is not None and path not in held and wanted == given.rule.name:
            matrix = axes.matrix_shape(shape)
            spec = with_fitting_rank(given.config, matrix).state_spec(matrix, jnp.dtype(dtype).name)
            fields = {name: _shaped(array.shape, array.dtype) for name, array in spec.items()}
            changed[path] = _Entry(_NONE, fields)
    return changed


def _replaced(tree: Any, entries: Mapping[str, Any]) -> Any:
    """Return a tree of state with what ``entries`` has by path, in the place of arrays and of what masks them."""
    return jax.tree_util.tree_map_with_path(
        lambda keys, old: entries.get(path_of(keys), old),
        tree,
        is_leaf=lambda node: isinstance(node, optax.MaskedNode),
    )
