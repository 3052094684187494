"""The running mean square of every column's coefficients: ``n`` numbers a matrix that tell how loud a column is."""

from __future__ import annotations

from lowrank_core._typing import Array, Scalar
from lowrank_core.adam import decayed_weight
from lowrank_core.ops import Ops


def update_energy(energy: Array, squares: Array, rows: Scalar, decay: Scalar) -> Array:
    """Return ``decay * energy + (1 - decay) * squares / rows``, from sums of squares over ``rows`` coefficients."""
    return energy * decay + squares * ((1 - decay) / rows)


def mean_energy(energy: Array, decay: Scalar, count: Scalar, ops: Ops) -> Array:
    """Return the running mean of ``count`` entries, corrected for its start at zero."""
    return energy / decayed_weight(decay, count, ops, energy)
