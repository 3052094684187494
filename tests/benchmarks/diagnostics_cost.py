"""What recording diagnostics adds to a step: of one that is measured, of one that is not, and of one in a hundred.

    python tests/benchmarks/diagnostics_cost.py [--rounds 200]

Three optimizers of the same parameters take turns in one process: one that records nothing, one that measures every
step, and one whose next measurement is far away. Shown are medians over the rounds of their ratios to the first, of the
process's CPU time and of the time on the wall.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lowrank_torch
import torch
from _peers import RATE
from _race import median_ratio, take_turns

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "docs" / "examples"))

EVERY = 100
#: Of `record_diagnostics`, for each of the three that take turns.
KINDS = {"off": 0, "measured": 1, "not measured": 10**9}


def matrices(count: int, *shape: int) -> list[tuple[str, torch.nn.Parameter]]:
    """Return named matrices of one shape."""
    return [(f"{k}.weight", torch.nn.Parameter(0.02 * torch.randn(shape))) for k in range(count)]


def llama() -> Any:
    """Return groups of the model of `docs/examples/pretrain_lm.py`, as that is by default."""
    from _llama import Llama

    return lowrank_torch.matrix_groups(Llama(256, 4, 4, 128))


CASES: dict[str, Callable[[], Any]] = {
    "16 of 64 x 256": lambda: matrices(16, 64, 256),
    "4 of 1024 x 1024": lambda: matrices(4, 1024, 1024),
    "Llama of 3.3M": llama,
}


def ratios(kind: Any, params: Any, rounds: int) -> dict[str, dict[str, float]]:
    """Return by clock and kind of step how much longer it takes than one of an optimizer that does not record."""
    optimizers = {name: kind(params, lr=RATE, rank=0.25) for name in KINDS}
    for name, every in KINDS.items():
        optimizers[name].record_diagnostics(every)
    for group in optimizers["off"].param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.randn_like(parameter)
    taken = take_turns({name: optimizer.step for name, optimizer in optimizers.items()}, rounds)
    return {
        clock: {name: median_ratio(own[name], own["off"]) for name in KINDS}
        for clock, own in taken.items()
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; the exit status says whether one in a hundred costs less than 3 %."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200, help="for each line (%(default)d)")
    rounds = parser.parse_args(arguments).rounds
    worst = 0.0
    for kind in (lowrank_torch.DCTAdamW, lowrank_torch.Trion):
        for label, make in CASES.items():
            for clock, found in ratios(kind, make(), rounds).items():
                measured, other = found["measured"], found["not measured"]
                whole = (measured + (EVERY - 1) * other) / EVERY - 1
                worst = max(worst, whole)
                print(
                    f"{kind.__name__:9} {label:17} {clock:5} measured {measured:.2f}, "
                    f"not measured {other:.3f}, every {EVERY}: {100 * whole:+.1f} %",
                    flush=True,
                )
    return int(worst > 0.03)


if __name__ == "__main__":
    raise SystemExit(main())
