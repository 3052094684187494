"""An optimizer from a model in one call, and what it says of itself."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import nn

from lowrank_torch._advice import check_model_given
from lowrank_torch._groups import matrix_groups
from lowrank_torch._option_types import GroupingOptions
from lowrank_torch._report import Summary
from lowrank_torch._roles import ROLES

Made = TypeVar("Made")
F = TypeVar("F", bound=Callable[..., Any])


def for_model(cls: Callable[..., Made], model: nn.Module, settings: Mapping[str, Any]) -> Made:
    """Return an optimizer of class ``cls`` for ``model``, its parameters grouped by role.

    Parameters
    ----------
    cls
        `DCTAdamW` or `Trion`.
    model
        The model.
    settings
        Arguments of `matrix_groups` and of ``cls`` by name.

    Raises
    ------
    NotImplementedError, TypeError, ValueError
        As `matrix_groups` and ``cls``.
    """
    check_model_given(getattr(cls, "__name__", str(cls)), model)
    own = dict(settings)
    names = GroupingOptions.__annotations__
    grouping: Any = {name: own.pop(name) for name in names if name in own}
    groups = matrix_groups(model, **grouping)
    if not groups:
        raise ValueError(
            f"no parameter of the model ({type(model).__name__}) requires a gradient: all are frozen, or it has none"
        )
    return cls(groups, **own)


def shows_arguments_of(*functions: Callable[..., Any]) -> Callable[[F], F]:
    """Return a decorator that puts arguments of ``functions`` in the place of ``**settings`` in a signature.

    All of them as keywords, but ``model`` and ``params``, in whose place a method has the model.
    """

    def decorate(function: F) -> F:
        signature = inspect.signature(function)
        shown = {n: p for n, p in signature.parameters.items() if p.kind is not p.VAR_KEYWORD}
        for other in functions:
            for parameter in inspect.signature(other).parameters.values():
                if parameter.name not in ("self", "model", "params"):
                    keyword = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
                    shown.setdefault(parameter.name, keyword)
        target: Any = function
        target.__signature__ = signature.replace(parameters=[*shown.values()])
        return function

    return decorate


def brief(group: Mapping[str, Any]) -> str:
    """Return what a group is in a few words: its name, or what steps it, its size, rate and rank."""
    low_rank = group["algorithm"] != "adamw"
    said = [f"{len(group['params'])} parameters", f"lr={group['lr']}"]
    said += [f"rank={group['rank']}"] if low_rank else []
    return f"{group.get('name', group['algorithm'])}: {' '.join(said)}"


def describe(optimizer: Any, rows: Summary) -> str:
    """Return one line: the parameters and numbers of each role, and the state in MB beside AdamW's.

    Of parameters in groups that `matrix_groups` has not named by role, in the place of that what steps them. ``rows``
    is the optimizer's summary.
    """
    named = [
        str(group.get("name", "")).split(",")[0]
        for group in optimizer.param_groups
        for _ in group["params"]
    ]
    counts: dict[str, tuple[int, int]] = {}
    for name, row in zip(named, rows, strict=True):
        kind = name if name in ROLES else row.algorithm
        number, size = counts.get(kind, (0, 0))
        counts[kind] = number + 1, size + math.prod(row.shape)
    parts = [f"{kind} {number} ({size:,} numbers)" for kind, (number, size) in counts.items()]
    return (
        f"{type(optimizer).__name__}: {', '.join(parts)}; state {rows.state_bytes / 1e6:.1f} MB, "
        f"AdamW's {rows.adamw_bytes / 1e6:.1f} MB"
    )
