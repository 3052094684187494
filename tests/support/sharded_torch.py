"""Runs of the PyTorch optimizers on several processes, and the same runs on one, to be compared.

As a program it is one of the processes: it does the runs that a test asks for and writes down what came of them.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lowrank_torch import DCTAdamW, Trion
from torch import Tensor, nn

#: Seconds after which a process that waits for others gives up, and after which a test ends all of them.
PATIENCE, LIMIT = 60, 240

STEPS, RATE, RANK = 30, 0.02, 3
#: Uneven ones, some with fewer rows or columns than there are processes, and two of one shape, which are stacked.
MATRICES = ((10, 6), (3, 8), (8, 5), (6, 16), (6, 16))
TABLE, VECTOR = (9, 4), (5,)

#: The groups of one optimizer each, so that collectives of all policies go together.
POLICIES: dict[type, dict[str, dict[str, Any]]] = {
    DCTAdamW: {
        "discard": {"residual": "discard"},
        "kept columns": {"residual": "discard", "refresh_every": 4, "basis": "hartley"},
        "error feedback": {"residual": "error_feedback", "refresh_every": 3},
        # Fewer columns than the others keep: the two odd cosines of five samples are zero in the middle, and the sign
        # of what is rounded there is nobody's.
        "sign": {"residual": "sign", "score": "l1", "rank": 2},
        "scaled": {"residual": "scaled", "refresh_every": 2},
        "normalized": {"residual": "normalized", "bias_correction": "gentle"},
        "factored": {
            "second_moment": "factored",
            "residual": "bounded",
            "score_decay": 0.95,
            "refresh_every": 3,
        },
        "sampled": {
            "residual": "discard",
            "selection": "sampled",
            "score_decay": 0.9,
            "bias_correction": "column",
        },
    },
    Trion: {
        "trion": {},
        "polar": {"coefficients": "polar_express", "scale": "dion", "steps": 4},
        "even rows": {"row_decay": 0.9},
    },
}
NAMES = [(kind, policy) for kind, policies in POLICIES.items() for policy in policies]

Place = Callable[[Tensor], Any]


def everywhere(x: Tensor) -> Tensor:
    """Leave a tensor whole."""
    return x


def values(seed: int, step: int | None, shape: tuple[int, ...]) -> Tensor:
    """Start or gradient of one parameter."""
    generator = torch.Generator().manual_seed(1000 * seed + (0 if step is None else step + 1))
    return torch.randn(shape, generator=generator)


def build(kind: type, place: Place = everywhere, **options: Any) -> Any:
    """An optimizer with one group a policy and one of a table and a vector, all put where ``place`` puts them."""
    groups: list[dict[str, Any]] = []
    for number, own in enumerate((*POLICIES[kind].values(), {"algorithm": "adamw"})):
        shapes = MATRICES if "algorithm" not in own else (TABLE, VECTOR)
        given = [values(20 * number + n, None, shape) for n, shape in enumerate(shapes)]
        groups.append({"params": [nn.Parameter(place(x)) for x in given], **own})
    if kind is DCTAdamW:
        options = {"preset": None, **options}
    return kind(groups, lr=RATE, weight_decay=0.1, rank=RANK, **options)


def parameters_of(optimizer: Any) -> list[Any]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def train(optimizer: Any, steps: int = STEPS, place: Place = everywhere, start: int = 0) -> None:
    """Do steps on gradients of their own."""
    for step in range(start, start + steps):
        for number, parameter in enumerate(parameters_of(optimizer)):
            parameter.grad = place(values(500 + number, step, tuple(parameter.shape)))
        optimizer.step()


def whole(x: Any) -> Tensor:
    """All of a tensor, wherever its parts are."""
    full = x.full_tensor() if hasattr(x, "full_tensor") else x
    return full.detach().clone()


def trajectory(optimizer: Any, place: Place = everywhere) -> tuple[list[Any], list[list[Tensor]]]:
    """The columns after every step, and the parameters of every group at the end."""
    columns = []
    for step in range(STEPS):
        train(optimizer, 1, place, start=step)
        columns.append([optimizer.state[p].get("indices") for p in parameters_of(optimizer)])
    return columns, [[whole(p) for p in group["params"]] for group in optimizer.param_groups]


# -- processes -------------------------------------------------------------------------------------


def launch(scenario: str, world: int, folder: Path, **arguments: Any) -> list[Any]:
    """Run a scenario, ``module:function``, in ``world`` processes; what it returned in each."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "arguments").write_bytes(pickle.dumps(arguments))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", __file__, scenario, str(rank), str(world), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        for rank in range(world)
    ]
    end = time.monotonic() + LIMIT
    try:
        outputs = [
            process.communicate(timeout=max(1.0, end - time.monotonic()))[0]
            for process in processes
        ]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    codes = [process.returncode for process in processes]
    assert codes == [0] * world, f"{scenario}: exit codes {codes}\n" + "\n".join(outputs)
    return [
        torch.load(folder / f"result{rank}", weights_only=False, map_location="cpu")
        for rank in range(world)
    ]


@contextmanager
def joined(rank: int, world: int, folder: Path) -> Iterator[None]:
    """Be one of the processes of a group."""
    store = dist.FileStore(str(folder / "store"), world)
    patience = timedelta(seconds=PATIENCE)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=patience)
    yield
    dist.destroy_process_group()


def main(scenario: str, rank: int, world: int, folder: Path) -> None:
    import importlib

    module, _, name = scenario.partition(":")
    arguments = pickle.loads((folder / "arguments").read_bytes())
    with joined(rank, world, folder):
        result = getattr(importlib.import_module(module), name)(**arguments)
    torch.save(result, folder / f"result{rank}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
