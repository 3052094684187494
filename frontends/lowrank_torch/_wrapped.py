"""What others put around: optimizers that wrap ours, and wrappers of models that average gradients late."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.utils.hooks import RemovableHandle

from lowrank_torch._optimizer import LowRankOptimizer


def unwrapped(optimizer: Any) -> LowRankOptimizer:
    """Return the optimizer of this package that ``optimizer`` is or wraps as its ``optimizer``, as Accelerate's does.

    Raises
    ------
    TypeError
        If it is another.
    """
    inner = optimizer
    while hasattr(inner, "param_groups") and hasattr(inner, "optimizer"):
        inner = inner.optimizer
    if not isinstance(inner, LowRankOptimizer):
        found = type(optimizer).__name__
        if inner is not optimizer:
            found += f" around {type(inner).__name__}"
        raise TypeError(
            "optimizer must be one of this package, DCTAdamW or Trion, or wrap one as its attribute .optimizer; "
            f"got {found}"
        )
    return inner


def refuse_late_averaging(parameters: Iterable[Tensor], function: str) -> RemovableHandle:
    """Raise if a model that averages gradients after the hooks of backward has one of ``parameters``.

    `DistributedDataParallel` copies its averages into ``.grad`` at the very end of backward, and FSDP1 reduces flat
    gradients. A hook on a parameter comes before that and sees the gradient of one replica.

    Parameters
    ----------
    parameters
        What the hooks are on.
    function
        What sets them, for the message.

    Returns
    -------
    RemovableHandle
        Of a hook that raises where such a model is made later.

    Raises
    ------
    NotImplementedError
        If there is one.
    """
    watched = [weakref.ref(parameter) for parameter in parameters]

    def check(model: nn.Module) -> None:
        ours = {id(parameter) for ref in watched if (parameter := ref()) is not None}
        if any(id(parameter) in ours for parameter in model.parameters()):
            raise NotImplementedError(
                f"{function} needs averaged gradients, which {type(model).__name__} has at the end of backward only, "
                "when it holds those of all layers; call optimizer.step() after backward there (compressed_gradients "
                "averages coefficients alone), or shard with torch.distributed.fsdp.fully_shard, whose hooks come "
                "after the averaging"
            )

    # No wrapper is made without process groups; a look at all objects costs a tenth of a second.
    if dist.is_available() and dist.is_initialized():
        for found in gc.get_objects():
            if issubclass(type(found), _late_wrappers()) and "_modules" in found.__dict__:
                check(found)

    def watch(model: nn.Module, _: str, submodule: nn.Module | None) -> None:
        if isinstance(model, _late_wrappers()) and submodule is not None:
            check(submodule)

    return register_module_module_registration_hook(watch)


def _late_wrappers() -> tuple[type[nn.Module], ...]:
    """Return the classes of such models; FSDP1's where somebody has imported it."""
    fsdp = getattr(sys.modules.get("torch.distributed.fsdp"), "FullyShardedDataParallel", None)
    ddp = torch.nn.parallel.DistributedDataParallel
    return (ddp,) if fsdp is None else (ddp, fsdp)
