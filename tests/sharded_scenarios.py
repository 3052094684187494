"""What each of several processes does for the tests of sharded training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from sharded_torch import POLICIES, build, trajectory
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

#: Shape of the mesh for a number of processes, placements on it, and the side that is whole there.
LAYOUTS: dict[str, tuple[Callable[[int], tuple[int, ...]], tuple[Any, ...], str]] = {
    "rows": (lambda world: (world,), (Shard(0),), "right"),
    "columns": (lambda world: (world,), (Shard(1),), "left"),
    "hybrid": (lambda world: (2, world // 2), (Replicate(), Shard(0)), "right"),
    "rows and columns": (lambda world: (2, world // 2), (Shard(0), Shard(1)), "right"),
    "columns and rows": (lambda world: (2, world // 2), (Shard(1), Shard(0)), "left"),
}


def placer(layout: str) -> Callable[[Tensor], Tensor]:
    """Put tensors onto the mesh of a layout; vectors have one dimension to be cut in."""
    shape, placements, _ = LAYOUTS[layout]
    mesh = init_device_mesh(
        "cpu", shape(dist.get_world_size()), mesh_dim_names=("a", "b")[: len(placements)]
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
