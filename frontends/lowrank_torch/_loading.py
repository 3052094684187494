"""Loading a state dict: checks that it fits, made before anything is loaded, and what PyTorch would change in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer

from lowrank_torch._names import parameter_name
from lowrank_torch._options import canonical
from lowrank_torch._saved_groups import as_own
from lowrank_torch._sharding import is_sharded


class Fits(Protocol):
    """What is asked of an optimizer here."""

    param_groups: list[dict[str, Any]]
    defaults: dict[str, Any]

    @property
    def structural_options(self) -> Iterable[str]:
        """The options that a state is made for."""

    def check_options(self, group: Mapping[str, Any]) -> Any:
        """Return the configuration of a group, every option checked."""

    def state_shapes(
        self, parameter: Tensor, group: Mapping[str, Any]
    ) -> dict[str, tuple[int, ...]]:
        """Return the shape of every entry of a parameter's state."""


@contextmanager
def as_saved(optimizer: Any, place: Callable[[], None]) -> Iterator[None]:
    """Have the state dict that is loaded meanwhile checked first, and its tensors kept in the dtypes of the file.

    ``place`` then lays the state out as parameters are.
    """
    loaded: dict[str, Any] = {}

    def check(_: Optimizer, given: dict[str, Any]) -> dict[str, Any]:
        own = as_own(optimizer.param_groups, given)
        check_loadable(optimizer, own)
        loaded.update(own)
        return own

    def keep_dtypes(_: Optimizer) -> None:
        # PyTorch casts state to the parameter's dtype, which would make floats of indices and halve the
        # precision of moments.
        saved_ids = [id_ for group in loaded["param_groups"] for id_ in group["params"]]
        own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for id_, parameter in zip(saved_ids, own, strict=True):
            for name, value in loaded["state"].get(id_, {}).items():
                if isinstance(value, Tensor):
                    device = value.device if name == "step" else parameter.device
                    optimizer.state[parameter][name] = value.to(device, copy=True)
        place()

    # Last among the hooks before and first among those after, so that the user's own see and make whole
    # state dicts.
    handles = (
        optimizer.register_load_state_dict_pre_hook(check),
        optimizer.register_load_state_dict_post_hook(keep_dtypes, prepend=True),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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
        for index, (parameter, id_) in enumerate(
            zip(group["params"], saved["params"], strict=True)
        ):
            state = state_dict["state"].get(id_)
            if state:
                wanted = optimizer.state_shapes(parameter, group)
                check_shapes("state_dict", state, wanted, parameter_name(group, place, index))


def check_shapes(
    what: str, state: Mapping[str, Any], wanted: Mapping[str, tuple[int, ...]], name: str
) -> None:
    """Raise ``ValueError`` with the first difference unless a parameter's state has the ``wanted`` shapes."""
    found = {
        key: tuple(value.shape) if isinstance(value, Tensor) else () for key, value in state.items()
    }
    for key in sorted(wanted.keys() | found.keys()):
        if wanted.get(key) != found.get(key):
            raise ValueError(
                f"{what} must fit the model and its options: {key} of {name} is of shape "
                f"{wanted.get(key, 'absent')} by these, got {found.get(key, 'absent')}"
            )


def check_whole(state: Mapping[str, Any], name: str) -> None:
    """Raise ``ValueError`` if state of a parameter that every rank has and steps is sharded."""
    for key, value in state.items():
        if is_sharded(value):
            raise ValueError(
                f"the optimizer's state must be whole where parameters are, got a DTensor for {key} of {name}; an "
                "optimizer with process_group cannot be copied without it"
            )
