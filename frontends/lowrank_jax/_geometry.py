"""The axes of a parameter that make a matrix of it, and the way from one to the other and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp


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
