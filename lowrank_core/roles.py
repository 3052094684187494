"""Names that models give to what is no hidden matrix."""

from __future__ import annotations

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
