"""What each of several processes does for the tests of sharded training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from lowrank_torch import DCTAdamW
from sharded_torch import (
    MATRICES,
    POLICIES,
    RANK,
    build,
    everywhere,
    parameters_of,
    train,
    trajectory,
    values,
    whole,
)
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

#: Shape of the mesh for a number of processes, placements on it, and the side that is whole there.
LAYOUTS: dict[str, tuple[Callable[[int], tuple[int, ...]], tuple[Any, ...], str]] = {
    "rows": (lambda world: (world,), (Shard(0),), "right"),
    "columns": (lambda world: (world,), (Shard(1),), "left"),
    "hybrid": (lambda world: (2, world // 2), (Replicate(), Shard(0)), "right"),
    "rows and columns": (lambda world: (2, world // 2), (Shard(0), Shard(1)), "right"),
    "rows on part of a mesh": (
        lambda world: (1, 2, world // 2),
        (Replicate(), Shard(0), Shard(0)),
        "right",
    ),
    "columns and rows": (lambda world: (2, world // 2), (Shard(1), Shard(0)), "left"),
}


def placer(layout: str) -> Callable[[Tensor], Tensor]:
    """Put tensors onto the mesh of a layout; vectors have one dimension to be cut in."""
    shape, placements, _ = LAYOUTS[layout]
    mesh = init_device_mesh(
        "cpu", shape(dist.get_world_size()), mesh_dim_names=("a", "b", "c")[: len(placements)]
    )

    def place(x: Tensor) -> Tensor:
        own = [Shard(0) if x.ndim == 1 and isinstance(p, Shard) else p for p in placements]
        return distribute_tensor(x, mesh, own, src_data_rank=None)

    return place


def trajectories(layouts: list[str]) -> dict[Any, Any]:
    """Every policy on every layout: columns and parameters."""
    found = {}
    for layout in layouts:
        for kind in POLICIES:
            if layout == "replicated":
                optimizer = build(kind, process_group=dist.group.WORLD)
                found[layout, kind] = trajectory(optimizer)
            else:
                place = placer(layout)
                found[layout, kind] = trajectory(build(kind, place), place)
    return found


# What is moved: the collectives as PyTorch is asked for them, beside what the optimizer says.
COLLECTIVES = {
    "all_reduce": "all_reduce",
    "all_gather_single": "all_gather",
    "all_gather_into_tensor": "all_gather",
    "all_to_all_single": "all_to_all",
}


@contextmanager
def intercepted() -> Iterator[list[tuple[str, int]]]:
    """Note kind and bytes of the result of every collective."""
    seen: list[tuple[str, int]] = []

    def noting(kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(result: Tensor, *arguments: Any, **options: Any) -> Any:
            seen.append((kind, result.numel() * result.element_size()))
            return function(result, *arguments, **options)

        return call

    with ExitStack() as stack:
        for name, kind in COLLECTIVES.items():
            if hasattr(dist, name):
                patched = noting(kind, getattr(dist, name))
                stack.enter_context(mock.patch.object(dist, name, patched))
        yield seen


def moved() -> dict[Any, Any]:
    """What steps move, as seen and as reported, step by step."""
    found: dict[Any, Any] = {}
    for layout in ("rows", "rows and columns", "replicated"):
        for kind in POLICIES:
            place, options = everywhere, {}
            if layout == "replicated":
                options = {"process_group": dist.group.WORLD}
            else:
                place = placer(layout)
            optimizer = build(kind, place, **options)
            found[layout, kind] = []
            for step in range(3):
                with intercepted() as seen:
                    train(optimizer, 1, place, start=step)
                report = {k: tuple(v) for k, v in optimizer.communication_report().items()}
                found[layout, kind].append((seen, report))
    found["columns only"] = scores_alone()
    found["small windows"] = small_windows()
    found["idle"] = idle()
    return found


def scores_alone() -> list[Any]:
    """Seen collectives of plain DCT-AdamW that refreshes at every second step, on rows."""
    place = placer("rows")
    parameters = [nn.Parameter(place(values(n, None, s))) for n, s in enumerate(MATRICES)]
    optimizer = DCTAdamW(parameters, rank=RANK, preset=None, refresh_every=2, residual="discard")
    found = []
    for step in range(4):
        with intercepted() as seen:
            train(optimizer, 1, place, start=step)
        found.append(seen)
    return found


def small_windows() -> list[Any]:
    """Collectives and parameters of a step whose matrices do not all fit into the window."""
    place = placer("rows")
    found = []
    for window in (DCTAdamW.window_bytes, 512):
        with mock.patch.object(DCTAdamW, "window_bytes", window):
            optimizer = build(DCTAdamW, place)
        with intercepted() as seen:
            train(optimizer, 2, place)
        found.append((len(seen), [whole(p) for p in parameters_of(optimizer)]))
    return found


def idle() -> list[Any]:
    """Steps of state after a step that only is to make state, and after one gradient on one process alone."""
    place = placer("rows")
    found = []
    for number in (0.0, 1.0):
        optimizer = build(DCTAdamW, place)
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        for parameter in parameters_of(optimizer):
            gradient = torch.zeros(parameter.shape)
            gradient.view(-1)[0] = number
            parameter.grad = place(gradient)
        optimizer.step()
        found.append([int(optimizer.state[p]["step"]) for p in parameters_of(optimizer)])
    return found


#: Parameters that are not one matrix, how one process is to step them, and the dimension that is sharded.
SHAPED: dict[str, tuple[tuple[int, ...], dict[str, Any], int]] = {
    "experts": ((6, 5, 4), {"batch_dims": 1, "selection": "sampled", "residual": "scaled"}, 0),
    "rows of experts": ((3, 7, 4), {"batch_dims": 1, "side": "right"}, 1),
    "heads": ((8, 6), {"num_heads": 4, "bias_correction": "gentle"}, 0),
    "columns of heads": ((8, 10), {"num_heads": 2, "side": "left"}, 1),
    "columns of parts": ((10, 9), {"split_sizes": [4, 6], "side": "left"}, 1),
    "convolution": ((5, 3, 2, 2), {"side": "right"}, 0),
    "columns of convolution": ((4, 8, 3), {"side": "left"}, 1),
    "codes": ((7, 9), {"residual": "error_feedback", "feedback_bits": 8, "side": "right"}, 0),
    "moments in codes": (
        (4, 1024),
        {"second_moment": "factored", "moment_bits": 8, "side": "left"},
        1,
    ),
    "columns of codes": (
        (4, 1024),
        {"residual": "error_feedback", "feedback_bits": 4, "side": "left"},
        1,
    ),
}


def build_shaped(place: Callable[[Tensor, int], Any]) -> Any:
    groups = [
        {"params": [nn.Parameter(place(values(n, None, shape), dim))], **options}
        for n, (shape, options, dim) in enumerate(SHAPED.values())
    ]
    return DCTAdamW(groups, lr=0.02, rank=2, preset=None, refresh_every=2)


def train_shaped(optimizer: Any, place: Callable[[Tensor, int], Any]) -> list[Tensor]:
    """Parameters after some steps."""
    for step in range(6):
        for n, (shape, _, dim) in enumerate(SHAPED.values()):
            parameter = optimizer.param_groups[n]["params"][0]
            parameter.grad = place(values(n, step, shape), dim)
        optimizer.step()
    return [whole(p) for p in parameters_of(optimizer)]


def shaped() -> dict[str, Any]:
    """Parameters of all kinds of shapes, sharded; the keys of their draws; and what is rounded at random."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))

    def place(x: Tensor, dim: int) -> Any:
        return distribute_tensor(x, mesh, [Shard(dim)], src_data_rank=None)

    optimizer = build_shaped(place)
    found: dict[str, Any] = {"parameters": train_shaped(optimizer, place)}
    found["key"] = whole(optimizer.state[parameters_of(optimizer)[0]]["key"])

    numbers = [values(n, None, (12, 8)).bfloat16() for n in range(2)]
    rounding = {
        "preset": None,
        "rank": 2,
        "stochastic_rounding": True,
        "process_group": dist.group.WORLD,
    }
    parameters = [nn.Parameter(x) for x in numbers]
    groups = [{"params": parameters[:1]}, {"params": parameters[1:], "residual": "normalized"}]
    rounded = DCTAdamW(groups, **rounding)
    for step in range(3):
        for n, parameter in enumerate(parameters):
            parameter.grad = values(n, step, (12, 8)).bfloat16()
        rounded.step()
    found["rounded"] = [p.detach().float() for p in parameters]
    return found


def nonfinite() -> dict[str, Any]:
    """What each process does about NaN in a shard of the last one."""
    place = placer("rows")
    optimizer = build(DCTAdamW, place)
    parameters = parameters_of(optimizer)
    train(optimizer, 1, place)
    before = [local.to_local().clone() for local in parameters]
    last = dist.get_rank() == dist.get_world_size() - 1
    for parameter in parameters:
        gradient: Any = parameter.grad
        if last:
            gradient.to_local().fill_(float("nan"))
    found: dict[str, Any] = {}
    for group in optimizer.param_groups:
        group["nonfinite"] = "skip"
    optimizer.step()
    found["skipped"] = optimizer.skipped_steps
    after = [local.to_local() for local in parameters]
    found["unchanged"] = all(map(torch.equal, before, after))
    for group in optimizer.param_groups:
        group["nonfinite"] = "raise"
    try:
        optimizer.step()
        found["raised"] = False
    except ValueError:
        found["raised"] = True
    return found
