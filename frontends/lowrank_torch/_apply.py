"""Adding an update into a parameter in place, block by block, in float32 arithmetic at least."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lowrank_core import LowRankUpdate, materialize
from lowrank_core.ops import Ops
from lowrank_core.update import slice_across

# Numbers in one block of the temporary that holds the update: a core's cache on the CPU, a launch worth
# making elsewhere.
_CPU_BLOCK = 2**18
_DEVICE_BLOCK = 2**24


def as_matrices(tensor: Tensor, batch_dims: int) -> Tensor:
    """Return ``tensor`` as a stack of matrices: ``batch_dims`` leading dimensions, then ``rows x all the rest``."""
    return tensor.flatten(batch_dims + 1) if tensor.ndim > batch_dims + 2 else tensor


def apply_update(
    parameter: Tensor,
    update: LowRankUpdate,
    *,
    rate: float | Tensor,
    decay: float,
    batch_dims: int,
    ops: Ops,
) -> None:
    """Do ``parameter <- (1 - rate * decay) * parameter - rate * update`` with bounded temporaries.

    A parameter whose memory is not laid out as matrices (a channels-last convolution) is copied there and back.
    """
    matrices = as_matrices(parameter, batch_dims)
    dim = -2 if update.axis == -1 else -1
    numbers = _CPU_BLOCK if parameter.device.type == "cpu" else _DEVICE_BLOCK
    width = max(1, numbers * matrices.shape[dim] // max(1, matrices.numel()))
    for start in range(0, matrices.shape[dim], width):
        length = min(width, matrices.shape[dim] - start)
        target = matrices.narrow(dim, start, length)
        delta: Any = materialize(slice_across(update, slice(start, start + length)), ops=ops)
        _move(target, delta, rate, decay)
    if matrices is not parameter:
        # Costs nothing where the matrices are a view: PyTorch copies no tensor onto itself.
        parameter.copy_(matrices.view(parameter.shape))


def _move(target: Tensor, delta: Tensor, rate: float | Tensor, decay: float) -> None:
    exact = target if target.dtype == delta.dtype else target.to(delta.dtype)
    if decay:
        exact.mul_(1 - rate * decay)
    if isinstance(rate, Tensor):
        exact.sub_(delta.mul_(rate))
    else:
        exact.sub_(delta, alpha=rate)
    if exact is not target:
        target.copy_(exact)
