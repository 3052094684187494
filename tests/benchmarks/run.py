"""Run the benchmarks: print tables, write them as JSON, draw pictures.

    python tests/benchmarks/run.py [--parts PART ...] [--seconds N] [--quick]

Everything is a ratio taken in one process, contenders in turns: the median over rounds of the times of one divided by
those of the reference in the same round. `--publish` writes into the documentation: the JSON and the pictures into
`docs/_static/benchmarks`, the tables into `docs/benchmarks.md`. A part not run keeps what an earlier run found.

Needs `pip install 'lowrank-core[torch,jax,numba,examples]'`; what it is compared with, see `--peers`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# Threads that wait by spinning take the processor from the one they wait for. Read as libraries load.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from _pictures import draw
from _publish import PUBLISHED, publish
from _race import QUICK, Effort
from _tables import Findings, print_findings
from rich.console import Console

#: Parts, what they are about, and their share of the time.
PARTS = {
    "transform": ("the DCT", 0.07),
    "matrix": ("one step on one matrix, every target", 0.32),
    "models": ("one step on the matrices of Llama models, every optimizer", 0.21),
    "scaling": ("cost against rank, size and period", 0.08),
    "memory": ("peak memory", 0.04),
    "stack": ("many small matrices", 0.04),
    "training": ("the whole training step", 0.05),
    "jax": ("the same under jax.jit", 0.06),
    "choice": ("transforms or products, chosen and forced", 0.06),
    "compile": ("the step compiled", 0.05),
    "startup": ("imports and first steps", 0.02),
}
PACKAGES = (
    "lowrank-core", "torch", "jax", "optax", "numpy", "scipy", "numba",
    "galore-torch", "apollo-torch", "pytorch-optimizer", "ista-daslab-optimizers",
)  # fmt: skip


def environment(command: Sequence[str], seconds: float, effort: Effort) -> dict[str, Any]:
    """Return what the numbers of a part depend on."""
    import torch

    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "command": shlex.join(command),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": versions,
        "load": round(os.getloadavg()[0], 2),
        "seconds": round(seconds, 1),
        "least_rounds": effort.least,
    }


def processor() -> str:
    """Return what the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    listed = "\n".join(f"  {name:10} {about}" for name, (about, _) in PARTS.items())
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\nParts:\n{listed}\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument(
        "--seconds",
        type=float,
        default=420.0,
        help="time for rounds, were all parts run (%(default)g)",
    )
    parser.add_argument("--threads", type=int, help="threads of PyTorch; its own choice by default")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: see that it runs")
    parser.add_argument("--output", type=Path, help="folder for the pictures")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    parser.add_argument(
        "--publish", action="store_true", help="write numbers, pictures and tables into docs"
    )
    parser.add_argument(
        "--peers", action="store_true", help="print the command that installs them, and end"
    )
    return parser


def stored(path: Path | None) -> dict[str, Any]:
    """Return what earlier runs found."""
    if path is None or not path.exists():
        return {"parts": {}}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks for; the exit status."""
    options = make_parser().parse_args(arguments)
    import torch
    from _peers import install_command

    if options.peers:
        print(install_command())
        return 0
    if options.threads:
        torch.set_num_threads(options.threads)
    path = PUBLISHED / "results.json" if options.publish and not options.json else options.json
    folder = PUBLISHED if options.publish and not options.output else options.output
    results = stored(path)
    console = Console() if sys.stdout.isatty() else Console(width=130)
    failed = 0
    for name in options.parts:
        console.rule(f"{name}: {PARTS[name][0]}")
        effort = QUICK if options.quick else Effort(options.seconds * PARTS[name][1])
        begin = time.perf_counter()
        try:
            findings: Findings = importlib.import_module(f"part_{name}").run(
                effort, quick=options.quick
            )
        except Exception:  # noqa: BLE001 - the other parts are still worth having
            console.print_exception()
            failed += 1
            continue
        took = time.perf_counter() - begin
        print_findings(findings, console)
        console.print(f"{took:.0f} s\n", style="dim")
        command = ["python", "tests/benchmarks/run.py", *(arguments or sys.argv[1:])]
        about = environment(command, took, effort)
        results["parts"][name] = {"environment": about, **findings.as_json()}
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(
                json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
            )
    if folder is not None:
        for drawn in draw(results, folder):
            console.print(f"drawn: {drawn}")
    if options.publish:
        console.print(f"written: {publish(results)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
