"""DCT-AdamW as a PyTorch optimizer."""

from __future__ import annotations

from typing import Any, Literal, Self, Unpack

from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from lowrank_core import DCTAdamWConfig
from lowrank_core.option_types import PresetName
from lowrank_core.rules.known import DCT_ADAMW
from lowrank_core.rules.options import shows_options
from lowrank_core.rules.presets import PRESETS
from lowrank_torch._for_model import for_model, shows_arguments_of
from lowrank_torch._groups import matrix_groups
from lowrank_torch._matrices import ShapeOptions
from lowrank_torch._optimizer import LowRankOptimizer
from lowrank_torch._option_types import DCTAdamWOptions, DCTAdamWSettings
from lowrank_torch._options import StepOptions


class DCTAdamW(LowRankOptimizer):
    """AdamW whose moments live on the few basis columns each gradient aligns with.

    An ordinary PyTorch optimizer: parameter groups with their own options, closures, learning-rate schedulers,
    ``state_dict`` of tensors and numbers only, hooks, gradient scaling. Gradients are never written to.

    A parameter of more than two dimensions is stepped as the matrix ``first x all the rest`` (a convolution's
    ``out x (in * kh * kw)``); the option ``batch_dims=k`` makes its ``k`` leading dimensions a stack of independent
    matrices (experts) instead. Vectors, scalars, matrices whose rank would not be below the transformed size, and
    every parameter of a group with ``algorithm="adamw"`` get full AdamW; :meth:`~LowRankOptimizer.summary` lists who
    gets what and why.

    Parameters
    ----------
    params
        Parameters, named parameters or groups; see `matrix_groups` for groups by role.
    lr
        Learning rate: a number or a 0-d tensor, as ``weight_decay``, ``betas`` and ``eps`` may be.
    betas, eps
        As in `lowrank_core.DCTAdamWConfig`.
    weight_decay
        Decoupled: each step first multiplies the parameter by ``1 - lr * weight_decay``.
    rank
        Basis columns kept: an integer, or a fraction in (0, 1] of the transformed dimension.
    preset
        Name of options that go together, of `lowrank_core.PRESETS`; those given beside it come first. ``"factored"``
        keeps AdamW's rate; ``None`` is the plain rule, the defaults of `lowrank_core.DCTAdamWConfig`.
    process_group
        Replicas among whom the work and the state of parameters that each of them has are shared out, as under DDP; by
        default every replica does all of it.
    **options
        Every other field of `lowrank_core.DCTAdamWConfig`, and

        - ``algorithm``: ``"dct_adamw"`` or ``"adamw"``;
        - ``maximize``: go up instead of down;
        - ``batch_dims``, ``split_sizes``, ``num_heads``: which matrices a parameter consists of. The rows of a fused
          projection are cut into parts of ``split_sizes``, those of each part into ``num_heads`` (one number, or one
          for each part) matrices of equal height, each with columns of its own;
        - ``foreach``: step small matrices of the same shape together, stacked, ``True`` by default. A choice of speed
          alone, up to rounding;
        - ``capturable``: steps may be captured in CUDA graphs. The step count is a 0-d tensor on the device of the
          parameter, state is written in place, no number is read, and options that are 0-d tensors there are read at
          every replay. With ``refresh_every`` above 1 the choice of columns is computed at every step all the same. Do
          a step before the capture, and capture again after state has been loaded. For whole parameters, fixed bases
          and ``nonfinite="propagate"``;
        - ``stochastic_rounding``: write parameters narrower than float32 rounded at random, with odds by distance,
          so that small updates and weight decay are not lost;
        - ``nonfinite``: what is done about a gradient that holds NaN or infinity. ``"propagate"`` steps on it,
          ``"skip"`` leaves everything as it is and counts in ``skipped_steps``, ``"raise"`` is an error that names the
          parameter, before anything has changed. The last two wait for the device at every step.

        Each may also be set in a group.

    Raises
    ------
    NotImplementedError, TypeError, ValueError
        For an unknown option, a bad value or parameters that cannot be stepped so, before anything has changed.

    References
    ----------
    I.-V. Modoranu et al., arXiv 2505.17967; for AdamW, I. Loshchilov and F. Hutter, arXiv 1711.05101.
    """

    rule = DCT_ADAMW
    _reuses_memory = True

    @shows_options(DCTAdamWConfig, StepOptions, ShapeOptions, presets=PRESETS)
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        rank: int | float = 0.25,
        preset: PresetName | None = "factored",
        algorithm: Literal["dct_adamw", "adamw"] = "dct_adamw",
        process_group: Any = None,
        **options: Unpack[DCTAdamWOptions],
    ) -> None:
        own = {"lr": lr, "weight_decay": weight_decay}
        super().__init__(
            params,
            {
                "rank": rank,
                "algorithm": algorithm,
                "betas": betas,
                "eps": eps,
                **options,
            },
            own,
            preset,
            process_group,
        )

    @classmethod
    @shows_arguments_of(matrix_groups, __init__)
    def for_model(cls, model: nn.Module, **settings: Unpack[DCTAdamWSettings]) -> Self:
        """Return an optimizer for ``model``, its parameters grouped by role.

        Parameters
        ----------
        model
            The model.
        **settings
            Arguments of `matrix_groups` (``overrides``, ``options``, ``matrix``, ``other``, ``min_size``) and of
            `DCTAdamW` (``lr``, ``rank``, ...).

        Raises
        ------
        NotImplementedError, TypeError, ValueError
            As `matrix_groups` and `DCTAdamW`.
        """
        return for_model(cls, model, settings)
