"""How heavy one optimizer step is to read: the functions, files, depth and types of ours that it enters.

    python tests/benchmarks/trace_step.py            # the table
    python tests/benchmarks/trace_step.py --list     # and the functions by file

Traced is the third step, which chooses columns, on the thread that calls it. A function counts once however often it is
called; depth is that of our frames alone; a crossing is a call from one of our files into another; a type of
ours counts if an object of it is an argument.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import lowrank_torch
import torch

PACKAGES = ("lowrank_core", "lowrank_backends", "lowrank_torch")
CASES = ("dct_adamw", "trion", "fsdp2")
SHAPE = (64, 256)


class Trace(NamedTuple):
    """What a step entered."""

    functions: list[tuple[str, str]]
    depth: int
    crossings: int
    types: list[str]


class Tracer:
    """Follows calls of our functions."""

    def __init__(self) -> None:
        self.functions: set[tuple[str, str]] = set()
        self.types: set[str] = set()
        self.depth = self.crossings = 0

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        file = file_of(frame)
        if event != "call" or file is None:
            return
        self.functions.add((file, frame.f_code.co_qualname))
        files = [file]
        outer = frame.f_back
        while outer is not None:
            if (other := file_of(outer)) is not None:
                files.append(other)
            outer = outer.f_back
        self.depth = max(self.depth, len(files))
        self.crossings += len(files) > 1 and files[1] != file
        for value in list(frame.f_locals.values()):
            kind = type(value)
            if kind.__module__.split(".")[0] in PACKAGES:
                self.types.add(f"{kind.__module__}.{kind.__qualname__}")

    def follow(self, work: Callable[[], object]) -> Trace:
        """Return what ``work`` enters."""
        sys.setprofile(self)
        try:
            work()
        finally:
            sys.setprofile(None)
        return Trace(sorted(self.functions), self.depth, self.crossings, sorted(self.types))


def file_of(frame: FrameType) -> str | None:
    """The file of a frame of ours, named from its package."""
    parts = Path(frame.f_code.co_filename).parts
    for package in PACKAGES:
        if package in parts:
            return "/".join(parts[len(parts) - parts[::-1].index(package) - 1 :])
    return None


def trace(case: str) -> Trace:
    """The trace of the third step of one matrix, or of two sharded ones."""
    torch.manual_seed(0)
    kind = lowrank_torch.Trion if case == "trion" else lowrank_torch.DCTAdamW
    whole = [torch.nn.Parameter(torch.randn(*SHAPE))]
    parameters = sharded_parameters() if case == "fsdp2" else whole
    optimizer = kind(parameters, lr=1e-3, rank=16)
    for _ in range(2):
        give_gradients(parameters)
        optimizer.step()
    give_gradients(parameters)
    return Tracer().follow(optimizer.step)


def give_gradients(parameters: list[Any]) -> None:
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)


def sharded_parameters() -> list[Any]:
    """Two matrices whose rows FSDP2 spreads over the processes of the default group."""
    from torch.distributed.fsdp import fully_shard

    model = torch.nn.Sequential(*(torch.nn.Linear(*SHAPE[::-1], bias=False) for _ in range(2)))
    fully_shard(model)
    return list(model.parameters())


def run_rank(path: str, rank: int) -> None:
    """Trace the sharded case on one of two processes."""
    import torch.distributed as dist

    store = dist.FileStore(f"{path}.store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    found = trace("fsdp2")
    if rank == 0:
        Path(path).write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def trace_case(case: str) -> Trace:
    """The trace of a case, in processes of its own where it needs several."""
    if case != "fsdp2":
        return trace(case)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "trace.json")
        ranks = [
            subprocess.Popen([sys.executable, __file__, "--rank", str(rank), "--path", path])
            for rank in range(2)
        ]
        if sum(process.wait() for process in ranks):
            sys.exit("a process of the sharded step failed")
        functions, *rest = json.loads(Path(path).read_text())
        return Trace([(file, name) for file, name in functions], *rest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("cases", nargs="*", default=CASES, help=f"of {', '.join(CASES)}")
    parser.add_argument("--list", action="store_true", help="list functions by file, and types")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--path", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rank is not None:
        run_rank(given.path, given.rank)
        return
    print(f"{'case':10} {'functions':>9} {'files':>5} {'depth':>5} {'crossings':>9} {'types':>5}")
    for case in given.cases:
        found = trace_case(case)
        files = defaultdict(list)
        for file, name in found.functions:
            files[file].append(name)
        sizes = (len(found.functions), len(files), found.depth, found.crossings, len(found.types))
        print("{:10} {:9} {:5} {:5} {:9} {:5}".format(case, *sizes))
        if given.list:
            for file, names in files.items():
                print(f"  {file}: {', '.join(names)}")
            print(f"  types: {', '.join(found.types)}")


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    main()
