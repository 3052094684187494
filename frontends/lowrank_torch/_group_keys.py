"""What else a group may hold, and what parameters without names look like."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from torch import Tensor

from lowrank_core.option_names import IN_GROUPS, unknown_option
from lowrank_torch._groups import looks_like_vocabulary

# How alike two names are that are taken for one: `ranks` and `rank` are, `lr_scale` and `scale` are not.
_ALIKE = 0.85
# Shorter keys are one letter from an option too often to be taken for a misspelt one: `step`, `eps2`, `beta`.
_LEAST = 5
# Schedulers keep numbers of their own beside those they move: `max_lr`, `base_momentum`.
_OF_SCHEDULERS = ("base_", "initial_", "max_", "min_")
# Outputs that no hidden layer has alone: what is first or last among matrices, and has them, is looked up or a head.
_OUTPUTS = 1000


def check_group_keys(given: Iterable[str], known: Iterable[str]) -> None:
    """Raise ``TypeError`` if a key of a group looks like a misspelt option, or like GaLore's or Muon's.

    Keys that belong to others pass. AdamW carries such keys along: layer decay's ``lr_scale``, what a wrapping
    optimizer or a scheduler put there.
    """
    allowed = sorted(known)
    for key in given:
        if key in IN_GROUPS and key not in allowed:
            raise TypeError(unknown_option("a parameter group", key, allowed))
        if key in allowed or len(key) < _LEAST or key.startswith(_OF_SCHEDULERS):
            continue
        near = get_close_matches(key, allowed, n=1, cutoff=_ALIKE)
        if near:
            raise TypeError(
                f"a parameter group has no option {key!r}; did you mean {near[0]!r}? (its options are "
                f"{', '.join(allowed)})"
            )


def warn_of_unnamed(groups: Sequence[Mapping[str, Any]]) -> None:
    """Warn once if parameters given without names hold what looks like a vocabulary or a head.

    Frameworks that make the optimizer themselves hand over bare parameters, of which nothing tells the role.
    """
    bare = [
        parameter
        for group in groups
        if "param_names" not in group and group["algorithm"] != "adamw"
        for parameter in group["params"]
        if parameter.ndim == 2
    ]
    found = [
        tuple(parameter.shape) for parameter in bare if looks_like_vocabulary(*parameter.shape)
    ]
    found += [shape for shape in _ends(bare) if shape not in found]
    if found:
        warnings.warn(
            f"parameters have no names, and {len(found)} of them, of shapes {sorted(set(found))}, look like a "
            "vocabulary or an output head but are treated as hidden matrices; make the optimizer with "
            "for_model(model, ...) or of matrix_groups(model) to give those full AdamW",
            stacklevel=4,
        )


def _ends(matrices: Sequence[Tensor]) -> list[tuple[int, ...]]:
    """Return the shapes of the first and the last matrix that alone have their many outputs."""
    if len(matrices) < 3:
        return []
    alone = []
    for end in (0, len(matrices) - 1):
        rows = matrices[end].shape[0]
        others = [m for place, m in enumerate(matrices) if place not in (0, len(matrices) - 1)]
        if rows >= _OUTPUTS and all(rows not in other.shape for other in others):
            alone.append(tuple(matrices[end].shape))
    return alone
