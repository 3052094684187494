"""Which PyTorch matrices the Triton kernels take; Triton is imported when there is the first of them.

On a GPU they take some where the environment variable ``LOWRANK_KERNELS`` is 1 alone: no GPU has run them yet.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import Parameter

from lowrank_backends._triton_tables import factors, holds, splits

_KINDS = (torch.float32, torch.bfloat16)
_LEAST_CAPABILITY = 80
ENVIRONMENT = "LOWRANK_KERNELS"

_interpreted = False


def interpret_on_cpu(interpreted: bool = True) -> None:
    """Have the kernels take tensors of the CPU too, in Triton's interpreter: for tests, thousands of times slower.

    Raises
    ------
    RuntimeError
        If Triton does not interpret: ``TRITON_INTERPRET=1`` has to be set before it is imported.
    """
    global _interpreted  # noqa: PLW0603 - one switch for a whole process
    if interpreted and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError(
            "kernels run on a CPU in Triton's interpreter alone: set TRITON_INTERPRET=1 before Triton is imported"
        )
    _interpreted = interpreted


def launches() -> ModuleType:
    """Return the module that launches the kernels."""
    from lowrank_backends import _triton_launch

    return _triton_launch


def run_on(device: torch.device) -> bool:
    """Return whether the kernels run on a device."""
    return _interpreted or (device.type == "cuda" and _are_wanted() and _has_kernels(device))


def takes(gradient: Tensor, parameter: Tensor, *state: Tensor | None) -> bool:
    """Return whether the kernels take a gradient, the parameter that is stepped by it, and the state of its rows.

    Matrices ``(m, n)`` or ``(k, m, n)`` of float32 or bfloat16 with contiguous rows, of a length that is a product of
    two factors that tables hold, on a GPU that Triton compiles for. Of state, which is no codes, what is as large is
    one of them.
    """
    given = [own for own in state if own is not None]
    whole = [own for own in given if own.shape == gradient.shape]
    if gradient.shape != parameter.shape or any(own.dtype == torch.uint8 for own in given):
        return False
    if not all(map(_is_takeable, (gradient, parameter, *whole))):
        return False
    cut = factors(gradient.shape[-1])
    if cut is None or _interpreted:
        return cut is not None
    split = any(map(splits, (gradient, *whole)))
    return holds(cut, split, _capability(gradient.device))


def _is_takeable(x: Tensor) -> bool:
    return (
        type(x) in (Tensor, Parameter)
        and run_on(x.device)
        and x.dtype in _KINDS
        and x.ndim in (2, 3)
        and x.numel() > 0
        and x.stride(-1) == 1
        and not (torch.is_grad_enabled() and x.requires_grad)
        # Views whose numbers are not those in memory.
        and not (x.is_neg() or x._is_zerotensor())
    )


def _are_wanted() -> bool:
    return os.environ.get(ENVIRONMENT) == "1"


@functools.lru_cache(maxsize=32)
def _capability(device: torch.device) -> int:
    """Return what a device can do, as 90 for sm_90."""
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@functools.lru_cache(maxsize=32)
def _has_kernels(device: torch.device) -> bool:
    """Return whether Triton compiles for a device that has tensor cores with float16 operands and float32 sums."""
    return (
        torch.version.hip is None
        and importlib.util.find_spec("triton") is not None
        and _capability(device) >= _LEAST_CAPABILITY
    )
