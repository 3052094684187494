"""The choice of columns inside a step: by score or by running energy, greedy or sampled, with or without inertia."""

from __future__ import annotations

from lowrank_core._typing import Array, Scalar
from lowrank_core.columns import top_columns
from lowrank_core.ops import Ops
from lowrank_core.random import fold, uniform

SELECTIONS = ("top", "sampled")


def choose_columns(
    scores: Array,
    current: Array,
    rank: int,
    ops: Ops,
    *,
    hysteresis: Scalar = 0.0,
    key: Array | None = None,
    step: int | Array = 0,
) -> Array:
    """Return the chosen columns ``(..., r)`` int32, ascending, from scores ``(..., n)``.

    ``hysteresis`` multiplies the scores of the ``current`` columns by one plus itself, so that a challenger has to be
    that much better. With a ``key`` (int32, one for each matrix), columns are sampled without replacement with odds
    by score: the ``r`` largest of ``log(score) + Gumbel noise``, the noise a function of key and step.

    References
    ----------
    W. Kool, H. van Hoof, M. Welling, "Stochastic beams and where to find them", arXiv 1903.06059, for sampling
    without replacement by Gumbel noise; for its use on gradient subspaces, GoLore (arXiv 2410.11289) and SARA
    (arXiv 2502.01378).
    """
    xp = ops.xp
    if not isinstance(hysteresis, (int, float)) or hysteresis > 0:
        # The columns that a state begins with were never chosen.
        _, held = ops.find(current, scores.shape[-1])
        held = held & (step > 1)
        scores = scores * (1 + hysteresis * ops.astype(held, scores.dtype))
    if key is not None:
        draws = uniform(fold(key, step), scores.shape[-1], ops, scores)
        draws = xp.reshape(draws, scores.shape)
        # log of a score of zero is -inf: such a column is taken only when nothing else is left.
        tiny = xp.where(scores > 0, scores, xp.full_like(scores, 1e-37))
        scores = xp.where(xp.isnan(scores), scores, xp.log(tiny) - xp.log(-xp.log(draws)))
    return top_columns(scores, rank, ops)
