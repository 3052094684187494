"""Trion as a PyTorch optimizer."""

from __future__ import annotations

from typing import Any, Literal, Self, Unpack

from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from lowrank_core import TrionConfig
from lowrank_core.option_types import TrionPresetName
from lowrank_core.rules.known import TRION
from lowrank_core.rules.options import shows_options
from lowrank_core.rules.presets import TRION_PRESETS
from lowrank_torch._for_model import for_model, shows_arguments_of
from lowrank_torch._groups import matrix_groups
from lowrank_torch._matrices import ShapeOptions
from lowrank_torch._optimizer import LowRankOptimizer
from lowrank_torch._option_types import TrionOptions, TrionSettings
from lowrank_torch._options import StepOptions


class Trion(LowRankOptimizer):
    """Muon with a low-rank update: momentum orthonormalised on the basis columns it aligns with best.

    For hidden matrices alone: vectors, scalars and every parameter of a group with ``algorithm="adamw"`` get full AdamW
    with the group's ``lr``, ``betas`` and ``eps``, so a group of these usually has a rate of its own. A matrix whose
    ``rank`` exceeds its transformed size is orthonormalised whole. Everything else is as in `DCTAdamW`.

    Parameters
    ----------
    params
        Parameters, named parameters or groups; see `matrix_groups` for groups by role.
    lr
        Learning rate: a number or a 0-d tensor, as ``momentum``, ``weight_decay``, ``betas`` and ``eps`` may be.
    momentum
        As in `lowrank_core.TrionConfig`.
    weight_decay
        Decoupled: each step first multiplies the parameter by ``1 - lr * weight_decay``.
    rank
        Basis columns the update has: an integer, or a fraction in (0, 1] of the transformed dimension.
    preset
        Name of options that go together, of `lowrank_core.TRION_PRESETS`; those given beside it come first.
    betas, eps
        Of AdamW.
    process_group
        Replicas among whom the work and the state of parameters that each of them has are shared out, as under DDP; by
        default every replica does all of it.
    **options
        Every other field of `lowrank_core.TrionConfig`, and the options of the frontend as in `DCTAdamW`, among them
        ``capturable``. Each may also be set in a group.

    Raises
    ------
    NotImplementedError, TypeError, ValueError
        For an unknown option, a bad value or parameters that cannot be stepped so, before anything has changed.

    References
    ----------
    I.-V. Modoranu et al., arXiv 2505.17967; for Muon, K. Jordan et al. (2024).
    """

    rule = TRION
    _whole_ranks = True
    _beside_defaults = ("betas",)

    @shows_options(TrionConfig, StepOptions, ShapeOptions, presets=TRION_PRESETS)
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.01,
        momentum: float = 0.85,
        weight_decay: float = 0.01,
        *,
        rank: int | float = 0.25,
        preset: TrionPresetName | None = None,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        algorithm: Literal["trion", "adamw"] = "trion",
        process_group: Any = None,
        **options: Unpack[TrionOptions],
    ) -> None:
        own = {"lr": lr, "weight_decay": weight_decay, "betas": betas, "eps": eps}
        super().__init__(
            params,
            {
                "rank": rank,
                "algorithm": algorithm,
                "momentum": momentum,
                **options,
            },
            own,
            preset,
            process_group,
        )

    @classmethod
    @shows_arguments_of(matrix_groups, __init__)
    def for_model(cls, model: nn.Module, **settings: Unpack[TrionSettings]) -> Self:
        """Return an optimizer for ``model``, its parameters grouped by role.

        Parameters
        ----------
        model
            The model.
        **settings
            Arguments of `matrix_groups` (``overrides``, ``options``, ``matrix``, ``other``, ``min_size``) and of
            `Trion` (``lr``, ``rank``, ...).

        Raises
        ------
        NotImplementedError, TypeError, ValueError
            As `matrix_groups` and `Trion`.
        """
        return for_model(cls, model, settings)
