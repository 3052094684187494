"""The optimizer where a trainer makes it itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack, overload

from torch import nn

from lowrank_torch._dct_adamw import DCTAdamW
from lowrank_torch._option_types import DCTAdamWSettings, TrionSettings
from lowrank_torch._trion import Trion


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


@overload
def for_trainer(
    cls: type[DCTAdamW], **settings: Unpack[DCTAdamWSettings]
) -> tuple[TrainerFactory, dict[str, Any]]: ...


@overload
def for_trainer(
    cls: type[Trion], **settings: Unpack[TrionSettings]
) -> tuple[TrainerFactory, dict[str, Any]]: ...


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
