"""How many times fused AdamW's time a step on one large matrix takes on a CPU, with Numba's panels and without.

    python tests/benchmarks/cpu_step.py [--size 4096] [--columns 4096] [--threads 1] [--rounds 9] [--only Trion]

All take turns in one process. Shown are the medians over the rounds of their ratios to AdamW's step, of the process's
CPU time and of the time on the wall, and the same of the transform beside PyTorch's real FFT, written to memory. With
``--only`` those take turns whose names begin so.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import lowrank_torch
import torch
from _peers import RATE
from _race import median_ratio, take_turns
from lowrank_backends import _torch_panels
from torch import Tensor

import lowrank_core

# Rows that PyTorch's FFT takes at a time: what it makes of them fits a core's cache.
_ROWS = 64
OPTIONS: dict[str, dict[str, Any]] = {
    "residual dropped": {"residual": "discard"},
    "sign of the residual": {"residual": "sign"},
    "the default": {"preset": "factored"},
    "the default, columns every step": {"preset": "factored", "refresh_every": 1},
    "a first moment in 8 bits": {"preset": "tiny"},
    "dropped, columns every 50 steps": {"residual": "discard", "refresh_every": 50},
    "dropped, rank 512": {"residual": "discard", "rank": 512},
    "dropped, rank 32": {"residual": "discard", "rank": 32},
}
WITHOUT = ", without Numba"
#: Ranks of Trion.
TRION: dict[str, int | float] = {"Trion": 0.25, "Trion, rank 512": 512, "Trion, rank 128": 128}


def matrix(shape: tuple[int, int]) -> torch.nn.Parameter:
    """Return a parameter with a gradient."""
    parameter = torch.nn.Parameter(0.02 * torch.randn(shape))
    parameter.grad = torch.randn(shape)
    return parameter


def without_panels(work: Callable[[], object]) -> Callable[[], object]:
    """Return ``work`` as it is done where Numba is not installed."""

    def done() -> None:
        with patch.object(_torch_panels, "LEAST", 2**62):
            work()

    return done


def bare_fft(x: Tensor, out: Tensor) -> None:
    """Write the real FFT of the rows of ``x``."""
    for source, target in zip(x.split(_ROWS), out.split(_ROWS), strict=True):
        target.copy_(torch.fft.rfft(source))


def cases(shape: tuple[int, int], only: str = "") -> dict[str, Callable[[], object]]:
    """Return what takes turns, by name: of the optimizers AdamW, and those whose names begin with ``only``."""
    turns: dict[str, Callable[[], object]] = {
        "AdamW": torch.optim.AdamW([matrix(shape)], lr=RATE, fused=True).step
    }
    makers: dict[str, Callable[[], torch.optim.Optimizer]] = {
        name: partial(
            lambda own: lowrank_torch.DCTAdamW([matrix(shape)], lr=RATE, **own),
            {"rank": 0.25, "preset": None, **options},
        )
        for name, options in OPTIONS.items()
    }
    for name, rank in TRION.items():
        makers[name] = partial(
            lambda own: lowrank_torch.Trion([matrix(shape)], lr=RATE, rank=own), rank
        )
    for name, make in makers.items():
        if not name.startswith(only):
            continue
        turns[name] = make().step
        turns[name + WITHOUT] = without_panels(make().step)
    x = torch.randn(shape)
    out = torch.empty(shape[0], shape[1] // 2 + 1, dtype=torch.complex64)
    turns["real FFT"] = lambda: bare_fft(x, out)
    turns["dct"] = lambda: lowrank_core.dct(x, method="fft")
    turns["dct" + WITHOUT] = without_panels(turns["dct"])
    return turns


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=4096, help="rows")
    parser.add_argument("--columns", type=int, help="as many as rows, unless told otherwise")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    shape = (given.size, given.columns or given.size)
    turns = cases(shape, given.only)
    taken = take_turns(turns, given.rounds)
    panels = "there" if _torch_panels.launches_for(torch.ones(shape)) else "not there"
    print(f"{shape[0]} x {shape[1]}, {given.threads} threads, Numba {panels}")
    for name in turns:
        base = "real FFT" if name.startswith("dct") else "AdamW"
        ratios = {clock: median_ratio(own[name], own[base]) for clock, own in taken.items()}
        line = f"{name:48s} over {base}: CPU {ratios['CPU']:6.2f} x, wall {ratios['wall']:6.2f} x"
        if (plain := name + WITHOUT) in turns:
            ratio = median_ratio(taken["wall"][name], taken["wall"][plain])
            line += f"; over the same without Numba: wall {ratio:.2f} x"
        print(line)


if __name__ == "__main__":
    main()
