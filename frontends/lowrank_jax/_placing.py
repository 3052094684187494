"""Optimizer state where its parameter is: sharded along the dimensions they share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
from jax.sharding import AxisType, NamedSharding

from lowrank_jax._axes import ResolvedAxes

T = TypeVar("T")

# Fields of a state that have two dimensions beside the stacking ones, but not those of the parameter.
_OF_OWN_SHAPE = {"vectors"}


def sharding_of(leaf: Any) -> NamedSharding | None:
    """Return how ``leaf`` is sharded over a mesh; ``None`` where it is not, or where only the compiler knows."""
    if not isinstance(leaf, jax.Array) or isinstance(leaf, jax.core.Tracer):
        return None
    return leaf.sharding if isinstance(leaf.sharding, NamedSharding) else None


def placed(state: Any, leaf: Any, axes: ResolvedAxes, shape: Sequence[int]) -> Any:
    """Return ``state`` of the matrices ``shape`` of ``leaf``, each array sharded as the leaf is.

    A dimension that an array shares with the parameter is sharded alike, by its first axis where several are flattened
    into one; everything else is replicated over the mesh.
    """
    sharding = sharding_of(leaf)
    if sharding is None:
        return state
    spec: Any = sharding.spec
    names = (*spec, *(None,) * leaf.ndim)
    along = [names[axis] for axis in (*axes.batch, axes.outputs[0], axes.inputs[0])]

    def place(name: str, array: jax.Array) -> jax.Array:
        own = array.ndim < len(shape) or name in _OF_OWN_SHAPE
        shared = len(axes.batch) if own else len(shape)
        wanted = [
            along[place] if length == shape[place] else None
            for place, length in enumerate(array.shape[:shared])
        ]
        return jax.device_put(array, NamedSharding(sharding.mesh, type(spec)(*wanted)))

    arrays = {name: array for name, array in state._asdict().items() if array is not None}
    return state._replace(**{name: place(name, array) for name, array in arrays.items()})


def replicated_like(array: jax.Array, leaves: Sequence[Any]) -> jax.Array:
    """Return ``array`` on every device of the mesh that some of ``leaves`` are sharded over, if there is one."""
    for sharding in map(sharding_of, leaves):
        if sharding is not None:
            spec: Any = type(sharding.spec)
            return jax.device_put(array, NamedSharding(sharding.mesh, spec()))
    return array


def on_auto_axes(step: Callable[[Any, T], tuple[Any, T]], gradient: Any, state: T) -> tuple[Any, T]:
    """Return ``step(gradient, state)``, an update and the next state, each sharded as what it is made from.

    Over a mesh whose axes are explicit (what `jax.make_mesh` gives by default) the type of every array says how it is
    sharded, and JAX asks for the sharding of each result that it cannot derive: products over a sharded dimension,
    FFTs, decompositions. Of a step only the ends are known. So inside of it the axes are automatic, as they are under
    a mesh of automatic axes, and the ends are stated.
    """
    mesh = _explicit_mesh(gradient)
    if mesh is None:
        return step(gradient, state)

    def stated(array: Any) -> NamedSharding:
        sharding = jax.typeof(array).sharding
        return NamedSharding(
            mesh, sharding.spec if sharding.mesh == mesh else type(sharding.spec)()
        )

    ends = jax.tree.map(stated, (gradient, state))
    with jax.sharding.use_abstract_mesh(mesh):
        result: tuple[Any, T] = jax.sharding.auto_axes(step, out_sharding=ends)(gradient, state)
    return result


def _explicit_mesh(array: Any) -> Any:
    """Return the abstract mesh that an array's type has axes of, ``None`` where it has none."""
    # Before JAX 0.7 explicit axes were an experiment, by other names.
    if not (hasattr(jax, "typeof") and hasattr(jax.sharding, "auto_axes")):
        return None
    mesh = jax.typeof(array).sharding.mesh
    return mesh if AxisType.Explicit in mesh.axis_types else None
