"""The mathematics once more, slowly, in float64 NumPy, sharing nothing with the code under test."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np


def dct_basis(n: int) -> np.ndarray:
    """``Q[i, j] = c_j sqrt(2/n) cos(pi j (2i + 1) / (2n))``; the integer angle is reduced exactly."""
    sample, frequency = np.arange(n)[:, None], np.arange(n)[None, :]
    turns = (frequency * (2 * sample + 1)) % (4 * n)
    basis = math.sqrt(2 / n) * np.cos(np.pi * turns / (2 * n))
    basis[:, 0] = math.sqrt(1 / n)
    return basis


def dct(x: np.ndarray, axis: int = -1) -> np.ndarray:
    """The plain sum over cosines along ``axis``."""
    return np.moveaxis(np.moveaxis(x, axis, -1) @ dct_basis(x.shape[axis]), -1, axis)


def idct(s: np.ndarray, axis: int = -1) -> np.ndarray:
    """The inverse: the basis is orthonormal."""
    return np.moveaxis(np.moveaxis(s, axis, -1) @ dct_basis(s.shape[axis]).T, -1, axis)


def best_columns(scores: np.ndarray, rank: int) -> np.ndarray:
    """The ``rank`` best of a vector of scores, ascending: ties to the lower index, NaN last."""
    order = sorted(
        range(len(scores)),
        key=lambda j: (math.isnan(scores[j]), -scores[j] if scores[j] == scores[j] else 0.0, j),
    )
    return np.array(sorted(order[:rank]), dtype=np.int64)


@dataclass
class DCTAdamW:
    """DCT-AdamW of one matrix as a loop over columns; ``step`` returns the full direction."""

    rank: int
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    score: str = "l2"
    refresh_every: int = 1
    side: str = "auto"
    residual: str = "sign"
    bias_correction: str = "step"
    count: int = 0
    columns: list[int] = field(default_factory=list)
    first: dict[int, np.ndarray] = field(default_factory=dict)
    second: dict[int, np.ndarray] = field(default_factory=dict)
    ages: dict[int, int] = field(default_factory=dict)
    feedback: np.ndarray | None = None
    #: Smallest relative distance, over all refreshes, from the last column chosen to the first left out.
    margin: float = math.inf

    def step(self, gradient: np.ndarray) -> np.ndarray:
        m, n = gradient.shape
        left = self.side == "left" or (self.side == "auto" and n > m)
        # Turned so that the transformed dimension is always the last one.
        g = np.asarray(gradient, dtype=np.float64)
        g = g.T if left else g
        if self.feedback is not None:
            g = g + self.feedback
        q = dct_basis(g.shape[1])
        self.count += 1
        if self.count == 1 or self.count % self.refresh_every == 0:
            self._choose(g @ q, g.shape[0])
        beta1, beta2 = self.betas
        direction = np.zeros_like(g)
        kept = np.zeros_like(g)
        for j in self.columns:
            a = g @ q[:, j]
            self.ages[j] += 1
            self.first[j] = beta1 * self.first[j] + (1 - beta1) * a
            self.second[j] = beta2 * self.second[j] + (1 - beta2) * a * a
            count = self.ages[j] if self.bias_correction == "column" else self.count
            m_hat = self.first[j] / (1 - beta1**count)
            v_hat = self.second[j] / (1 - beta2**count)
            direction += np.outer(m_hat / (np.sqrt(v_hat) + self.eps), q[:, j])
            kept += np.outer(a, q[:, j])
        if self.residual == "error_feedback":
            self.feedback = g - kept
        if self.residual == "sign" and self.rank < g.shape[1]:
            direction += 0.2 * np.sign(g - kept)
        return direction.T if left else direction

    def _choose(self, coefficients: np.ndarray, across: int) -> None:
        power = 1 if self.score == "l1" else 2
        scores = (np.abs(coefficients) ** power).sum(axis=0)
        chosen = [int(j) for j in best_columns(scores, self.rank)]
        if self.rank < len(scores):
            ordered = np.sort(scores)[::-1]
            gap = (ordered[self.rank - 1] - ordered[self.rank]) / ordered[self.rank - 1]
            self.margin = min(self.margin, float(gap))
        zero = np.zeros(across)
        self.first = {j: self.first.get(j, zero) for j in chosen}
        self.second = {j: self.second.get(j, zero) for j in chosen}
        self.ages = {j: self.ages.get(j, 0) for j in chosen}
        self.columns = chosen


def dct_adamw(
    gradients: list[np.ndarray], **options: object
) -> tuple[list[np.ndarray], list[np.ndarray], float]:
    """Directions and chosen columns after each step, leading dimensions taken one matrix at a time.

    Also the smallest margin of any choice: where it is far above rounding, every library must choose alike.
    """
    batch = gradients[0].shape[:-2]
    runs = {place: DCTAdamW(**options) for place in np.ndindex(batch)}  # type: ignore[arg-type]
    directions, columns = [], []
    for gradient in gradients:
        direction = np.zeros(gradient.shape)
        chosen: dict[tuple[int, ...], list[int]] = {}
        for place, run in runs.items():
            direction[place] = run.step(gradient[place])
            chosen[place] = run.columns
        rank = len(next(iter(chosen.values())))
        table = np.array([chosen[place] for place in np.ndindex(batch)], dtype=np.int64)
        directions.append(direction)
        columns.append(table.reshape(*batch, rank))
    return directions, columns, min(run.margin for run in runs.values())
