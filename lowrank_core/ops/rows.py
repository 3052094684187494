"""All that follows the choice of columns in a step of DCT-AdamW, in which every row is stepped by itself.

An adapter that has a kernel for it reads a gradient once and writes the parameter once (`PassedRows.step`); here
it is said in plain steps.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from lowrank_core._interrupts import at_once
from lowrank_core._typing import Scalar

#: What can become of the coefficients outside the chosen columns, by the names of residual policies.
ROW_RESTS = ("discard", "sign", "normalized", "bounded")


class RowStep(NamedTuple):
    """What rows need besides themselves, of one matrix or of stacked ones ``(...)``, in the dtype of arithmetic."""

    #: The chosen columns, ``(..., r)`` int32, ascending.
    indices: Any
    #: Where the moments of each have stood, ``(..., r)`` int32, -1 for one that starts at zero; ``None`` if all stay.
    before: Any
    #: What is added to the root of the second moment, ``(..., r)``, in the gradient's units; infinite for an empty
    #: place, whose step is zero.
    eps: Any
    #: Decay rates of the two moments.
    betas: tuple[Scalar, Scalar]
    #: What the moments are divided by, and what the mean squares of rows are.
    weights: tuple[Scalar, Scalar, Scalar]
    #: The policy for all other columns, one of `ROW_RESTS`.
    rest: str
    #: Its share of the step, ``(...)``, dimensionless.
    scale: Any
    #: By column, ``(..., n)``. ``"normalized"``: what its coefficients are multiplied by. With a factored second
    #: moment: the column's share of its root, -1 where there is nothing but rounding. Else ``None``.
    column: Any
    #: Of the chosen columns of a factored second moment the same, ``(..., r)``; ``None`` where it is not factored.
    shares: Any
    #: Decay rate of the mean squares of rows.
    decay: Scalar
    #: What the root of a factored second moment is added to outside the chosen columns, in the gradient's units.
    plain_eps: Scalar
    #: The number of this step, from 1: narrow moments are rounded at random by it.
    step: Any

    def of(self, place: int) -> RowStep:
        """Return what the rows of entry ``place`` of the first stacked dimension need."""
        names = ("indices", "before", "eps", "scale", "column", "shares")
        given = ((name, getattr(self, name)) for name in names)
        return self._replace(**{name: x[place, ...] for name, x in given if x is not None})


class RowCodes(NamedTuple):
    """Numbers of rows as codes of 8 bits, ``minimum + scale * code``, as `lowrank_core.Quantized` has them."""

    #: ``(..., m, r)`` uint8.
    codes: Any
    #: One for each block of 256 numbers, float32: of a row, ``(..., m, blocks)``, or of a column, ``(..., blocks, r)``.
    minimum: Any
    scale: Any
    #: Whether blocks are of columns: rows are then the columns of the matrix that is kept.
    by_column: bool


class RowMoments(NamedTuple):
    """The state of rows."""

    #: ``(..., m, r)``, of the columns in the order they stood in; or `RowCodes`, which plain steps do not take.
    first: Any
    #: The same; ``None`` where it is factored.
    second: Any
    #: Mean squares of rows, ``(..., m, 1)``; ``None`` where it is not.
    rows: Any


class RowWrite(NamedTuple):
    """How a step is written into a parameter: ``W <- (1 - lr * weight_decay) W - lr * update``."""

    lr: Scalar
    weight_decay: Scalar
    #: Key of the draws by which a parameter narrower than the arithmetic is rounded; ``None`` for to nearest.
    key: int | None = None
    #: Gets ``(*name, row)`` when rows from ``row`` on have been written, with nothing in between; rows that are in it
    #: are passed over. ``None`` where nobody asks.
    done: set[Any] | None = None
    name: tuple[Any, ...] = ()

    def once(self, row: int, work: Callable[[], object]) -> None:
        """Do ``work``, which writes rows from ``row`` on, and note it; pass over it if it has been noted."""
        if self.done is None:
            work()
        elif (block := (*self.name, row)) not in self.done:
            at_once((work, partial(self.done.add, block)))


def step_rows(
    parameter: Any, gradient: Any, moments: RowMoments, job: RowStep, write: RowWrite, ops: Any
) -> tuple[Any, RowMoments]:
    """Return what `PassedRows.step` returns for a matrix.

    With ``S = G Q``, ``a = S_I``, and ``m``, ``v`` carried to the columns ``I``: ``m <- b1 m + (1 - b1) a``,
    ``v <- b2 v + (1 - b2) a^2``, ``u_I = (m / w1) / (sqrt(v / w2) + eps)`` and elsewhere what the policy says of ``S``;
    then ``W <- (1 - lr * weight_decay) W - lr (u Q^T)``.
    """
    xp = ops.xp
    S = ops.dct(gradient, axis=-1)
    a = ops.take(S, job.indices, axis=-1)
    first, second, energy = moments
    if job.before is not None:
        stayed = job.before >= 0
        position = xp.where(stayed, job.before, xp.zeros_like(job.before))
        first = ops.take_or_zero(first, position, stayed, axis=-1)
        if second is not None:
            second = ops.take_or_zero(second, position, stayed, axis=-1)
    eps, root = job.eps[..., None, :], None
    if second is not None:
        weights = job.weights[:2]
        factor, first, second = ops.adam_update(a, (first, second), job.betas, weights, eps)
    else:
        square = xp.mean(S * S, axis=-1, keepdims=True)
        energy = energy * job.decay + square * (1 - job.decay)
        root = xp.sqrt(energy / job.weights[2])
        first = first * job.betas[0] + a * (1 - job.betas[0])
        factor = first / job.weights[0] / (root * job.shares[..., None, :] + eps)
    u = ops.put_over(_outside(S, root, job, ops), factor, job.indices, axis=-1)
    update = ops.idct(u, axis=-1)
    if job.rest == "sign":
        left = ops.idct(ops.put_over(S, xp.zeros_like(a), job.indices, axis=-1), axis=-1)
        update = update + xp.sign(left) * job.scale[..., None, None]
    keep = 1 - write.lr * write.weight_decay
    return parameter * keep - update * write.lr, RowMoments(first, second, energy)


def _outside(S: Any, root: Any, job: RowStep, ops: Any) -> Any:
    """Return what the coefficients ``S`` outside the chosen columns become, before the inverse transform."""
    xp = ops.xp
    if job.rest == "normalized":
        return S * job.column[..., None, :]
    if job.rest == "bounded":
        shares = job.column[..., None, :]
        real = shares >= 0
        divisor = root * xp.where(real, shares, xp.ones_like(shares)) + job.plain_eps
        # Where a row is all zeros so is its root.
        divisor = xp.where(divisor > 0, divisor, xp.ones_like(divisor))
        bounded = ops.bounded(S, divisor, job.scale[..., None, None])
        return xp.where(real, bounded, xp.zeros_like(bounded))
    return xp.zeros_like(S)
