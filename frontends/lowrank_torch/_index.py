"""Where a parameter is among the groups of an optimizer, and which random numbers are its own."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lowrank_torch._names import is_place_name
from lowrank_torch._places import plain_path


class ParameterIndex:
    """Finds parameters in groups, in a time that neither others nor groups add to."""

    def __init__(self) -> None:
        # By ids, so that nothing is kept alive; a parameter is looked at where it is said to be.
        self._places: dict[int, tuple[int, int]] = {}

    def find(self, groups: Sequence[Mapping[str, Any]], parameter: Tensor) -> tuple[int, int]:
        """Return the place of a parameter's group and its place in the group.

        Raises
        ------
        ValueError
            If it is in no group.
        """
        found = self._places.get(id(parameter))
        if found is None or not _is_at(groups, found, parameter):
            # Groups have changed since they were looked through.
            self._places = {
                id(own): (place, index)
                for place, group in enumerate(groups)
                for index, own in enumerate(group["params"])
            }
            found = self._places.get(id(parameter))
        if found is None:
            raise ValueError("parameter must be one of the optimizer's")
        return found


def _is_at(groups: Sequence[Mapping[str, Any]], place: tuple[int, int], parameter: Tensor) -> bool:
    group, index = place
    if group >= len(groups) or index >= len(groups[group]["params"]):
        return False
    return groups[group]["params"][index] is parameter


def stream_of(group: Mapping[str, Any], place: int, index: int) -> int:
    """Return the number of a parameter's stream of random numbers, below ``2**31``.

    It is a function of its name where it has one, so that a model of other layers or groups beside it draws the same,
    and of its place where it has none.
    """
    names = group.get("param_names")
    name = None if names is None else str(names[index])
    if name is None or is_place_name(name, place, index):
        return (place << 16) + index
    return _stream_of_name(name)


@functools.lru_cache(maxsize=2**16)
def _stream_of_name(name: str) -> int:
    # A compiled or wrapped model draws as the model itself.
    return zlib.crc32(".".join(plain_path(name)).encode()) & 0x7FFFFFFF
