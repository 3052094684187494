"""What parameters are called: by their own names, or by their places where they were given without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor


def parameter_name(group: Mapping[str, Any], place: int, index: int) -> str:
    """Return a parameter's name, or its place where it has none."""
    if "param_names" in group:
        return str(group["param_names"][index])
    return place_name(place, index)


def place_name(place: int, index: int) -> str:
    """Return what parameter ``index`` of the group at ``place`` is called without a name."""
    return f"parameter {index} of group {place}"


def is_place_name(name: str, place: int, index: int) -> bool:
    """Return whether a name was made of a parameter's place."""
    return name.startswith("parameter ") and name == place_name(place, index)


def name_alike(groups: Sequence[dict[str, Any]], group: dict[str, Any]) -> list[dict[str, Any]]:
    """Give a group that is to follow ``groups`` names if these have some, or these if it has; return those named so.

    PyTorch takes no groups without names beside those with names, as come together where layers are unfrozen in
    mid-run. Names that are missing are made of places.

    Parameters
    ----------
    groups
        The groups there are.
    group
        As it was given: its parameters may be one tensor, any iterable, or pairs with names.
    """
    given = group["params"]
    # PyTorch itself refuses a set, whose order differs from run to run.
    if isinstance(given, set):
        return []
    params = group["params"] = [given] if isinstance(given, Tensor) else list(given)
    taken = {name for other in groups for name in other.get("param_names", ())}
    names = group.get("param_names", ())
    if len(names) != len(params) or not taken.isdisjoint(names):
        # The options of another group were copied, and its names with them.
        group.pop("param_names", None)
    is_named = "param_names" in group or any(isinstance(param, tuple) for param in params)
    if is_named and not taken:
        unnamed = dict(enumerate(groups))
    elif taken and not is_named:
        unnamed = {len(groups): group}
    else:
        return []
    for place, other in unnamed.items():
        other["param_names"] = [place_name(place, index) for index in range(len(other["params"]))]
    return [*unnamed.values()]
