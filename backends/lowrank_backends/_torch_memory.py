"""Large arrays on the CPU: memory that costs little to touch, and that is kept from step to step."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

_NUMPY: dict[torch.dtype, Any] = {
    torch.float32: np.float32,
    torch.float64: np.float64,
    torch.complex64: np.complex64,
    torch.complex128: np.complex128,
}
# Bytes from which memory goes back to the system when it is freed, to be cleared page by page when it is used again.
_LARGE = 2**22


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return a tensor in NumPy's memory, which comes in large pages where it is large."""
    return torch.from_numpy(np.empty(tuple(shape), _NUMPY[dtype]))


class Scratch:
    """Memory of large arrays, kept when they are gone, for those of the next step.

    The first touch of new memory costs as much as a transform. Kept is as much as was in use at once, for as many
    arrays: one that is too small for what is asked for is given back to the system.
    """

    def __init__(self) -> None:
        self._kept: deque[Any] = deque()

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return what `empty` does; a large one in memory that was kept, if there is any."""
        wanted = np.dtype(_NUMPY[dtype])
        size = int(np.prod(shape)) * wanted.itemsize
        if size < _LARGE:
            return empty(shape, dtype)
        try:
            memory = self._kept.popleft()
        except IndexError:
            memory = None
        if memory is None or memory.nbytes < size:
            memory = np.empty(size, np.uint8)
        array: Any = np.ndarray(tuple(shape), wanted, buffer=memory)
        # The tensor holds the array, and all its views hold the tensor's memory.
        weakref.finalize(array, self._kept.append, memory).atexit = False
        return torch.from_numpy(array)
