"""An optimizer from a model in one call, and the same where a framework makes the optimizer itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import nn

from lowrank_torch._advice import check_model_given
from lowrank_torch._groups import matrix_groups
from lowrank_torch._report import Summary
from lowrank_torch._roles import MIN_SIZE, ROLES

Made = TypeVar("Made")


def for_model(
    cls: Callable[..., Made],
    model: nn.Module,
    *,
    overrides: Mapping[str, str] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    matrix: Mapping[str, Any] | None = None,
    other: Mapping[str, Any] | None = None,
    min_size: int = MIN_SIZE,
    **settings: Any,
) -> Made:
    """Return an optimizer of class ``cls`` for ``model``, its parameters grouped by role.

    Parameters
    ----------
    cls
        `DCTAdamW` or `Trion`.
    model
        The model.
    overrides, options, matrix, other, min_size
        As in `matrix_groups`.
    **settings
        Arguments of ``cls`` (``lr``, ``rank``, ...).

    Raises
    ------
    NotImplementedError, TypeError, ValueError
        As `matrix_groups` and ``cls``.
    """
    check_model_given(getattr(cls, "__name__", str(cls)), model)
    groups = matrix_groups(
        model,
        overrides=overrides,
        options=options,
        matrix=matrix,
        other=other,
        min_size=min_size,
    )
    if not groups:
        raise ValueError(
            f"no parameter of the model ({type(model).__name__}) requires a gradient: all are frozen, or it has none"
        )
    return cls(groups, **settings)


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


class TrainerFactory:
    """What `transformers.Trainer` calls with the model to get its optimizer.

    A `Trainer` given ``optimizer_cls_and_kwargs=(factory, settings)`` calls ``factory()(model, **settings)`` unless
    ``factory`` is a class of optimizers. So this returns itself when called with nothing.
    """

    def __init__(self, make: Callable[..., Any]) -> None:
        """Take what makes the optimizer of a model, such as ``DCTAdamW.for_model``."""
        self._make = make

    def __call__(self, model: nn.Module | None = None, **settings: Any) -> Any:
        """Return itself without a model, the optimizer with one."""
        return self if model is None else self._make(model, **settings)


def for_trainer(cls: Any, **settings: Any) -> tuple[TrainerFactory, dict[str, Any]]:
    """Return the ``optimizer_cls_and_kwargs`` of `transformers.Trainer` and TRL's trainers, so that roles are told.

    The trainer alone would hand parameters over without their names and roles. It gives neither its learning rate nor
    its weight decay to an optimizer made so: say them here. Its schedule does apply.

    Parameters
    ----------
    cls
        `DCTAdamW` or `Trion`.
    **settings
        Arguments of ``cls.for_model``: ``lr``, ``rank``, ``overrides``, ...

    Raises
    ------
    TypeError
        If ``cls`` is another.

    Examples
    --------
    >>> from lowrank_torch import DCTAdamW, for_trainer
    >>> factory, settings = for_trainer(DCTAdamW, lr=1e-3, rank=0.25)
    >>> settings
    {'lr': 0.001, 'rank': 0.25}
    """
    if not callable(getattr(cls, "for_model", None)):
        raise TypeError(f"cls must be DCTAdamW or Trion, got {cls!r}")
    return TrainerFactory(cls.for_model), settings
