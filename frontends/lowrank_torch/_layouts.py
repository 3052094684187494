"""How a hidden matrix lies in its parameter, as the options of a group say it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from lowrank_torch._places import (
    BACKWARD_CONVOLUTIONS,
    CONVOLUTIONS,
    Owner,
    is_transposed_linear,
)

# XLNet and Funnel keep projections as (in, heads, head), and the last one as (out, heads, head).
_HEAD_BY_HEAD = {"q": True, "k": True, "v": True, "r": True, "r_kernel": True, "o": False}


class Layout(NamedTuple):
    """Options of a group that say how a parameter is matrices."""

    batch_dims: int = 0
    transposed: bool = False
    split_sizes: tuple[int, ...] | None = None
    num_heads: int | None = None

    def options(self) -> dict[str, Any]:
        """Return the options that are not the defaults, and ``batch_dims``."""
        values = self._asdict()
        split_sizes = None if self.split_sizes is None else list(self.split_sizes)
        values["split_sizes"] = split_sizes
        return {"batch_dims": values.pop("batch_dims")} | {
            name: value for name, value in values.items() if value
        }


def layout_of(parameter: Tensor, owners: Sequence[Owner]) -> Layout:
    """Return how the matrices of a hidden weight lie in it.

    A convolution ``(out, in / groups, kh, kw)`` is one matrix ``out x (in * kh * kw)``, or ``groups`` of them; one
    backwards, ``(in, out / groups, kh, kw)``, is the same transposed. Any other weight of more than two dimensions is a
    stack along its leading ones.
    """
    for module, _, attribute, *_ in owners:
        if isinstance(module, CONVOLUTIONS) and attribute == "weight":
            if module.groups > 1:
                return Layout(num_heads=module.groups)
            return Layout(transposed=isinstance(module, BACKWARD_CONVOLUTIONS))
        if is_transposed_linear(module) and attribute == "weight":
            return Layout(transposed=True)
        if isinstance(module, nn.MultiheadAttention) and attribute == "in_proj_weight":
            return Layout(split_sizes=(module.embed_dim,) * 3)
        if parameter.ndim == 3 and attribute in _HEAD_BY_HEAD and _has_heads(module):
            return Layout(transposed=_HEAD_BY_HEAD[attribute])
    batch_dims = max(0, parameter.ndim - 2)
    return Layout(batch_dims, transposed=parameter.ndim == 3 and _is_transposed(owners))


def smaller_side(shape: Sequence[int], layout: Layout) -> int:
    """Return the smaller side of the matrices that ``layout`` finds in ``shape``."""
    rows, *rest = shape[layout.batch_dims :]
    columns = math.prod(rest)
    if layout.num_heads is not None:
        rows //= layout.num_heads
    return min(rows, columns)


def is_depthwise(module: nn.Module) -> bool:
    """Return whether a convolution has no sum over channels: each output sees one input."""
    return isinstance(module, CONVOLUTIONS) and 1 < module.groups == module.in_channels


def _has_heads(module: nn.Module) -> bool:
    """Return whether an attention says how large a head is, as XLNet's and, in its configuration, Funnel's do."""
    return hasattr(module, "d_head") or hasattr(getattr(module, "config", None), "d_head")


def _is_transposed(owners: Sequence[Owner]) -> bool:
    """Return whether a stack of experts is (experts, in, out)."""
    for module, _, attribute, *_ in owners:
        told = getattr(module, "is_transposed", None)
        if isinstance(told, bool):
            return told
        beside: Mapping[str, Any] = dict(module.named_parameters(recurse=False))
        up, down = beside.get("gate_up_proj"), beside.get("down_proj")
        if attribute in ("gate_up_proj", "down_proj") and up is not None and down is not None:
            # The fused projection up is twice as wide as the one down is deep, which tells the two orders apart.
            _, inner, outer = down.shape
            return tuple(up.shape[1:]) == (outer, 2 * inner)
    return False
