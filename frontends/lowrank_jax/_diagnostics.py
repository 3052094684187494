"""What a step did to each matrix of a tree."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lowrank_core.layout import with_fitting_rank
from lowrank_core.ops.registry import ops_for_namespace
from lowrank_core.rules.diagnostics import (
    MatrixDiagnostics,
    measure,
    observe,
    root_mean_square,
    rows_of,
)
from lowrank_core.rules.rule import bind
from lowrank_jax._marks import ArrayMark, CountMark, marks_of
from lowrank_jax._plans import Plan, plans_of
from lowrank_jax._trees import leaves_with_place


class Step(NamedTuple):
    """One step of an optimizer, ``updates, after = optimizer.update(gradients, before, params)``."""

    #: The gradients, a tree like that of the parameters.
    gradients: Any
    #: The state before the step.
    before: Any
    #: The parameters before the step.
    params: Any
    #: What was added to the parameters.
    updates: Any
    #: The state after the step.
    after: Any


def diagnostics(optimizer: optax.GradientTransformation, step: Step) -> list[MatrixDiagnostics]:
    """Return what one step did to each matrix that it stepped at low rank, in plain numbers.

    Outside of `jax.jit`, and every so many steps: it costs about as much as a step, and waits for the device. A step
    that nobody asks about costs nothing more.

    Parameters
    ----------
    optimizer
        A transformation of this package, or any chain, partition or wrapper with one in it.
    step
        The step; the state before it must not have been donated.

    Returns
    -------
    list of lowrank_core.MatrixDiagnostics
        In the order of the tree. ``update_rms`` is that of ``updates``.

    Raises
    ------
    TypeError, ValueError
        If ``step`` is no `Step`, or ``optimizer`` has no low-rank transformation in it.
    """
    if not isinstance(step, Step):
        raise TypeError(f"step must be a lowrank_jax.Step, got {type(step).__name__}")
    plans = plans_of(optimizer, step.params)
    if not any(plan.options is not None for plan in plans.values()):
        raise ValueError("optimizer must step a leaf of step.params at low rank, got none")
    before, after = _states_of(step.before), _states_of(step.after)
    trees = (step.params, step.gradients, step.updates)
    leaves = zip(*(jax.tree.leaves(tree) for tree in trees), strict=True)
    rows = []
    for (path, _, _), arrays in zip(leaves_with_place(step.params), leaves, strict=True):
        plan = plans.get(path)
        if plan is not None and plan.options is not None:
            rows += _rows(path, plan, arrays, (before[path], after[path]))
    return rows


def _states_of(state: Any) -> dict[str, dict[str, Any]]:
    """Return by path the arrays of every leaf's state and its step count."""
    found: dict[str, dict[str, Any]] = {}
    for mark, array in marks_of(state):
        if isinstance(mark, ArrayMark):
            found.setdefault(mark.path, {})[mark.name] = array
        elif isinstance(mark, CountMark):
            for path in mark.paths:
                found.setdefault(path, {})["step"] = array
    return found


def _rows(path: str, plan: Plan, arrays: Any, states: Any) -> list[MatrixDiagnostics]:
    rule, axes = plan.options.rule, plan.axes
    if axes is None:
        return []
    params, gradient, moved = map(axes.to_matrix, arrays)
    config = with_fitting_rank(plan.options.config, gradient.shape)
    ops = ops_for_namespace(jnp)
    matrix = bind(config, gradient.shape, ops, ops.device_of(gradient))
    before, after = (rule.state(**own) for own in states)
    measures = measure(observe(gradient, before, matrix, rule), gradient, after, matrix)
    moved_rms, own_rms = (root_mean_square(x, matrix) for x in (moved, params))
    return rows_of(path, int(after.step), [(measures, moved_rms, own_rms)])
