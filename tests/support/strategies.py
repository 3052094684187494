"""What the property tests draw: few distinct shapes (each costs JAX a compilation), many kinds of data."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

SHAPES = ((1, 1), (1, 6), (6, 1), (5, 5), (4, 9), (9, 4), (2, 3, 8, 5))
KINDS = ("normal", "integers", "sparse", "low rank", "scaled columns")


class Case(NamedTuple):
    """A matrix or a stack of matrices, the axis to transform, and how many columns to keep."""

    matrix: np.ndarray
    axis: int
    rank: int

    @property
    def size(self) -> int:
        return self.matrix.shape[self.axis]

    @property
    def batch(self) -> tuple[int, ...]:
        return self.matrix.shape[:-2]


def data(kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Numbers of one kind: ties come from integers and zeros, wide ranges from scaled columns."""
    match kind:
        case "integers":
            return rng.integers(-2, 3, shape).astype(np.float64)
        case "sparse":
            return np.where(rng.random(shape) < 0.2, rng.standard_normal(shape), 0.0)
        case "low rank":
            left = rng.standard_normal((*shape[:-1], 1))
            return left @ rng.standard_normal((*shape[:-2], 1, shape[-1]))
        case "scaled columns":
            return rng.standard_normal(shape) * 10.0 ** rng.integers(-4, 5, shape[-1])
    return rng.standard_normal(shape)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A matrix with everything that a projection of it needs to be told."""
    shape = draw(st.sampled_from(SHAPES))
    axis = draw(st.sampled_from((-1, -2)))
    size = shape[axis]
    rank = draw(st.sampled_from(sorted({1, (size + 1) // 2, size})))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return Case(data(draw(st.sampled_from(KINDS)), shape, rng), axis, rank)


def choice(case: Case, seed: int = 0) -> np.ndarray:
    """Ascending indices ``(..., rank)`` without repetition, different in every matrix of a stack."""
    rng = np.random.default_rng([seed, case.size, case.rank])
    chosen = [
        np.sort(rng.permutation(case.size)[: case.rank]) for _ in range(int(np.prod(case.batch)))
    ]
    return np.stack(chosen).reshape(*case.batch, case.rank)
