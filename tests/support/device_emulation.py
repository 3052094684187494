"""A device that nobody waits for, and its graphs, emulated on a CPU: what was done is noted, and done again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# What gives the host a number, or an array whose size depends on numbers.
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique")


class Watch(TorchDispatchMode):
    """Notes what gives the host numbers; under it, as on a GPU, no array is one that the host may read."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function.overloadpacket.__name__.startswith(WAITS):
            self.found.append(str(function))
        return function(*args, **(kwargs or {}))


class Capture(Watch):
    """Notes every operation with the tensors it is done on, and `replay` does them again: what a CUDA graph does.

    A graph runs the same kernels on the same addresses, with the host's numbers of the capture. So operations are done
    on the very tensors, and what one makes is copied to where its first result was, from where the next ones read it.
    Unlike a graph's, the capture itself does the step too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = super().__torch_dispatch__(function, types, args, kwargs)
        self.done.append((function, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        """Do all operations again."""
        assert self.done
        assert not self.found, "the host has read what a graph would not tell it again"
        for function, args, kwargs, result in self.done:
            again = function(*args, **kwargs)
            for kept, new in zip(_tensors(result), _tensors(again), strict=True):
                # Views of their arguments, and these themselves, are where they were.
                if kept.data_ptr() != new.data_ptr():
                    kept.copy_(new)


class OnDevice(TorchDispatchMode):
    """Asserts that operations are done on tensors of one device: a copy of another one would be waited for."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self._device = device

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in _tensors((args, kwargs, result)):
            assert tensor.device.type == self._device, function
        return result


def _tensors(nested: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(nested) if isinstance(leaf, Tensor))
