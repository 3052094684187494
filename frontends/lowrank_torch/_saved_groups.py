"""Groups of a state dict as an optimizer has them: its parameters in their order, options that came later filled in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lowrank_torch._capturable import loaded_options
from lowrank_torch._names import is_place_name
from lowrank_torch._options import LATER_OPTIONS
from lowrank_torch._places import plain_path


def as_own(groups: Sequence[Mapping[str, Any]], state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``state_dict`` with the parameters of each group in the order of ``groups``, by name if both have names.

    Without names, as in a state dict of an older PyTorch, parameters are told by their places. What wrappers put into
    names, such as ``_orig_mod``, is left aside.

    Parameters
    ----------
    groups
        The optimizer's.
    state_dict
        One that was saved; nothing of it is changed.

    Raises
    ------
    ValueError
        If a group has names that the other has not.
    """
    saved_groups = [dict(saved) for saved in state_dict["param_groups"]]
    for place, (group, saved) in enumerate(zip(groups, saved_groups, strict=False)):
        for option in LATER_OPTIONS.keys() & group.keys():
            saved.setdefault(option, LATER_OPTIONS[option])
        saved |= loaded_options(saved, group)
        own = _names(group, place)
        given = _names(saved, place)
        # Names that are kept are the optimizer's own: it need not be of the model that was saved.
        names = saved.pop("param_names", None)
        if own is None:
            continue
        saved["param_names"] = list(group["param_names"])
        if given is None or len(own) != len(given):
            continue
        for wanted, name in zip(own, group["param_names"], strict=True):
            if wanted not in given:
                other = next(n for n, plain in zip(names, given, strict=True) if plain not in own)
                raise ValueError(
                    f"state_dict must have the parameters of group {place} by their names, got {other!r} and none "
                    f"called {name!r}; rename them in its param_groups, or leave param_names out there to go by place"
                )
        saved["params"] = [saved["params"][given.index(wanted)] for wanted in own]
    return {**state_dict, "param_groups": saved_groups}


def _names(group: Mapping[str, Any], place: int) -> list[tuple[str, ...]] | None:
    """Return the names of a group's parameters without those of wrappers; ``None`` where it has none to go by."""
    names = [str(name) for name in group.get("param_names", ())]
    if not names or any(is_place_name(name, place, index) for index, name in enumerate(names)):
        return None
    plain = [plain_path(name) for name in names]
    return plain if len(set(plain)) == len(plain) else [(name,) for name in names]
