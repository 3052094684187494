"""Which PyTorch matrices the compiled panels take; Numba is imported when there is the first of them."""

from __future__ import annotations

import functools
import importlib
import logging
from types import ModuleType

import torch
from torch import Tensor

_logger = logging.getLogger("lowrank_backends")

# Numbers from which a matrix is worth a call of its own, and Numba the seconds that it compiles for at first. Steps of
# 16 to 256 matrices were tried: of 128 x 128 they take half of the time, of 16 x 256 twice as long.
LEAST = 2**14


def launches_for(x: Tensor, *others: Tensor | None) -> ModuleType | None:
    """Return the module that calls the panels, if they take a matrix ``(m, n)`` and what is stepped with it.

    Plain tensors of the CPU, of float32, or codes of 8 bits beside them, the matrix a large one; all of them
    contiguous, or all the transposes of such.
    """
    every = [x, *(own for own in others if own is not None)]
    fit = (
        x.ndim == 2
        and x.numel() >= LEAST
        and all(own.dtype in (torch.float32, torch.uint8) for own in every)
        and (
            all(own.is_contiguous() for own in every)
            or all(own.mT.is_contiguous() for own in every)
        )
    )
    launches = _launches() if fit else None
    return launches if launches is not None and launches.factors(x.shape[-1]) else None


@functools.cache
def _launches() -> ModuleType | None:
    """Return the module, or ``None`` where Numba is not installed, or not for this Python or this NumPy."""
    try:
        return importlib.import_module("lowrank_backends._numba_launch")
    except ImportError:
        return None
    except RuntimeError as error:
        # It finds no folder to keep what it compiles in, and would compile for every process anew.
        _logger.warning(
            "large matrices are stepped without Numba, which cannot be used here: %s", error
        )
        return None
