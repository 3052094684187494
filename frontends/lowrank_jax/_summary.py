"""A table of what an optimizer does with each parameter."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import optax

from lowrank_core.layout import with_fitting_rank
from lowrank_jax._marks import ArrayMark, marks_of
from lowrank_jax._plans import Plan, plans_and_state, warn_of
from lowrank_jax._trees import leaves_with_place


class LeafSummary(NamedTuple):
    """How an optimizer steps one leaf of the parameters."""

    #: Names from the root of the tree to the leaf, joined by ``/``.
    path: str
    #: Shape of the leaf.
    shape: tuple[int, ...]
    #: ``"dct_adamw"``, ``"trion"``, ``"adam"``, or ``"other"`` for what no transformation of this package and no
    #: `optax.scale_by_adam` steps.
    method: str
    #: Basis columns kept of each of its matrices; ``None`` where it is not stepped as a matrix.
    rank: int | None
    #: The axes of the leaf along which it is transformed, as one dimension; ``None`` where it is not.
    axis: tuple[int, ...] | None
    #: Bytes of its moments and of everything else that a low-rank transformation or Adam keeps of it.
    state_bytes: int
    #: The rule that it follows, in words.
    reason: str


class Summary(tuple[LeafSummary, ...]):
    """One `LeafSummary` for every leaf, in the order of the tree; as text, a table with totals."""

    __slots__ = ()

    def __str__(self) -> str:
        head = tuple(name.replace("state_bytes", "state, bytes") for name in LeafSummary._fields)
        rows = [head, *(tuple(map(_text, row)) for row in self)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        stepped = [row for row in self if row.rank is not None]
        numbers, low_rank = (sum(math.prod(r.shape) for r in part) for part in (self, stepped))
        total = sum(row.state_bytes for row in self)
        lines += [
            f"{low_rank:,} of {numbers:,} numbers in {len(stepped)} of {len(self)} leaves are stepped as matrices",
            f"state {total:,} bytes, beside Adam's {8 * numbers:,} in float32",
        ]
        return "\n".join(lines)


def summary(optimizer: optax.GradientTransformation, params: Any) -> Summary:
    """Return how ``optimizer`` steps each leaf of ``params``, and why; no array is made.

    Warns where most numbers are stepped by plain Adam, and of a matrix that looks like a vocabulary's and is not.

    Parameters
    ----------
    optimizer
        A transformation of this package, or any chain, partition or wrapper with one in it.
    params
        The parameters, or anything of their structure, shapes and dtypes, as `jax.eval_shape` returns it.

    Returns
    -------
    Summary
        A tuple with a `LeafSummary` for each leaf. ``print`` shows a table.

    Raises
    ------
    ValueError
        If there is no low-rank transformation in ``optimizer``, or a leaf cannot be stepped as it is said to.
    """
    plans, state = plans_and_state(optimizer, params)
    kept: dict[str, int] = {}
    for mark, array in marks_of(state):
        if isinstance(mark, ArrayMark):
            kept[mark.path] = kept.get(mark.path, 0) + array.size * array.dtype.itemsize
    unknown = Plan(None, None, "given to no low-rank transformation")
    leaves = leaves_with_place(params)
    warn_of((path, place.size, plans.get(path, unknown)) for path, _, place in leaves)
    return Summary(
        _row(path, place.shape, plans.get(path, unknown), kept.get(path))
        for path, _, place in leaves
    )


def _row(path: str, shape: tuple[int, ...], plan: Plan, kept: int | None) -> LeafSummary:
    if plan.options is None or plan.axes is None:
        method = "other" if kept is None else "adam"
        return LeafSummary(path, shape, method, None, None, kept or 0, plan.reason)
    matrix = plan.axes.matrix_shape(shape)
    layout = with_fitting_rank(plan.options.config, matrix).layout(matrix)
    method = plan.options.rule.name
    axis = plan.axes.inputs if layout.axis == -1 else plan.axes.outputs
    return LeafSummary(path, shape, method, layout.rank, axis, kept or 0, plan.reason)


def _text(value: Any) -> str:
    """Return a cell of the table."""
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return " x ".join(map(str, value)) if value else "scalar"
    return f"{value:,}" if isinstance(value, int) else str(value)
