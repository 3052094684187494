"""What others call things: array libraries themselves, and models what is no hidden matrix."""

from __future__ import annotations

from lowrank_core._typing import Namespace

#: Modules that are output heads, in lower case: no two frameworks agree on one.
HEADS = frozenset(
    {
        "lm_head",
        "head",
        "output",
        "output_layer",
        "classifier",
        "logits",
        "unembed",
        "unembedding",
    }
)


def library_name(xp: Namespace) -> str:
    """Return the array library of a namespace, wrapped or not: ``numpy``, ``torch``, ``jax``, ``cupy``, ..."""
    name: str = xp.__name__
    return name.removeprefix("array_api_compat.").split(".")[0]
