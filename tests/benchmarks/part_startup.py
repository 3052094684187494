"""Time to import, and to the first step, in fresh processes.

    python tests/benchmarks/part_startup.py PROGRAM

is one such process: it runs the program named, a key of `PROGRAMS`, and prints seconds for each of its lines as JSON.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
import time

from _child import found_by
from _race import LEAST_ROUNDS, Effort
from _tables import Column, Findings, Table

_MATRIX = "p = torch.nn.Parameter(torch.randn({0}, {0})); p.grad = torch.randn({0}, {0})"
_JAX_STEP = """
o = {0}; s = o.init(p)
f = jax.jit(lambda g, s, p: o.update(g, s, p))
u, s = f(p, s, p); jax.block_until_ready(u)
"""
#: Each program: what is timed, and its code. One process runs them in order.
PROGRAMS: dict[str, list[tuple[str, str]]] = {
    "torch": [
        ("import lowrank_core", "import lowrank_core"),
        ("import torch", "import torch"),
        ("import lowrank_torch, after torch", "import lowrank_torch"),
        ("", _MATRIX),
        ("AdamW (fused): first step", "o = torch.optim.AdamW([p], fused=True); o.step()"),
        ("AdamW (fused): second step", "o.step()"),
        (
            "DCT-AdamW: first step, after AdamW's",
            "o = lowrank_torch.DCTAdamW([p], rank=0.25); o.step()",
        ),
        ("DCT-AdamW: second step", "o.step()"),
        ("Trion: first step, after these", "o = lowrank_torch.Trion([p], rank=0.25); o.step()"),
        ("Trion: second step", "o.step()"),
        ("Muon (torch.optim): first step, after these", "o = torch.optim.Muon([p]); o.step()"),
        ("Muon (torch.optim): second step", "o.step()"),
    ],
    # The first step of any of PyTorch's optimizers loads its compiler: here it is DCT-AdamW's.
    "ours": [
        ("", "import torch, lowrank_torch"),
        ("", _MATRIX),
        ("DCT-AdamW: first step", "o = lowrank_torch.DCTAdamW([p], rank=0.25); o.step()"),
    ],
    "collection": [
        ("", "import torch"),
        ("import pytorch_optimizer, after torch", "import pytorch_optimizer"),
    ],
    "jax": [
        ("import jax", "import jax"),
        ("import optax, after jax", "import optax"),
        ("import lowrank_jax, after optax", "import lowrank_jax"),
        ("", "p = jax.numpy.ones(({0}, {0}))"),
        ("Optax's AdamW: first step, with compilation", _JAX_STEP.format("optax.adamw(1e-3)")),
        (
            "JAX DCT-AdamW: first step, with compilation",
            _JAX_STEP.format("lowrank_jax.dct_adamw(1e-3, rank=0.25)"),
        ),
        (
            "JAX Trion: first step, with compilation",
            _JAX_STEP.format("lowrank_jax.trion(1e-3, rank=0.25)"),
        ),
    ],
}
NEEDS = {"torch": "torch", "ours": "torch", "collection": "pytorch_optimizer", "jax": "lowrank_jax"}
SIDE = 1024


def child(program: str, side: int) -> dict[str, float]:
    """Return the seconds of each line of a program, run in a fresh process."""
    seconds: dict[str, float] = found_by(__file__, program, side)
    return seconds


def run(effort: Effort, *, quick: bool) -> Findings:
    """Start every program several times, in turns."""
    side = 32 if quick else SIDE
    names = [name for name in PROGRAMS if importlib.util.find_spec(NEEDS[name]) is not None]
    if quick:
        names.remove("jax")
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    stop = time.perf_counter() + effort.seconds
    rounds = min(effort.least, LEAST_ROUNDS)
    for turn in range(rounds):
        for name in names:
            if turn < min(rounds, 3) or time.perf_counter() < stop or name == "torch":
                found[name].append(child(name, side))
    table = Table(
        "startup",
        f"Imports and first steps, one {side} x {side} matrix",
        (Column("what"), Column("ms", "ms"), Column("over `import torch`", "x"), Column("remark")),
        note="Fresh processes, files in the system's cache. An import counts what it adds to those before it.",
    )
    torch = [seconds["import torch"] for seconds in found["torch"]]
    for name, lines in PROGRAMS.items():
        if name not in found:
            hint = (
                "left out"
                if quick
                else f"not installed: pip install --no-deps {NEEDS[name].replace('_', '-')}"
            )
            table.add(next(what for what, _ in lines if what), None, None, hint)
            continue
        for what in found[name][0]:
            times = [seconds[what] for seconds in found[name]]
            ratio = statistics.median(a / b for a, b in zip(times, torch, strict=False))
            remark = "" if len(times) >= LEAST_ROUNDS else f"{len(times)} rounds"
            table.add(what, statistics.median(times), ratio, remark)
    return Findings([table])


def main(program: str, side: int) -> dict[str, float]:
    """Run a program; seconds of each line that has a name."""
    namespace: dict[str, object] = {}
    seconds = {}
    for what, code in PROGRAMS[program]:
        compiled = compile(code.replace("{0}", str(side)), program, "exec")
        begin = time.perf_counter()
        exec(compiled, namespace)
        if what:
            seconds[what] = time.perf_counter() - begin
    return seconds


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]))))
