"""Which axes of a parameter make a matrix: stated for every leaf of a tree, by rule or one by one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from lowrank_core.roles import HEADS


class MatrixAxes(NamedTuple):
    """The axes of a parameter that are the outputs and the inputs of a linear map, every other axis stacking matrices.

    The matrix is ``outputs x inputs``, as a PyTorch weight is, whatever the order of the axes in memory: so ``side``
    has one meaning in all frameworks, and so has the optimizer's state. Several axes are flattened in the order given.

    ==============================  ============================  ===================================
    parameter                       shape                         axes
    ==============================  ============================  ===================================
    Flax ``Dense``, NNX ``Linear``  ``(in, out)``                 ``MatrixAxes(outputs=1, inputs=0)``
    Equinox ``Linear``, PyTorch     ``(out, in)``                 ``MatrixAxes(0, 1)``
    Flax attention, query           ``(in, heads, head)``         ``MatrixAxes((1, 2), 0)``
    the same, each head by itself   ``(in, heads, head)``         ``MatrixAxes(2, 0)``
    Flax attention, output          ``(heads, head, out)``        ``MatrixAxes(2, (0, 1))``
    Flax ``Conv``                   ``(height, width, in, out)``  ``MatrixAxes(3, (2, 0, 1))``
    ``Dense`` in scanned layers     ``(layers, in, out)``         ``MatrixAxes(-1, -2)``
    ==============================  ============================  ===================================
    """

    #: Axes of the rows of the matrix.
    outputs: int | tuple[int, ...]
    #: Axes of its columns.
    inputs: int | tuple[int, ...]


#: What ``matrix_axes`` may be: a tree of `MatrixAxes` and ``None``, or a function of path and leaf that returns one.
AxesRule: TypeAlias = Any

# Flax holds a parameter as the value of an object.
_BOXED = ("value", "raw_value")
# Names of leaves that a scan over layers makes two-dimensional, and of tables.
_NO_KERNELS = {"bias", "b", "scale", "offset", "embedding"}
_TABLES = {"wte", "wpe", "vocab"}


def axes_by_name(path: str, leaf: Any) -> MatrixAxes | None:
    """Return the axes of a two-dimensional kernel, ``None`` for whatever is not one by its name: the default rule.

    ``None`` is for embeddings (a part of the path contains ``embed`` or is ``wte``, ``wpe`` or ``vocab``), output heads
    (the leaf's module is called ``head``, ``lm_head``, ``output``, ``classifier``, ``logits``, ...), biases and scales,
    and for all leaves that do not have two dimensions: which axes of those make a matrix only the user knows. A leaf
    called ``weight`` is ``outputs x inputs``, as in Equinox; every other one is ``inputs x outputs``, as in Flax.

    Parameters
    ----------
    path
        Names from the root of the tree to the leaf, joined by ``/``, e.g. ``"layers/0/mlp/kernel"``.
    leaf
        The parameter, or anything with its shape.
    """
    names = path.lower().split("/")
    if len(leaf.shape) != 2 or names[-1] in _NO_KERNELS or _TABLES & set(names):
        return None
    if any("embed" in name for name in names) or HEADS & set(names[-2:-1]):
        return None
    return MatrixAxes(0, 1) if names[-1] == "weight" else MatrixAxes(outputs=1, inputs=0)


class ResolvedAxes(NamedTuple):
    """The axes of one leaf, none of them negative, and none missing."""

    batch: tuple[int, ...]
    outputs: tuple[int, ...]
    inputs: tuple[int, ...]

    @property
    def order(self) -> tuple[int, ...]:
        """All axes in the order of the matrix."""
        return (*self.batch, *self.outputs, *self.inputs)

    def matrix_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape ``(..., outputs, inputs)`` of the matrices of a leaf of ``shape``."""
        rows, columns = (
            math.prod(shape[axis] for axis in axes) for axes in (self.outputs, self.inputs)
        )
        return (*(shape[axis] for axis in self.batch), rows, columns)

    def to_matrix(self, leaf: jax.Array) -> jax.Array:
        """Return the matrices ``(..., outputs, inputs)`` of a leaf."""
        return jnp.transpose(leaf, self.order).reshape(self.matrix_shape(leaf.shape))

    def from_matrix(self, matrix: jax.Array, shape: Sequence[int]) -> jax.Array:
        """Return what is of the shape of the leaf whose matrices these are."""
        moved = matrix.reshape([shape[axis] for axis in self.order])
        return jnp.transpose(moved, sorted(range(len(shape)), key=self.order.__getitem__))


def resolve_axes(axes: MatrixAxes, shape: Sequence[int], path: str) -> ResolvedAxes:
    """Return ``axes`` for a leaf of ``shape``.

    Raises
    ------
    TypeError, ValueError
        If it is no `MatrixAxes`, names an axis there is not or one axis twice, or no output or no input.
    """
    if not isinstance(axes, MatrixAxes):
        raise TypeError(f"matrix_axes must give MatrixAxes or None, got {axes!r} for {path!r}")
    count = len(shape)
    named = [(axis,) if isinstance(axis, int) else tuple(axis) for axis in axes]
    both = [axis for axes_of_one in named for axis in axes_of_one]
    if any(not -count <= axis < count for axis in both):
        raise ValueError(
            f"matrix_axes must name axes of the leaf, got {axes} for {path!r} of shape {tuple(shape)}"
        )
    outputs, inputs = (tuple(axis % count for axis in axes_of_one) for axes_of_one in named)
    if not outputs or not inputs or len({*outputs, *inputs}) < len(both):
        raise ValueError(
            f"matrix_axes must name at least one output and one input axis and none twice, got {axes} for {path!r}"
        )
    batch = tuple(axis for axis in range(count) if axis not in (*outputs, *inputs))
    return ResolvedAxes(batch, outputs, inputs)


def path_of(keys: Sequence[Any]) -> str:
    """Return the names of a leaf's path joined by ``/``, without what a box around the leaf adds to them."""
    if keys and isinstance(keys[-1], jax.tree_util.GetAttrKey) and keys[-1].name in _BOXED:
        keys = keys[:-1]
    return jax.tree_util.keystr(tuple(keys), simple=True, separator="/")


def axes_of_leaves(tree: Any, rule: AxesRule) -> list[tuple[str, Any, ResolvedAxes | None]]:
    """Return path, leaf and axes of every leaf of ``tree``, ``None`` for one that is no matrix.

    Raises
    ------
    TypeError, ValueError
        If the rule says nothing of a leaf, or what it says does not fit.
    """
    lookup = rule if callable(rule) else _lookup(rule)
    rows = []
    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        path = path_of(keys)
        axes = lookup(path, leaf)
        resolved = None if axes is None else resolve_axes(axes, leaf.shape, path)
        rows.append((path, leaf, resolved))
    return rows


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
