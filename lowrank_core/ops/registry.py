"""How the operations of an array library are found.

Adapters are found by the entry-point group ``lowrank_core.ops``, whose entry names are array libraries (the first part
of the namespace's module name: ``numpy``, ``torch``, ``jax``, ``cupy``), and are loaded when the first array of the
library is seen.
"""

from __future__ import annotations

from importlib.metadata import entry_points

from array_api_compat import array_namespace

from lowrank_core._typing import Array, Namespace
from lowrank_core.ops.crossovers_file import read_named_file
from lowrank_core.ops.libraries import library_name
from lowrank_core.ops.standard import Ops, StandardOps

ENTRY_POINT_GROUP = "lowrank_core.ops"

# What was found for each namespace and each array type. Dictionaries, because a graph compiler reads through
# them; the body of a cached function, here a search of the installed packages, it would trace.
_ops_of_namespace: dict[str, Ops] = {}
_ops_of_type: dict[type, Ops] = {}


def _find_ops(xp: Namespace) -> Ops:
    read_named_file()
    for entry in entry_points(group=ENTRY_POINT_GROUP, name=library_name(xp)):
        adapter: Ops = entry.load()(xp)
        return adapter
    return StandardOps(xp)


def ops_for(array: Array) -> Ops:
    """Return the operations for ``array``'s library: its adapter, or :class:`StandardOps` without one.

    Raises
    ------
    TypeError
        If ``array`` is no array, or of a type that computes otherwise than its library's plain arrays do.
    """
    ops = _ops_of_type.get(type(array))
    if ops is None:
        try:
            xp = array_namespace(array)
        except TypeError as error:
            raise TypeError(
                f"an array of a library that follows the Python array API is needed, got {type(array).__name__}"
            ) from error
        if xp.__name__ not in _ops_of_namespace:
            _ops_of_namespace[xp.__name__] = _find_ops(xp)
        ops = _ops_of_namespace[xp.__name__]
        if isinstance(array, ops.refused_types):
            raise TypeError(
                f"a plain array is needed, got {type(array).__module__}.{type(array).__name__}, whose arithmetic is "
                "another; convert it first"
            )
        _ops_of_type[type(array)] = ops
    return ops


def ops_for_namespace(xp: Namespace) -> Ops:
    """Return the operations for a namespace, wrapped for the array API where need be.

    Raises
    ------
    TypeError
        If ``xp`` is no such namespace.
    """
    if not hasattr(xp, "empty"):
        raise TypeError(f"xp must be the namespace of an array library, got {xp!r}")
    return ops_for(xp.empty(0))
