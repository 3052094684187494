"""Gradients that hold NaN or infinity: stepped on like others, or a step is skipped for them, or they are an error."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from lowrank_torch._collectives import CollectiveScheduler
from lowrank_torch._plan import Member
from lowrank_torch._sharding import local_gradient

#: The option under which nobody asks if gradients are finite: a device is waited for otherwise.
PROPAGATE = "propagate"


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
    watched = {m.parameter: m for m in members if m.group["nonfinite"] != PROPAGATE}
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
