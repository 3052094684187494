"""What both rules share: which leaves they step, the state of all, and the update of a tree."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lowrank_core import materialize
from lowrank_core.layout import is_low_rank, with_fitting_rank
from lowrank_core.ops.registry import ops_for_namespace
from lowrank_core.rules.reductions import run
from lowrank_core.rules.rule import Rule, bind
from lowrank_jax._axes import (
    AxesRule,
    ResolvedAxes,
    axes_of_leaves,
    check_axes,
    layouts_of_leaves,
)
from lowrank_jax._options import with_numbers_in
from lowrank_jax._placing import on_auto_axes, placed, replicated_like
from lowrank_jax._plans import note
from lowrank_jax._precision import compute_dtype, in_wide_precision
from lowrank_jax._strict import with_implicit_ranks


class ScaleByLowRankState(NamedTuple):
    """State of a low-rank transformation: a plain tree of arrays."""

    #: Adam's state of every leaf that is not stepped as a matrix; its ``count`` is the step count of all leaves.
    adam: optax.ScaleByAdamState
    #: The core's state of the matrices without a step count, each field a tree like that of the parameters with an
    #: array in the place of each matrix, or ``None`` where the options need none.
    matrices: Any


class Options(NamedTuple):
    """A rule of the core with its options."""

    rule: Rule
    config: Any
    #: Whether a rank that is not below the transformed size gives the leaf to Adam.
    needs_low_rank: bool


class _Matrix(NamedTuple):
    """One leaf that is stepped as a matrix."""

    path: str
    axes: ResolvedAxes
    shape: tuple[int, ...]
    config: Any


def scale_by_rule(
    options: Options, adam: optax.GradientTransformation, matrix_axes: AxesRule
) -> optax.GradientTransformationExtraArgs:
    """Return the transformation that steps matrices by a rule and all other leaves by ``adam``."""
    check_axes(matrix_axes)
    names = _state_names(options.config)
    rule = options.rule

    def init(params: Any) -> ScaleByLowRankState:
        leaves, treedef = jax.tree.flatten(params)
        rest, matrices = [], []
        plans = _matrices(params, options, matrix_axes)
        note(params, matrix_axes, plans, options)
        for leaf, matrix in zip(leaves, plans, strict=True):
            rest.append(optax.MaskedNode() if matrix else _zeros(leaf))
            matrices.append(_state(rule, matrix, leaf) if matrix else None)
        mu = jax.tree.unflatten(treedef, rest)
        count = replicated_like(jnp.zeros((), jnp.int32), leaves)
        # A copy, since two leaves of one buffer could not be donated.
        adam_state = optax.ScaleByAdamState(count, mu, jax.tree.map(jnp.copy, mu))
        return ScaleByLowRankState(adam_state, _by_field(rule, names, treedef, matrices))

    def update(
        updates: Any, state: ScaleByLowRankState, params: Any = None
    ) -> tuple[Any, ScaleByLowRankState]:
        del params
        treedef: Any
        leaves, treedef = jax.tree.flatten(updates)
        fields = {name: treedef.flatten_up_to(getattr(state.matrices, name)) for name in names}
        held = [not isinstance(one, optax.MaskedNode) for one in fields[names[0]]]
        plans = _matrices(updates, options, matrix_axes, held)
        masked = [optax.MaskedNode() if m else g for g, m in zip(leaves, plans, strict=True)]
        rest, adam_state = adam.update(jax.tree.unflatten(treedef, masked), state.adam)
        new, after = treedef.flatten_up_to(rest), [None] * len(leaves)
        for index, matrix in enumerate(plans):
            if matrix is not None:
                own = {name: fields[name][index] for name in names}
                before = rule.state(step=state.adam.count, **own)
                step = functools.partial(_step, rule, matrix)
                new[index], after[index] = on_auto_axes(step, leaves[index], before)
        matrices = _by_field(rule, names, treedef, after)
        return jax.tree.unflatten(treedef, new), ScaleByLowRankState(adam_state, matrices)

    return in_wide_precision(with_implicit_ranks(optax.GradientTransformation(init, update)))


def _state_names(config: Any) -> tuple[str, ...]:
    """Return the names of the arrays in the state of every matrix, whatever its shape."""
    size = 1 << (config.rank if isinstance(config.rank, int) else 1).bit_length()
    return tuple(config.state_spec((size, size)))


def _by_field(rule: Rule, names: Sequence[str], treedef: Any, states: Sequence[Any]) -> Any:
    """Return one state whose fields are trees of parameters, from one state for each leaf or ``None``."""
    trees = {
        name: jax.tree.unflatten(
            treedef, [optax.MaskedNode() if s is None else getattr(s, name) for s in states]
        )
        for name in names
    }
    return rule.state(**{**dict.fromkeys(rule.state._fields), **trees})


def _matrices(
    tree: Any, options: Options, matrix_axes: AxesRule, held: Sequence[bool] | None = None
) -> list[_Matrix | None]:
    """Return for every leaf how it is stepped as a matrix, or ``None``.

    ``held`` says of which leaves there is state as matrices. That of a file may differ from the rule: a run goes on as
    it began.
    """
    rows = axes_of_leaves(tree, matrix_axes)
    followed = held is not None and any(
        one and axes is None for one, (_, _, axes) in zip(held, rows, strict=True)
    )
    layouts = layouts_of_leaves(tree) if followed else {}
    found: list[_Matrix | None] = []
    for place, (path, leaf, axes) in enumerate(rows):
        is_matrix = axes is not None and _is_stepped(axes, leaf, options)
        if held is not None and held[place] != is_matrix:
            is_matrix = held[place]
            axes = axes or layouts.get(path)
        if not is_matrix or axes is None:
            found.append(None)
            continue
        shape = axes.matrix_shape(leaf.shape)
        config = with_fitting_rank(options.config, shape)
        try:
            config.layout(shape)
        except ValueError as error:
            raise ValueError(f"{path!r} cannot be stepped as a matrix: {error}") from error
        found.append(_Matrix(path, axes, shape, config))
    return found


def _is_stepped(axes: ResolvedAxes, leaf: Any, options: Options) -> bool:
    """Return whether a matrix is stepped as one: its rank is low, or need not be."""
    config = options.config
    shape = axes.matrix_shape(leaf.shape)
    low_rank = is_low_rank(shape, rank=config.rank, side=config.side)
    return low_rank or not (options.needs_low_rank or 0 in shape)


def _zeros(leaf: Any) -> jax.Array:
    return jnp.zeros_like(leaf, dtype=compute_dtype(leaf.dtype))


def _state(rule: Rule, matrix: _Matrix, leaf: Any) -> Any:
    # By path, so that a matrix draws the same numbers however the tree is partitioned.
    place = {"stream": zlib.crc32(matrix.path.encode())} if rule.uses_rng else {}
    dtype = compute_dtype(leaf.dtype)
    state = rule.init(matrix.shape, matrix.config, xp=jnp, dtype=dtype, **place)
    return placed(state._replace(step=None), leaf, matrix.axes, matrix.shape)


def _step(rule: Rule, matrix: _Matrix, gradient: jax.Array, state: Any) -> tuple[jax.Array, Any]:
    config = with_numbers_in(matrix.config, gradient.dtype)
    ops = ops_for_namespace(jnp)
    weight = matrix.axes.to_matrix(gradient)
    bound = bind(config, matrix.shape, ops, ops.device_of(weight))

    def step(due: Any) -> Any:
        return run(rule.steps(weight, state, bound, due))

    due = rule.due(state, bound)
    if due is True:
        update, after = step(True)
    else:
        update, after = ops.cond(jnp.any(due), lambda: step(due), lambda: step(False))
    full: Any = materialize(update, ops=ops)
    return matrix.axes.from_matrix(full, gradient.shape), after
