"""Long runs of small matrices: in 20,000 steps loss stays down, state as large as it was, memory does not grow.

Each minimises the distance to a matrix from noisy gradients, so that there is something to drift away from.
"""

from __future__ import annotations

import gc
import math
import resource
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from campaign import main, run
from lowrank_torch import DCTAdamW, Trion

pytestmark = pytest.mark.slow

RUNS: dict[str, tuple[type, dict[str, Any]]] = {
    "sign": (DCTAdamW, {}),
    "discard": (DCTAdamW, {"preset": None, "residual": "discard", "refresh_every": 10}),
    "error feedback": (DCTAdamW, {"preset": None, "residual": "error_feedback"}),
    "feedback in codes": (
        DCTAdamW,
        {"preset": None, "residual": "error_feedback", "feedback_bits": 8},
    ),
    "scaled": (DCTAdamW, {"preset": None, "residual": "scaled"}),
    "normalized": (DCTAdamW, {"preset": None, "residual": "normalized"}),
    "gentle": (DCTAdamW, {"preset": None, "bias_correction": "gentle", "score_decay": 0.9}),
    "sampled": (DCTAdamW, {"preset": None, "selection": "sampled"}),
    "power": (DCTAdamW, {"preset": None, "basis": "power", "refresh_every": 10}),
    "bfloat16": (DCTAdamW, {"preset": None, "state_dtype": "bfloat16"}),
    "float16": (DCTAdamW, {"preset": None, "state_dtype": "float16"}),
    "factored": (DCTAdamW, {"preset": "factored"}),
    "tiny": (DCTAdamW, {"preset": "tiny"}),
    "trion": (Trion, {}),
    "trion in codes": (Trion, {"momentum_bits": 4}),
}
LENGTH, SHORT = 20_000, 300


def long_run(name: str, length: int) -> str | None:
    """Train for ``length`` steps; say what is wrong at the end."""
    kind, options = RUNS[name]
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(16, 12, generator=generator)
    weight = torch.nn.Parameter(torch.zeros(16, 12))
    optimizer = kind([weight], lr=0.01, weight_decay=0.0, rank=4, **options)
    losses, sizes, memory = [], [], []
    for step in range(length):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / length) + 1e-4
        noise = torch.randn(16, 12, generator=generator)
        weight.grad = weight.detach() - target + 0.1 * noise
        optimizer.step()
        if step % max(1, length // 10) == 0 or step == length - 1:
            losses.append(float((weight.detach() - target).square().mean()))
            tensors = [v for v in optimizer.state[weight].values() if hasattr(v, "nbytes")]
            sizes.append(sum(v.nbytes for v in tensors))
            gc.collect()
            memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
            if not all(v.isfinite().all() for v in tensors if v.is_floating_point()):
                return f"{name}: state is not finite after {step} steps"
    # A short run is on its way only.
    allowed = (0.05 if length >= 5000 else 0.8) * losses[0]
    if not math.isfinite(losses[-1]) or losses[-1] > allowed:
        return f"{name}: loss {losses[0]:.3f} -> {losses[-1]:.3f}"
    if len(set(sizes)) > 1:
        return f"{name}: state of {sizes} bytes"
    # Kilobytes, after a tenth of the run, when all that is kept has been made.
    if memory[-1] - memory[1] > 8192:
        return f"{name}: memory grew by {memory[-1] - memory[1]} kB"
    if optimizer.state[weight]["step"] != length:
        return f"{name}: {optimizer.state[weight]['step']} steps"
    return None


def long_runs(count: int, seed: int) -> Iterator[Any]:
    """All runs, of ``count`` steps each."""
    for name in RUNS:
        yield long_run(name, count)
    yield {"steps": count}


def test_long_runs():
    outcome = run(long_runs, SHORT)
    assert outcome.tried == len(RUNS) == 15
    assert not outcome.failures


if __name__ == "__main__":
    main(long=(long_runs, LENGTH))
