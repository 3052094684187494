"""The state of an optimizer in one file, to go on from in another framework."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lowrank_core._files import needing_safetensors
from lowrank_core.rules.portable import (
    Names,
    Saved,
    Stepped,
    algorithms_in,
    file_names,
    read,
    stepped_by_adamw,
    stepped_by_rule,
    write,
)
from lowrank_jax._axes import (
    AxesRule,
    ResolvedAxes,
    axes_of_leaves,
    layouts_of_leaves,
)
from lowrank_jax._following import as_in_file, warn_of_followed
from lowrank_jax._marks import ArrayMark, CountMark, marks_of
from lowrank_jax._plans import Plan, plans_of
from lowrank_jax._precision import compute_dtype
from lowrank_jax._trees import leaves_with_place

# Names that Flax gives to what PyTorch calls a weight.
_WEIGHTS = {"kernel", "embedding", "scale"}


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
        else what `axes_by_name` would make of it were it a hidden matrix; a table or a vector is taken as it is.

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

    A run goes on as it began: a leaf that the file has as a matrix and ``matrix_axes`` gives to Adam, or the other way
    about, is stepped from here on as in the file, because its state is of that kind. The state then has another
    structure than ``init`` makes.

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

    Warns
    -----
    UserWarning
        If leaves are stepped as in the file and not as ``matrix_axes`` says.
    """
    with needing_safetensors():
        import safetensors.flax
    in_file = _by_path(state, params, names, algorithms_in(path, safetensors, "flax"))
    state, followed = as_in_file(optimizer, state, params, in_file)
    rows = _rows(optimizer, state, params, names, axes)
    saved = read(path, [row.stepped for row in rows], safetensors, "flax")
    warn_of_followed(followed, in_file)
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


def _rows(
    optimizer: optax.GradientTransformation, state: Any, params: Any, names: Names, rule: AxesRule
) -> list[_Row]:
    """Return every leaf of ``params`` that has state, in their order."""
    plans = plans_of(optimizer, params)
    dtypes: dict[str, str] = {}
    counted: set[str] = set()
    held: set[str] = set()
    for mark, array in marks_of(state):
        if isinstance(mark, ArrayMark):
            dtypes[mark.path] = jnp.dtype(array.dtype).name
            if mark.of_matrix:
                held.add(mark.path)
        elif isinstance(mark, CountMark):
            for path in mark.paths:
                if path in counted:
                    raise ValueError(
                        f"optimizer must have one state for every leaf, got two of {path!r}"
                    )
                counted.add(path)
    stated = axes_of_leaves(params, (lambda *_: None) if rule is None else rule)
    leaves = [row for row in stated if row[0] in counted]
    called = file_names([path for path, *_ in leaves], names, _name_of)
    layouts = layouts_of_leaves(params)
    rows = []
    for name, (path, leaf, axes) in zip(called, leaves, strict=True):
        plan, shape = plans.get(path, Plan(None, None)), tuple(leaf.shape)
        lies = plan.axes or layouts[path]
        if path in held and lies is not None:
            dtype = jnp.dtype(compute_dtype(leaf.dtype)).name
            rule, config, _ = plan.given_to
            shapes = [lies.matrix_shape(shape)]
            stepped = stepped_by_rule(name, rule, config, shapes, dtype)
        else:
            axes = axes or lies
            outputs_first = shape if axes is None else axes.matrix_shape(shape)
            stepped = stepped_by_adamw(name, outputs_first, dtypes[path])
        rows.append(_Row(path, shape, stepped, axes))
    if len(rows) < len(counted):
        (path, *_) = sorted(counted - {row.path for row in rows})
        raise ValueError(f"params must have every leaf that state is of, got none called {path!r}")
    return rows


def _by_path(
    state: Any, params: Any, names: Names, algorithms: Mapping[str, object]
) -> dict[str, object]:
    """Return the algorithms of a file by the paths of the leaves that there is state of."""
    stepped = {mark.path for mark, _ in marks_of(state) if isinstance(mark, ArrayMark)}
    paths = [path for path, *_ in leaves_with_place(params) if path in stepped]
    called = zip(paths, file_names(paths, names, _name_of), strict=True)
    return {path: algorithms[name] for path, name in called if name in algorithms}


def _saved(state: Any, rows: list[_Row]) -> list[Saved]:
    """Return the state of every row as it is in a file."""
    counts: dict[str, int] = {}
    arrays: dict[str, dict[str, jax.Array]] = {row.path: {} for row in rows}
    by_path = {row.path: row for row in rows}
    for mark, array in marks_of(state):
        if isinstance(mark, ArrayMark):
            arrays[mark.path][mark.name] = by_path[mark.path].to_file(array)
        elif isinstance(mark, CountMark):
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
        if isinstance(mark, CountMark):
            steps, most = count(mark.paths), 2 ** (8 * old.dtype.itemsize - 1) - 1
            if steps > most:
                raise ValueError(f"path must have a step count of at most {most}, got {steps}")
            value = jnp.asarray(steps, dtype=old.dtype)
        elif isinstance(mark, ArrayMark):
            row, saved = found[mark.path]
            if mark.name not in saved.arrays:
                raise ValueError(
                    f"path must have a state of every leaf, got none of {mark.path!r}, which had not been stepped"
                )
            value = row.from_file(saved.arrays[mark.name])
        else:
            return old
        return jax.device_put(value, getattr(old, "sharding", None))

    leaves = [new(mark, old) for mark, old in marks_of(state)]
    return jax.tree.unflatten(jax.tree.structure(state), leaves)


def _name_of(path: str) -> str:
    """Return what PyTorch calls a parameter."""
    names = path.split("/")
    if names[0] == "params":
        names = names[1:] or names
    if names[-1] in _WEIGHTS:
        names[-1] = "weight"
    return ".".join(names)
