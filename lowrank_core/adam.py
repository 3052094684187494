"""Adam's two moments and the direction they give, elementwise in whatever coordinates they are kept.

References
----------
D. P. Kingma and J. Ba, "Adam: a method for stochastic optimization", arXiv 1412.6980, algorithm 1.
"""

from __future__ import annotations

import math

from lowrank_core._typing import Array, Scalar
from lowrank_core.ops import Ops


def decayed_weight(beta: Scalar, count: Scalar, ops: Ops, like: Array) -> Scalar:
    """Return ``1 - beta**count``, the total weight of a running mean after ``count`` entries, without cancellation.

    Host numbers give a host number; an array ``count`` (an age for each column, a traced step count) or an array
    ``beta`` gives an array in the dtype of ``like``.
    """
    if isinstance(beta, (int, float)) and isinstance(count, int):
        return -math.expm1(count * math.log(beta)) if beta > 0 else 1.0
    xp = ops.xp
    # A mean without memory has weight one after any entry; log(0) would make NaN of it at count 0.
    host = isinstance(beta, (int, float))
    log_beta = math.log(max(beta, 1e-30)) if host else xp.log1p(ops.as_scalar(beta, like) - 1)
    return -xp.expm1(ops.as_scalar(count, like) * log_beta)


def update_moments(
    gradient: Array,
    first: Array,
    second: Array,
    betas: tuple[Scalar, Scalar],
    ops: Ops,
    *,
    own: bool = False,
) -> tuple[Array, Array]:
    """Return the running means of ``gradient`` and of its square: ``m <- b1 m + (1 - b1) g``, likewise ``v``.

    With ``own`` the moments given are the caller's own and not used again.
    """
    beta1, beta2 = betas
    return (
        ops.running_mean(first, gradient, beta1, squares=False, own=own),
        ops.running_mean(second, gradient, beta2, squares=True, own=own),
    )


def adam_direction(
    first: Array,
    second: Array,
    weights: tuple[Scalar, Scalar],
    eps: Scalar,
    ops: Ops,
) -> Array:
    """Return ``m_hat / (sqrt(v_hat) + eps)``, the moments divided by their ``weights`` (see `decayed_weight`)."""
    return ops.divide_by_root(first, second, weights, eps)
