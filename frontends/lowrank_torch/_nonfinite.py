"""Gradients that hold NaN or infinity: stepped on like others, or a step is skipped for them, or they are an error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lowrank_torch._collectives import CollectiveScheduler
from lowrank_torch._plan import Member
from lowrank_torch._sharding import local_gradient


def is_watched(group: Mapping[str, Any]) -> bool:
    """Return whether anybody asks if the gradients of a group are finite, for which a device is waited for."""
    watched: bool = group["nonfinite"] != "propagate"
    return watched


@torch.compiler.disable  # type: ignore[untyped-decorator]  # PyTorch does not type it
def are_finite(
    members: Iterable[Member], scheduler: CollectiveScheduler, name_of: Callable[[Tensor], str]
) -> bool:
    """Return whether all gradients that are watched are finite, on all ranks that have parts of them.

    Raises
    ------
    ValueError
        If one is not whose group asks for an error; it names the parameter.
    """
    watched = {member.parameter: member for member in members if is_watched(member.group)}
    bad = scheduler.flagged(watched, lambda parameter: _is_bad(watched[parameter]))
    for parameter in bad:
        if watched[parameter].group["nonfinite"] == "raise":
            raise ValueError(
                f"the gradient of {name_of(parameter)} must be finite with nonfinite='raise', got NaN or infinity"
            )
    return not bad


def _is_bad(member: Member) -> Tensor:
    """Return whether a gradient, or what is kept of it, has a number that is not finite; a fake one has not."""
    arrays = [local_gradient(member.parameter)] if member.projected is None else member.projected
    bad = torch.zeros((), dtype=torch.bool, device=arrays[0].device)
    for array in arrays:
        if type(array) is Tensor and array.device.type != "meta" and array.numel():
            # The extremes tell, and no array of truths as large as the gradient is made.
            low, high = array.aminmax()
            bad = bad | ~(low.isfinite() & high.isfinite())
    return bad
