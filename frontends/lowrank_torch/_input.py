"""What an optimizer is given from step to step, and whether it can be stepped on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lowrank_core import _checks
from lowrank_core._checks import check_number
from lowrank_torch._sharding import is_flat


def plain_number(name: str, value: Any) -> Any:
    """Return a number, or a 0-d array of any library but PyTorch, as Python's own; a tensor as it is.

    PyTorch's functions take no other numbers, and would say so when some parameters had been stepped.
    """
    if isinstance(value, Tensor):
        return value
    plain = _checks.plain_number(name, value)
    if hasattr(plain, "dtype") and hasattr(plain, "item"):
        plain = plain.item()
    return plain


def check_lr(lr: float | Tensor) -> None:
    """Raise unless a learning rate is a number of at least 0, or a tensor of one."""
    check_number("lr", lr, low=0)
    if isinstance(lr, Tensor):
        if lr.numel() != 1:
            raise ValueError(f"lr must be one number, got a tensor of shape {tuple(lr.shape)}")
        # Reading a device's number would wait for the device, and a traced or fake one has none.
        if type(lr) is Tensor and lr.device.type == "cpu" and not torch.compiler.is_compiling():
            check_number("lr", lr.item(), low=0)


def followed(number: Any) -> Any:
    """Return a number of a group as a graph compiler follows it where a schedule changes it: as a 0-d tensor.

    Of a float it would make a constant of the graph, and a graph for every value, unless it only multiplies tensors.
    """
    if torch.compiler.is_compiling() and isinstance(number, float):
        return torch.ones((), dtype=torch.float64) * number
    return number


def is_zero_lr(lr: float | Tensor) -> bool:
    """Return whether ``lr`` is a zero that the host can read.

    With gradients of zero, `torch.distributed.checkpoint` does a step at such an ``lr`` to initialise state.
    """
    if torch.compiler.is_compiling():
        return False
    if isinstance(lr, Tensor) and (type(lr) is not Tensor or lr.device.type != "cpu"):
        return False
    return bool(lr == 0)


def check_gradient(parameter: Tensor, name: Callable[[Tensor], str]) -> None:
    """Raise ``TypeError`` unless a parameter's gradient is of dense real numbers; ``name`` returns its name."""
    gradient: Any = parameter.grad
    if gradient.layout != torch.strided:
        raise TypeError(
            f"the gradient of {name(parameter)} must be dense, got layout {gradient.layout}"
        )
    if not gradient.is_floating_point():
        raise TypeError(
            f"the gradient of {name(parameter)} must be of a real floating-point dtype, got {gradient.dtype}"
        )


def check_not_flat(parameter: Tensor, name: Callable[[], str]) -> None:
    """Raise for what other ways of sharding put in place of matrices: one-dimensional pieces of all of them."""
    if is_flat(parameter):
        raise NotImplementedError(
            f"low-rank steps need matrices, got a flat shard for {name()}, as FSDP1 and DeepSpeed make; shard with "
            'torch.distributed.fsdp.fully_shard (FSDP2), or set algorithm="adamw"'
        )
