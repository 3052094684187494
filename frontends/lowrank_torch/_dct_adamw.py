"""DCT-AdamW as a PyTorch optimizer."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lowrank_core import DCTAdamWConfig, DCTAdamWState, dct_adamw_init, dct_adamw_step
from lowrank_torch._optimizer import LowRankOptimizer


class DCTAdamW(LowRankOptimizer):
    """AdamW whose moments live on the few basis columns each gradient aligns with.

    An ordinary PyTorch optimizer: parameter groups with their own options, closures, learning-rate schedulers,
    ``state_dict`` of tensors and numbers only, hooks, gradient scaling. Gradients are never written to.

    A parameter of more than two dimensions is stepped as the matrix ``first x all the rest`` (a convolution's
    ``out x (in * kh * kw)``); the option ``batch_dims=k`` makes its ``k`` leading dimensions a stack of independent
    matrices (experts) instead. Vectors, scalars, matrices whose rank would not be below the transformed size, and
    every parameter of a group with ``algorithm="adamw"`` get full AdamW; :meth:`summary` lists who gets what and
    why.

    Parameters
    ----------
    params
        Parameters, named parameters or groups; see `matrix_groups` for groups by role.
    lr
        Learning rate: a number or a 0-d tensor.
    betas, eps
        As in `lowrank_core.DCTAdamWConfig`.
    weight_decay
        Decoupled: each step first multiplies the parameter by ``1 - lr * weight_decay``.
    rank
        Basis columns kept: an integer, or a fraction in (0, 1) of the transformed dimension.
    **options
        ``maximize``, ``batch_dims``, ``algorithm``, and every other field of `lowrank_core.DCTAdamWConfig`.
        Each may also be set in a group.

    Raises
    ------
    TypeError, ValueError
        For an unknown option or a bad value, before anything has changed.

    References
    ----------
    I.-V. Modoranu et al., arXiv 2505.17967; for AdamW, I. Loshchilov and F. Hutter, arXiv 1711.05101.
    """

    algorithm = "dct_adamw"
    _config_type = DCTAdamWConfig
    _state_type = DCTAdamWState
    _init = staticmethod(dct_adamw_init)
    _step = staticmethod(dct_adamw_step)

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        rank: int | float,
        **options: Any,
    ) -> None:
        own = {"lr": lr, "weight_decay": weight_decay}
        super().__init__(params, {"rank": rank, "betas": betas, "eps": eps, **options}, own)
