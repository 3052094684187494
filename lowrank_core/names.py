"""What array libraries call themselves."""

from __future__ import annotations

from lowrank_core._typing import Namespace


def library_name(xp: Namespace) -> str:
    """Return the array library of a namespace, wrapped or not: ``numpy``, ``torch``, ``jax``, ``cupy``, ..."""
    name: str = xp.__name__
    return name.removeprefix("array_api_compat.").split(".")[0]
