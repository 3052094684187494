"""Peak memory of a step: the high-water mark of a fresh process, above parameters, gradients and state.

    python tests/benchmarks/part_memory.py NAME ROWSxCOLUMNS[,...] RANK

is that process: it measures one optimizer and prints what it found as JSON.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

from _child import found_by
from _race import Effort
from _tables import Column, Findings, Table, Target

EXTRA = 1.5
SHAPES, RANK = ((4096, 4096), (4096, 4096), (1024, 4096)), 512
QUICK_SHAPES, QUICK_RANK = ((64, 64),), 16
STEPS = 3
#: Beside the peers: options of the library's own that hold more.
OPTIONS: dict[str, dict[str, Any]] = {
    "DCT-AdamW, error feedback": {"residual": "error_feedback"},
    "DCT-AdamW, error feedback in 8 bits": {"residual": "error_feedback", "feedback_bits": 8},
    "DCT-AdamW, normalised residual": {"residual": "normalized"},
}
#: Lets the GNU C library keep no freed memory, which otherwise counts as if it were in use.
RETURNING = {"MALLOC_TRIM_THRESHOLD_": "131072"}
_PAGES = resource.getpagesize()


def resident() -> int:
    """Return the bytes this process has in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGES


def high_water() -> int:
    """Return the most bytes this process ever had in memory."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def give_back() -> None:
    """Return what is free in this process to the system and forget the high water, so that a step is seen alone."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # not the GNU C library
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def measure(name: str, shapes: tuple[tuple[int, int], ...], rank: int) -> dict[str, float | str]:
    """Return bytes of state and of what the steps held beyond all that stays."""
    import torch
    from _peers import PEERS, MissingPackageError
    from _steps import state_bytes
    from lowrank_torch import DCTAdamW
    from torch.nn import Parameter

    parameters = []
    for shape in shapes:
        # In place: nothing as large as a matrix is made that is not kept.
        parameters.append(Parameter(torch.empty(shape)))
        with torch.no_grad():
            parameters[-1].normal_()
        parameters[-1].grad = torch.empty(shape).normal_()
    side = min(1024, *(min(shape) for shape in shapes))
    small = Parameter(torch.zeros(side, side))
    small.grad = torch.ones(side, side)

    def made(given: list[Parameter], columns: int) -> torch.optim.Optimizer:
        if name in OPTIONS:
            return DCTAdamW(given, lr=1e-6, rank=columns, **{"preset": None, **OPTIONS[name]})
        return PEERS[name].make(given, columns)

    try:
        # What libraries load, and keep for their threads, with the first steps is not the step's.
        warm = made([small], 8)
    except MissingPackageError as error:
        return {"remark": str(error)}
    for _ in range(2):
        warm.step()
    del warm, small
    give_back()
    optimizer = made(parameters, rank)
    before = resident()
    for _ in range(STEPS):
        optimizer.step()
    state = state_bytes(optimizer)
    largest = max(parameter.numel() * parameter.element_size() for parameter in parameters)
    return {"state": state, "extra": max(0, high_water() - before - state), "largest": largest}


def child(
    name: str, shapes: tuple[tuple[int, int], ...], rank: int, **environment: str
) -> dict[str, float | str]:
    """Return what `measure` says in a fresh process."""
    sizes = ",".join(f"{rows}x{columns}" for rows, columns in shapes)
    found: dict[str, float | str] = found_by(
        __file__, name, sizes, rank, environment=os.environ | environment
    )
    return found


def run(effort: Effort, *, quick: bool) -> Findings:
    """Measure every optimizer, each in a process of its own."""
    from _peers import ADAMW, DCT_ADAMW, DEFAULT, GALORE, MUON, PAPER, SIGN, TRION

    if not sys.platform.startswith("linux"):
        raise RuntimeError("peak memory is read from /proc, which this system does not have")
    shapes, rank = (QUICK_SHAPES, QUICK_RANK) if quick else (SHAPES, RANK)
    names = [ADAMW, DEFAULT, DCT_ADAMW, SIGN, *OPTIONS, TRION, PAPER, GALORE, MUON]
    if quick:
        names = [ADAMW, DCT_ADAMW, GALORE]
    listed = ", ".join(f"{rows} x {columns}" for rows, columns in shapes)
    table = Table(
        "memory",
        f"Peak memory of a step on matrices of {listed}, rank {rank}",
        (
            Column("optimizer"),
            Column("state, MB", "MB"),
            Column("extra at the peak, MB", "MB"),
            Column("over the largest matrix", "x"),
            Column("held, over it", "x"),
            Column("remark"),
        ),
        note=f"High-water mark of {STEPS} steps in a fresh process, above parameters, gradients and state; held: the "
        "same with `MALLOC_TRIM_THRESHOLD_=131072`, where the C library keeps nothing of what is freed.",
    )
    targets = []
    for name in names:
        found = child(name, shapes, rank)
        if "remark" in found:
            table.add(name, None, None, None, None, str(found["remark"]))
            continue
        state, extra, largest = (float(found[key]) for key in ("state", "extra", "largest"))
        held = float(child(name, shapes, rank, **RETURNING)["extra"])
        table.add(name, state, extra, extra / largest, held / largest, "")
        if name in (DEFAULT, DCT_ADAMW, SIGN, TRION):
            what = f"{name}: extra memory of a step over the largest matrix"
            targets.append(Target(what, EXTRA, extra / largest))
            targets.append(Target(f"{what}, held", EXTRA, held / largest))
    return Findings([table], targets)


if __name__ == "__main__":
    asked = tuple(
        (int(rows), int(columns))
        for rows, columns in (size.split("x") for size in sys.argv[2].split(","))
    )
    print(json.dumps(measure(sys.argv[1], asked, int(sys.argv[3]))))
