"""Worst errors of the core's functions in float32 against the same in float64, over sizes, shapes and libraries."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from campaign import main, run

import lowrank_core as lc

pytestmark = pytest.mark.slow

FEW, MANY = 60, 600
#: Largest difference allowed, relative to the largest number of what is right: the worst that a first version came to.
BOUNDS = {
    "dct": 2.2e-6,
    "idct": 2.2e-6,
    "project": 3.0e-6,
    "lift": 1.0e-6,
    "column_scores": 3.0e-6,
    "orthogonalize": 2.0e-4,
}


def results(x: np.ndarray, indices: np.ndarray, way: str, axis: int, xp: Any) -> dict[str, Any]:
    """What every function makes of a matrix."""
    array, chosen = xp.asarray(x), xp.asarray(indices)
    options = {"axis": axis, "method": way}
    low_rank = array[:, : len(indices)] if axis == -1 else array[: len(indices), :]
    return {
        "dct": lc.dct(array, **options),
        "idct": lc.idct(array, **options),
        "project": lc.project(array, chosen, **options),
        "lift": lc.lift(low_rank, chosen, x.shape[axis], **options),
        "column_scores": lc.column_scores(array, axis=axis),
        "orthogonalize": lc.orthogonalize(array),
    }


def bounds(count: int, seed: int) -> Iterator[Any]:
    draw = random.Random(seed)
    worst = dict.fromkeys(BOUNDS, 0.0)
    for _ in range(count):
        shape = tuple(draw.choice([3, 17, 64, 100, 255, 256, 500, 768]) for _ in range(2))
        axis, way = draw.choice([-1, -2]), draw.choice(["matmul", "fft"])
        xp = draw.choice([np, torch])
        size = shape[axis]
        generator = np.random.default_rng(draw.randrange(2**32))
        x = generator.standard_normal(shape).astype(np.float32) * np.float32(
            10.0 ** draw.randint(-30, 30)
        )
        rank = draw.randint(1, min(shape))
        indices = np.sort(generator.choice(size, min(rank, size), replace=False)).astype(np.int32)
        found = results(x, indices, way, axis, xp)
        wanted = results(x.astype(np.float64), indices, way, axis, np)
        bad = []
        for name, right in wanted.items():
            error = np.abs(np.asarray(found[name], np.float64) - right).max()
            error = float(error / np.abs(right).max())
            worst[name] = max(worst[name], error)
            if not error <= BOUNDS[name]:
                bad.append(f"{name} of {shape} by {way} along {axis}: {error:.2e}")
        yield "; ".join(bad) or None
    yield {"worst": worst, "bounds": BOUNDS}


def test_errors_are_within_their_bounds():
    outcome = run(bounds, FEW)
    assert outcome.tried == FEW
    assert not outcome.failures


if __name__ == "__main__":
    main(bounds=(bounds, MANY))
