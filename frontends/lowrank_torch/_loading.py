"""Loading a state dict: checks that it fits, made before anything is loaded, and what PyTorch would change in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from lowrank_core.rules.laws import check_count, check_law
from lowrank_core.rules.state import ArraySpec
from lowrank_torch._capturable import count_of
from lowrank_torch._names import parameter_name
from lowrank_torch._options import canonical
from lowrank_torch._saved_groups import as_own
from lowrank_torch._sharding import is_sharded, local_of


class Fits(Protocol):
    """What is asked of an optimizer here."""

    param_groups: list[dict[str, Any]]
    defaults: dict[str, Any]

    @property
    def structural_options(self) -> Iterable[str]:
        """The options that a state is made for."""

    def check_options(self, group: Mapping[str, Any]) -> Any:
        """Return the configuration of a group, every option checked."""

    def state_specs(self, parameter: Tensor, group: Mapping[str, Any]) -> dict[str, ArraySpec]:
        """Return shape, dtype and law of every entry of a parameter's state."""


@contextmanager
def as_saved(optimizer: Any, place: Callable[[], None]) -> Iterator[None]:
    """Have the state dict that is loaded meanwhile checked first, and its tensors cast to the dtypes of state.

    ``place`` then lays the state out as parameters are. After an error all is as it was.
    """
    before = {"state": optimizer.state, "param_groups": optimizer.param_groups}
    loaded: dict[str, Any] = {}

    def check(_: Optimizer, given: dict[str, Any]) -> dict[str, Any]:
        _check_parts(given)
        own = as_own(optimizer.param_groups, given)
        check_loadable(optimizer, own)
        loaded.update(own)
        return own

    def cast(_: Optimizer) -> None:
        # PyTorch casts state to the parameter's dtype, which would make floats of indices and halve the
        # precision of moments.
        for group, saved in zip(optimizer.param_groups, loaded["param_groups"], strict=True):
            for id_, parameter in zip(saved["params"], group["params"], strict=True):
                if given := loaded["state"].get(id_):
                    specs = optimizer.state_specs(parameter, group)
                    optimizer.state[parameter] = _cast(given, specs, parameter.device, group)
        place()

    # Last among the hooks before and first among those after, so that the user's own see and make whole
    # state dicts.
    handles = (
        optimizer.register_load_state_dict_pre_hook(check),
        optimizer.register_load_state_dict_post_hook(cast, prepend=True),
    )
    try:
        yield
    except BaseException:
        optimizer.__setstate__(before)
        raise
    finally:
        for handle in handles:
            handle.remove()


def _cast(
    given: Mapping[str, Any],
    specs: Mapping[str, ArraySpec],
    device: torch.device,
    group: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the state of a parameter on its device in the dtypes that it is kept in here, in memory of its own."""
    state: dict[str, Any] = {}
    for name, spec in specs.items():
        value = given[name]
        if name != "step":
            state[name] = value.to(device, getattr(torch, spec.dtype), copy=True)
        else:
            state[name] = count_of(int(value), group, device, full="exp_avg" in specs)
    return state


def _check_parts(state_dict: Any) -> None:
    """Raise ``ValueError`` unless ``state_dict`` is put together as those of optimizers are."""
    if not isinstance(state_dict, Mapping):
        raise ValueError(f"state_dict must be one of an optimizer, got {type(state_dict)}")
    for part, kind in (("state", Mapping), ("param_groups", list)):
        if not isinstance(state_dict.get(part), kind):
            raise ValueError(
                f"state_dict must be one of an optimizer, got {type(state_dict.get(part))} for {part}"
            )
    for place, group in enumerate(state_dict["param_groups"]):
        if not isinstance(group, Mapping) or not isinstance(group.get("params"), list):
            raise ValueError(f"state_dict must have a list of params in group {place}, got none")


def check_loadable(optimizer: Fits, state_dict: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` with the first difference unless ``state_dict`` is one of such an optimizer."""
    saved_groups = state_dict["param_groups"]
    if len(saved_groups) != len(optimizer.param_groups):
        raise ValueError(
            f"state_dict must have {len(optimizer.param_groups)} parameter groups, got {len(saved_groups)}"
        )
    for place, (group, saved) in enumerate(zip(optimizer.param_groups, saved_groups, strict=True)):
        if len(saved["params"]) != len(group["params"]):
            raise ValueError(
                f"state_dict must have {len(group['params'])} parameters in group {place}, "
                f"got {len(saved['params'])}"
            )
        _check_options(optimizer, place, group, saved)
        for index, (parameter, id_) in enumerate(
            zip(group["params"], saved["params"], strict=True)
        ):
            state = state_dict["state"].get(id_)
            if state:
                wanted = optimizer.state_specs(parameter, group)
                _check_state(state, wanted, parameter_name(group, place, index))


def _check_options(
    optimizer: Fits, place: int, group: Mapping[str, Any], saved: Mapping[str, Any]
) -> None:
    """Raise ``ValueError`` unless the options of a group are those that its state was made with, and right."""
    # PyTorch adds an option of its own to the defaults of a copied optimizer.
    for option in optimizer.defaults:
        if option not in saved and option != "differentiable":
            raise ValueError(
                f"state_dict must have every option of group {place}, got none for {option!r}"
            )
    for option in optimizer.structural_options:
        if canonical(saved.get(option)) != canonical(group[option]):
            raise ValueError(
                f"state_dict must have been made with {option}={group[option]!r} in group {place}, "
                f"got {saved.get(option)!r}"
            )
    optimizer.check_options({**group, **saved, "params": group["params"]})


def _check_state(state: Any, wanted: Mapping[str, ArraySpec], name: str) -> None:
    """Raise ``ValueError`` unless a parameter can have such a state."""
    if not isinstance(state, Mapping):
        raise ValueError(f"state_dict must have entries for {name}, got {type(state).__name__}")
    check_shapes("state_dict", state, wanted, name)
    for key, spec in wanted.items():
        what, value = f"state_dict must be right: {key} of {name}", local_of(state[key])
        is_tensor = isinstance(value, Tensor)
        if is_tensor and (value.layout != torch.strided or value.is_meta):
            raise ValueError(
                f"{what} must be a tensor with numbers, got {value.layout} on {value.device}"
            )
        if key == "step":
            check_count(what, value.item() if is_tensor else value)
        elif is_tensor:
            check_law(what, value.detach(), spec.dtype, spec.law)
        else:
            raise ValueError(f"{what} must be a tensor, got {type(value).__name__}")


def check_shapes(
    what: str, state: Mapping[str, Any], wanted: Mapping[str, ArraySpec], name: str
) -> None:
    """Raise ``ValueError`` with the first difference unless a parameter's state has the ``wanted`` shapes."""
    found = {
        key: tuple(value.shape) if isinstance(value, Tensor) else () for key, value in state.items()
    }
    for key in sorted(wanted.keys() | found.keys()):
        shape = wanted[key].shape if key in wanted else None
        if shape is None or shape != found.get(key):
            raise ValueError(
                f"{what} must fit the model and its options: {key} of {name} is of shape "
                f"{'absent' if shape is None else shape} by these, got {found.get(key, 'absent')}"
            )


def check_whole(state: Mapping[str, Any], name: str) -> None:
    """Raise ``ValueError`` if state of a parameter that every rank has and steps is sharded."""
    for key, value in state.items():
        if is_sharded(value):
            raise ValueError(
                f"the optimizer's state must be whole where parameters are, got a DTensor for {key} of {name}; an "
                "optimizer with process_group cannot be copied without it"
            )
