"""The state of an optimizer in one file, to go on from in another framework."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lowrank_core.portable import (
    Names,
    Saved,
    Stepped,
    file_names,
    needing_safetensors,
    read,
    stepped_by_adamw,
    stepped_by_rule,
    write,
)
from lowrank_jax._axes import (
    AxesRule,
    MatrixAxes,
    ResolvedAxes,
    axes_of_leaves,
    path_of,
    resolve_axes,
)
from lowrank_jax._plans import Plan, plans_of
from lowrank_jax._precision import compute_dtype
from lowrank_jax._scale import ScaleByLowRankState

# Names that Flax gives to what PyTorch calls a weight.
_WEIGHTS = {"kernel", "embedding", "scale"}
# Adam's moments, by their names in a file.
_ADAM = {"first_moment": "mu", "second_moment": "nu"}


def save_state(
    path: str | os.PathLike[str],
    optimizer: optax.GradientTransformation,
    state: Any,
    params: Any,
    *,
    names: Names = None,
    axes: AxesRule = None,
) -> None:
    """Write optimizer state to a file that `lowrank_torch` and this package go on from.

    In it is the state of every leaf that a low-rank transformation or `optax.scale_by_adam` steps, wherever in
    ``optimizer`` it stands, and no other state: that of schedules is the step count, and is set from it.

    Parameters
    ----------
    path
        The file, in the safetensors format; one that is there is replaced at the end, as a whole.
    optimizer
        The transformation that ``state`` is of.
    state
        Its state, not traced.
    params
        The parameters, or anything of their structure, shapes and dtypes.
    names
        What a leaf is called in the file: a function of its path (names joined by ``/``), or a mapping of the paths of
        leaves that are called otherwise than by default. That is the path joined by dots, without a leading
        ``params``, in which a last ``kernel``, ``embedding`` or ``scale`` is ``weight``.
    axes
        Of leaves that Adam steps: which axes are the outputs and the inputs, as `scale_by_dct_adam` takes it for
        matrices. In the file, as in PyTorch, outputs come first. By default what ``matrix_axes`` says of such a leaf,
        else ``(inputs, outputs)`` for a two-dimensional ``kernel``; any other is taken as it is.

    Raises
    ------
    ImportError
        If safetensors is not installed.
    TypeError, ValueError
        If ``names`` or ``axes`` do not fit, or ``state`` is not one of ``optimizer``; nothing has been written then.
    """
    with needing_safetensors():
        from safetensors.flax import save_file
    rows = _rows(optimizer, state, params, names, axes)
    stepped = [row.stepped for row in rows]
    write(path, list(zip(stepped, _saved(state, rows), strict=True)), save_file)


def load_state(
    path: str | os.PathLike[str],
    optimizer: optax.GradientTransformation,
    state: Any,
    params: Any,
    *,
    names: Names = None,
    axes: AxesRule = None,
) -> Any:
    """Return optimizer state that goes on from a file of `lowrank_torch` or of `save_state`.

    Rates and other numbers are those of ``optimizer``, and may be others than before. The counts of
    `optax.scale_by_schedule` and `optax.inject_hyperparams`, by which learning-rate schedules go, are set to the step
    count of the file; every other state stays as it is in ``state``.

    Parameters
    ----------
    path
        The file.
    optimizer, params, names, axes
        As in `save_state`.
    state
        State of ``optimizer``, whose arrays are not read: what its ``init`` returns, or the shapes of that. Arrays are
        placed as those in it are.

    Raises
    ------
    FileNotFoundError
        If there is no file.
    ImportError
        If safetensors is not installed.
    TypeError, ValueError
        If ``names`` or ``axes`` do not fit, or the file is damaged, or of another version, model or way to step it;
        the message names the first difference.
    """
    with needing_safetensors():
        import safetensors.flax
    rows = _rows(optimizer, state, params, names, axes)
    saved = read(path, [row.stepped for row in rows], safetensors, "flax")
    return _restored(state, {row.path: (row, saved[row.stepped.name]) for row in rows})


class _Row(NamedTuple):
    """One leaf that has state."""

    path: str
    shape: tuple[int, ...]
    stepped: Stepped
    #: Of a leaf that Adam steps, the axes of the outputs and inputs; the core has state as it is in a file already.
    axes: ResolvedAxes | None

    def to_file(self, array: jax.Array) -> jax.Array:
        """Return an array of the leaf's state as it is in a file."""
        if self.stepped.rule["algorithm"] != "adamw":
            return array
        moved = array if self.axes is None else self.axes.to_matrix(array)
        return moved.reshape(self.stepped.shapes[0])

    def from_file(self, array: jax.Array) -> jax.Array:
        """Return an array of a file as it is in the leaf's state."""
        if self.stepped.rule["algorithm"] != "adamw":
            return array
        if self.axes is None:
            return array.reshape(self.shape)
        return self.axes.from_matrix(array, self.shape)


@dataclass(frozen=True)
class _Array:
    """Stands in a state's tree for an array of the state of a leaf."""

    path: str
    name: str


@dataclass(frozen=True)
class _Count:
    """Stands in a state's tree for a step count: of the leaves with these paths, or of the whole run."""

    paths: tuple[str, ...] = ()


def _marked(state: Any) -> Any:
    """Return ``state`` with an `_Array` or a `_Count` in the place of what files hold, and ``...`` elsewhere."""
    known = (
        ScaleByLowRankState,
        optax.ScaleByAdamState,
        optax.ScaleByScheduleState,
        optax.InjectStatefulHyperparamsState,
    )

    def arrays(tree: Any, name: str) -> Any:
        return jax.tree_util.tree_map_with_path(lambda keys, _: _Array(path_of(keys), name), tree)

    def adam(node: Any, beside: Any = ()) -> Any:
        moments = {field: arrays(getattr(node, field), name) for name, field in _ADAM.items()}
        paths = dict.fromkeys(array.path for array in jax.tree.leaves((beside, moments)))
        return node._replace(count=_Count(tuple(paths)), **moments)

    def schedule(node: Any) -> Any:
        return node._replace(count=_Count()) if hasattr(node, "count") else node

    def mark(node: Any) -> Any:
        if isinstance(node, ScaleByLowRankState):
            fields = node.matrices._asdict().items()
            own = {name: arrays(tree, name) for name, tree in fields if tree is not None}
            return ScaleByLowRankState(adam(node.adam, own), node.matrices._replace(**own))
        if isinstance(node, optax.ScaleByAdamState):
            return adam(node)
        if isinstance(node, optax.ScaleByScheduleState):
            return schedule(node)
        if isinstance(node, optax.InjectStatefulHyperparamsState):
            own = {name: schedule(one) for name, one in node.hyperparams_states.items()}
            kept = jax.tree.map(lambda _: ..., node.hyperparams)
            inner = _marked(node.inner_state)
            return schedule(node)._replace(
                hyperparams=kept, hyperparams_states=own, inner_state=inner
            )
        return ...

    return jax.tree.map(mark, state, is_leaf=lambda node: isinstance(node, known))


def _marks(state: Any) -> Iterator[tuple[Any, Any]]:
    """Yield mark and array of every leaf of a state."""
    if not any(map(_is_low_rank, jax.tree.leaves(state, is_leaf=_is_low_rank))):
        raise ValueError(
            "state must be of a low-rank transformation, got no ScaleByLowRankState in it"
        )
    yield from zip(jax.tree.leaves(_marked(state)), jax.tree.leaves(state), strict=True)


def _is_low_rank(node: Any) -> bool:
    return isinstance(node, ScaleByLowRankState)


def _rows(
    optimizer: optax.GradientTransformation, state: Any, params: Any, names: Names, rule: AxesRule
) -> list[_Row]:
    """Return every leaf of ``params`` that has state, in their order."""
    plans = plans_of(optimizer, params)
    dtypes: dict[str, str] = {}
    counted: set[str] = set()
    for mark, array in _marks(state):
        if isinstance(mark, _Array):
            dtypes[mark.path] = jnp.dtype(array.dtype).name
        elif isinstance(mark, _Count):
            for path in mark.paths:
                if path in counted:
                    raise ValueError(
                        f"optimizer must have one state for every leaf, got two of {path!r}"
                    )
                counted.add(path)
    stated = axes_of_leaves(params, (lambda *_: None) if rule is None else rule)
    leaves = [row for row in stated if row[0] in counted]
    called = file_names([path for path, *_ in leaves], names, _name_of)
    rows = []
    for name, (path, leaf, axes) in zip(called, leaves, strict=True):
        plan, shape = plans.get(path, Plan(None, None)), tuple(leaf.shape)
        if plan.config is not None and plan.axes is not None:
            dtype = jnp.dtype(compute_dtype(leaf.dtype)).name
            stepped = stepped_by_rule(name, plan.config, [plan.axes.matrix_shape(shape)], dtype)
        else:
            axes = axes or plan.axes or _of_kernel(path, shape)
            outputs_first = shape if axes is None else axes.matrix_shape(shape)
            stepped = stepped_by_adamw(name, outputs_first, dtypes[path])
        rows.append(_Row(path, shape, stepped, axes))
    if len(rows) < len(counted):
        (path, *_) = sorted(counted - {row.path for row in rows})
        raise ValueError(f"params must have every leaf that state is of, got none called {path!r}")
    return rows


def _saved(state: Any, rows: list[_Row]) -> list[Saved]:
    """Return the state of every row as it is in a file."""
    counts: dict[str, int] = {}
    arrays: dict[str, dict[str, jax.Array]] = {row.path: {} for row in rows}
    by_path = {row.path: row for row in rows}
    for mark, array in _marks(state):
        if isinstance(mark, _Array):
            arrays[mark.path][mark.name] = by_path[mark.path].to_file(array)
        elif isinstance(mark, _Count):
            counts |= dict.fromkeys(mark.paths, int(array))
    return [Saved(counts[row.path], arrays[row.path]) for row in rows]


def _restored(state: Any, found: Mapping[str, tuple[_Row, Saved]]) -> Any:
    """Return ``state`` with the arrays and the step counts of a file."""
    whole = max(saved.step for _, saved in found.values())

    def count(paths: tuple[str, ...]) -> int:
        steps = {found[path][1].step: path for path in reversed(paths)}
        if len(steps) > 1:
            (one, first), (other, second) = list(steps.items())[:2]
            raise ValueError(
                f"path must have one step count for all leaves that JAX steps together, got {one} for {first!r} and "
                f"{other} for {second!r}"
            )
        return next(iter(steps), whole)

    def new(mark: Any, old: Any) -> Any:
        if isinstance(mark, _Count):
            value = jnp.asarray(count(mark.paths), dtype=old.dtype)
        elif isinstance(mark, _Array):
            row, saved = found[mark.path]
            if mark.name not in saved.arrays:
                raise ValueError(
                    f"path must have a state of every leaf, got none of {mark.path!r}, which had not been stepped"
                )
            value = row.from_file(saved.arrays[mark.name])
        else:
            return old
        return jax.device_put(value, getattr(old, "sharding", None))

    leaves = [new(mark, old) for mark, old in _marks(state)]
    return jax.tree.unflatten(jax.tree.structure(state), leaves)


def _name_of(path: str) -> str:
    """Return what PyTorch calls a parameter."""
    names = path.split("/")
    if names[0] == "params":
        names = names[1:] or names
    if names[-1] in _WEIGHTS:
        names[-1] = "weight"
    return ".".join(names)


def _of_kernel(path: str, shape: tuple[int, ...]) -> ResolvedAxes | None:
    """Return the axes of a Flax kernel, which has its inputs first."""
    if len(shape) != 2 or path.rpartition("/")[2] != "kernel":
        return None
    return resolve_axes(MatrixAxes(outputs=1, inputs=0), shape, path)
