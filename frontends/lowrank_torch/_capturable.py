"""Steps that a CUDA graph captures: their count is on the device, their state stays where it is, nothing is read.

A graph does again what a device was told at its capture: on the same addresses, with the host's numbers of then. So
everything that changes from step to step has to be in a tensor that the graph finds where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, MutableMapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lowrank_core.bases.registry import STORED_BASES
from lowrank_core.rules.known import DCT_ADAMW, TRION
from lowrank_core.rules.options import number_options
from lowrank_torch._nonfinite import PROPAGATE
from lowrank_torch._plan import Member
from lowrank_torch._sharding import is_sharded

# Options that may be tensors, whose numbers a graph then reads at every replay.
_NUMBERS = ("lr", "weight_decay", *number_options(DCT_ADAMW.config), *number_options(TRION.config))


def count_of(
    done: int, group: Mapping[str, Any], device: torch.device, *, full: bool
) -> int | Tensor:
    """Return ``done`` steps as the state of a parameter on ``device`` counts them.

    A host number; for ``full`` AdamW, as PyTorch's own, a 0-d float32 tensor on the CPU. In a group that is
    ``capturable`` a 0-d tensor on the device, int32 or that float32.
    """
    if group["capturable"]:
        # Filled there: a copy of a host number would wait.
        dtype = torch.float32 if full else torch.int32
        return torch.full((), done, dtype=dtype, device=device)
    # On the CPU whatever the default device, and by `tensor`, which has a value under FakeTensorMode too.
    return torch.tensor(float(done), dtype=torch.float32, device="cpu") if full else done


def recount(
    state: MutableMapping[str, Any], group: Mapping[str, Any], device: torch.device, *, full: bool
) -> None:
    """Have steps counted where a group says, should it say otherwise than when the state was made; waits then."""
    wanted = torch.device("cpu") if full else None
    count = state["step"]
    if (count.device if isinstance(count, Tensor) else None) != (
        device if group["capturable"] else wanted
    ):
        state["step"] = count_of(int(count), group, device, full=full)


def keeping(state: MutableMapping[str, Any], entries: Mapping[str, Any]) -> list[Callable[[], Any]]:
    """Return the calls that keep new ``entries`` of a parameter's state: in the same tensors where the count is one."""
    if not isinstance(state["step"], Tensor):
        return [partial(state.update, entries)]
    return [
        partial(state[key].copy_, value)
        for key, value in entries.items()
        if value is not state[key]
    ]


def check_group(group: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` if steps of a group are to be captured and its options make the host read numbers."""
    if not group["capturable"]:
        return
    if group["nonfinite"] != PROPAGATE:
        raise ValueError(
            "nonfinite must be 'propagate' with capturable=True, for the host would have to read whether gradients are "
            f"finite, got {group['nonfinite']!r}; look at gradients outside of the graph, or set capturable=False"
        )
    if group["algorithm"] != "adamw" and group["basis"] in STORED_BASES:
        raise ValueError(
            "basis must be a fixed one with capturable=True, for vectors that are computed anew need factorizations, "
            f"which wait for the device, got {group['basis']!r}; use basis='dct', or set capturable=False"
        )


def check_placed(parameter: Tensor, group: Mapping[str, Any], name: Callable[[], str]) -> None:
    """Raise unless steps of a parameter can be captured with the tensors that its group has for numbers.

    Raises
    ------
    ValueError
        If one of these is on another device: the graph would go on with its number at the capture.
    """
    for option, value in _tensors(group):
        if value.device != parameter.device:
            raise ValueError(
                f"{option} must be a number or a tensor on the device of {name()}, {parameter.device}, with "
                f"capturable=True, got one on {value.device}"
            )


def check_whole(parameter: Tensor, sharded: bool, name: Callable[[], str]) -> None:
    """Raise ``NotImplementedError`` for a parameter that lies on several ranks, or whose work ranks share."""
    if sharded or is_sharded(parameter):
        raise NotImplementedError(
            f"capturable must be False for parameters that are sharded, or whose work is shared by process_group, got "
            f"True for {name()}"
        )


def check_capture(members: Collection[Member], name_of: Callable[[Tensor], str]) -> None:
    """Raise ``RuntimeError`` or ``ValueError`` if a graph is captured now that would not do what a step does."""
    if not _is_capturing(members):
        return
    for parameter, state, group, *_ in members:
        name = partial(name_of, parameter)
        if not group["capturable"]:
            raise RuntimeError(
                f"a CUDA graph is being captured, and {name()} is in a group with capturable=False: the graph would "
                "repeat one step. Set capturable=True"
            )
        count = state.get("step")
        if not isinstance(count, Tensor) or count.device != parameter.device:
            raise RuntimeError(
                f"a CUDA graph is being captured, and {name()} has no state on its device yet, which the graph would "
                "make anew at every replay. Do a step on gradients of all parameters before the capture"
            )
        check_placed(parameter, group, name)


def _is_capturing(members: Collection[Member]) -> bool:
    """Return whether what is done now to parameters is captured; builds for CPUs cannot be asked."""
    on_gpu = not torch.compiler.is_compiling() and any(m.parameter.is_cuda for m in members)
    return on_gpu and torch.cuda.is_current_stream_capturing()


def loaded_options(saved: Mapping[str, Any], group: Mapping[str, Any]) -> dict[str, Any]:
    """Return what options of a ``saved`` group are in the optimizer's: whether steps are captured is its own to say.

    What is a tensor there is a new tensor like it, wherever the saved number was.
    """
    own = {"capturable": group["capturable"]}
    if group["capturable"]:
        numbers = (name for name in _NUMBERS if name in saved and name in group)
        own |= {name: _as_here(saved[name], group[name]) for name in numbers}
    return own


def _as_here(saved: Any, own: Any) -> Any:
    if isinstance(own, (tuple, list)) and isinstance(saved, (tuple, list)):
        return tuple(map(_as_here, saved, own))
    if saved is None or not isinstance(own, Tensor):
        return saved
    return torch.as_tensor(saved, dtype=own.dtype).detach().to(own.device, copy=True)


def _tensors(group: Mapping[str, Any]) -> list[tuple[str, Tensor]]:
    """Return the options of a group that are tensors, or hold some, by name."""
    given = {name: group.get(name) for name in _NUMBERS}
    given |= {f"betas[{index}]": beta for index, beta in enumerate(group["betas"])}
    return [(name, value) for name, value in given.items() if isinstance(value, Tensor)]
