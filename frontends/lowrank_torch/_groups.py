"""Parameter groups by role: hidden matrices, tables and vectors, each kind of layout in a group of its own."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lowrank_core._checks import check_kind
from lowrank_torch._layouts import Layout
from lowrank_torch._option_types import OptionsOfGroup, Role
from lowrank_torch._options import canonical
from lowrank_torch._roles import (
    MIN_SIZE,
    ROLES,
    ParameterRole,
    check_patterns,
    first_match,
    parameter_roles,
)

# A vocabulary has at least so many rows, and so many times as many as columns; a layer expands by 4 at most as a rule.
_VOCABULARY, _RATIO = 8192, 5


def matrix_groups(
    model: nn.Module,
    *,
    overrides: Mapping[str, Role] | None = None,
    options: Mapping[str, OptionsOfGroup] | None = None,
    matrix: OptionsOfGroup | None = None,
    other: OptionsOfGroup | None = None,
    min_size: int = MIN_SIZE,
) -> list[dict[str, Any]]:
    """Return parameter groups of ``model`` by role, for the optimizers of this package.

    Hidden matrices come first, one group for each way that matrices lie in a parameter; then tables, with
    ``algorithm="adamw"``; then vectors, with ``algorithm="adamw"`` and no weight decay. Roles are those of
    `parameter_roles`, which also says why. A group's ``name`` is its role, followed by what sets it apart from the
    first group of the role: ``"matrix"``, ``"matrix, batch_dims=1"``, ``"table"``, ``"table, no decay"``, ``"vector"``.

    Parameters
    ----------
    model
        The model; parameters that do not require a gradient are left out.
    overrides
        As in `parameter_roles`.
    options
        Options of groups by parameter name or shell-style pattern, such as ``{"*.qkv_proj.weight": {"split_sizes": [64,
        16, 16]}}``; over all others. Of several patterns that match, the first that has an option decides on it.
    matrix
        Options for the groups of hidden matrices (``rank``, ``lr``, ...).
    other
        Options for the other groups, over their own defaults.
    min_size
        As in `parameter_roles`.

    Returns
    -------
    list of dict
        Groups of named parameters; empty ones are left out.

    Raises
    ------
    NotImplementedError, TypeError, ValueError
        As `parameter_roles`; also if a pattern of ``options`` matches no parameter.

    Warns
    -----
    UserWarning
        If a hidden matrix looks like a vocabulary's table by its shape.

    Examples
    --------
    >>> import torch, lowrank_torch
    >>> model = torch.nn.Sequential(torch.nn.Embedding(100, 64), torch.nn.Linear(64, 128))
    >>> [group["name"] for group in lowrank_torch.matrix_groups(model)]
    ['matrix', 'table', 'vector']
    """
    given = {"overrides": overrides, "options": options, "matrix": matrix, "other": other}
    for name, value in given.items():
        check_kind(name, value or {}, Mapping, "a mapping")
    patterns: dict[str, Mapping[str, Any]] = dict(options or {})
    for pattern, given_there in patterns.items():
        check_kind(f"options[{pattern!r}]", given_there, Mapping, "a mapping of options")
    roles = parameter_roles(model, overrides=overrides, min_size=min_size)
    check_patterns("options", patterns, [row.name for row in roles])
    parameters = dict(model.named_parameters())
    by_role: dict[str, dict[str, Any]] = {
        "matrix": dict(matrix or {}),
        "table": {"algorithm": "adamw", **(other or {})},
        "vector": {"algorithm": "adamw", "weight_decay": 0.0, **(other or {})},
    }
    groups: list[dict[str, Any]] = []
    for role in ROLES:
        made: dict[Any, dict[str, Any]] = {}
        for row in _in_order([row for row in roles if row.role == role]):
            if role == "matrix" and not row.algorithm:
                _warn_of_vocabulary(row)
            # What gets AdamW is of the other groups' rate, whatever its role.
            by = {**by_role["table"]} if row.algorithm else by_role[role]
            own = _options_of(row, by) | _matched(patterns, row.name)
            key = tuple((name, _hashable(own[name])) for name in sorted(own))
            group = made.setdefault(key, {"params": [], **own})
            group["params"].append((row.name, parameters[row.name]))
        groups += _named(role, list(made.values()))
    return groups


def _in_order(rows: list[ParameterRole]) -> list[ParameterRole]:
    """Return rows with plain matrices first, then stacks, those that are decayed before those that are not."""
    return sorted(
        rows, key=lambda row: (row.algorithm, row.batch_dims, row.transposed, not row.decay)
    )


def _options_of(row: ParameterRole, by_role: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the group a parameter is in, its own layout over those of the role."""
    layout = Layout(row.batch_dims, row.transposed, row.split_sizes, row.num_heads)
    own = layout.options() if row.role == "matrix" and not row.algorithm else {}
    undecayed = {} if row.decay or row.role == "vector" else {"weight_decay": 0.0}
    # Options of the role may name a layout: whoever does knows the model.
    return {**own, **by_role, **undecayed}


def _matched(options: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, Any]:
    """Return the options that patterns give a parameter, the first pattern's over the others'."""
    found: dict[str, Any] = {}
    for pattern, own in options.items():
        if first_match([pattern], name) is not None:
            found = {**own, **found}
    return found


def _named(role: str, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return groups with names that differ, as Lightning and other loggers ask of them."""
    if not groups:
        return []
    # The plainest group bears the role's name alone.
    least = min(map(len, groups))
    first = dict(next(group for group in groups if len(group) == least))
    for group in groups:
        apart = [
            _said(name, value)
            for name, value in group.items()
            if name != "params" and (name not in first or value != first[name])
        ]
        apart += [f"no {name}" for name in first if name not in group]
        group.setdefault("name", ", ".join([role, *apart]))
    return groups


def _said(name: str, value: Any) -> str:
    if name == "weight_decay" and value == 0.0:
        return "no decay"
    return name if value is True else f"{name}={value}"


def _hashable(value: Any) -> Any:
    plain = canonical(value)
    return plain if isinstance(plain, tuple) else repr(plain)


def _warn_of_vocabulary(row: ParameterRole) -> None:
    shape = row.shape[row.batch_dims :]
    rows, columns = shape[0], torch.Size(shape[1:]).numel()
    if looks_like_vocabulary(rows, columns):
        warnings.warn(
            f"{row.name} of shape {row.shape} looks like a vocabulary's table but is treated as a hidden matrix "
            f"({row.reason}); overrides={{{row.name!r}: 'table'}} gives it full AdamW",
            stacklevel=3,
        )


def looks_like_vocabulary(rows: int, columns: int) -> bool:
    """Return whether a matrix is as large and as thin as a table of words, and as no layer."""
    return max(rows, columns) >= max(_VOCABULARY, _RATIO * min(rows, columns))
