"""Which axes of a parameter make a matrix: stated for every leaf of a tree, by rule or one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import jax

from lowrank_core._checks import check_kind
from lowrank_jax._geometry import MatrixAxes, ResolvedAxes, resolve_axes
from lowrank_jax._rules import axes_by_name, layout_of
from lowrank_jax._trees import leaves_with_place, path_of

__all__ = [
    "AxesRule",
    "MatrixAxes",
    "ResolvedAxes",
    "axes_by_name",
    "axes_of_leaves",
    "layouts_of_leaves",
    "matrix_mask",
    "path_of",
    "resolve_axes",
]

#: What ``matrix_axes`` may be: a tree of `MatrixAxes` and ``None``, or a function of path and leaf that returns one.
AxesRule: TypeAlias = Any


def axes_of_leaves(tree: Any, rule: AxesRule) -> list[tuple[str, Any, ResolvedAxes | None]]:
    """Return path, leaf and axes of every leaf of ``tree``, ``None`` for one that is no matrix.

    Raises
    ------
    TypeError, ValueError
        If the rule says nothing of a leaf, or what it says does not fit.
    """
    lookup = rule if callable(rule) else _lookup(rule)
    rows = []
    for path, leaf, place in leaves_with_place(tree):
        axes = lookup(path, place)
        resolved = None if axes is None else resolve_axes(axes, leaf.shape, path)
        rows.append((path, leaf, resolved))
    return rows


def check_axes(rule: AxesRule) -> None:
    """Raise ``TypeError`` unless a rule is a function or a tree of axes."""
    if not callable(rule):
        _lookup(rule)


def layouts_of_leaves(tree: Any) -> dict[str, ResolvedAxes | None]:
    """Return by path along which axes every leaf of ``tree`` lies, whoever steps it; see `layout_of`."""
    layouts = {}
    for path, leaf, place in leaves_with_place(tree):
        axes = layout_of(path, place)
        layouts[path] = None if axes is None else resolve_axes(axes, leaf.shape, path)
    return layouts


def matrix_mask(tree: Any, matrix_axes: AxesRule = axes_by_name) -> Any:
    """Return ``tree`` with ``True`` in the place of every matrix and ``False`` elsewhere.

    For decay masks and for the labels of `optax.partition`.

    Parameters
    ----------
    tree
        Parameters, or anything of their structure and shapes.
    matrix_axes
        As in `scale_by_dct_adam`.
    """
    rows = axes_of_leaves(tree, matrix_axes)
    return jax.tree.unflatten(jax.tree.structure(tree), [axes is not None for _, _, axes in rows])


def _lookup(stated: Any) -> Callable[[str, Any], MatrixAxes | None]:
    """Return a tree of axes as a function; what stands at a node holds for all leaves below it."""
    pairs, _ = jax.tree_util.tree_flatten_with_path(
        stated, is_leaf=lambda node: node is None or isinstance(node, MatrixAxes)
    )
    for _, axes in pairs:
        check_kind(
            "matrix_axes", axes, (MatrixAxes, type(None)), "a function or a tree of MatrixAxes"
        )
    known = {path_of(keys): axes for keys, axes in pairs}

    def find(path: str, _: Any) -> MatrixAxes | None:
        names = path.split("/")
        for length in range(len(names), -1, -1):
            prefix = "/".join(names[:length])
            if prefix in known:
                axes: MatrixAxes | None = known[prefix]
                return axes
        raise ValueError(
            f"matrix_axes must say of every leaf what it is, and says nothing of {path!r}"
        )

    return find
