"""A small model trained in the ways there are to train on several processes, saved in one and resumed in another."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from lowrank_torch import DCTAdamW, Trion, compressed_gradients, matrix_groups, step_in_backward
from sharded_torch import whole
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

SAVED_AT, STEPS, MICRO, BATCH = 4, 8, 2, 16
WORDS, WIDTH, HIDDEN = 10, 12, 28
CLIP = 0.05


class Net(nn.Module):
    """An embedding, a hidden layer of two matrices, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.up = nn.Linear(WIDTH, HIDDEN)
        self.down = nn.Linear(HIDDEN, WIDTH, bias=False)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, words: Tensor) -> Tensor:
        x = self.embed(words)
        return self.head(self.norm(x + self.down(torch.relu(self.up(x)))))


def rows(model: Net) -> nn.Module:
    return fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))


def hybrid(model: Net) -> nn.Module:
    shape = (2, dist.get_world_size() // 2)
    return fully_shard(model, mesh=init_device_mesh("cpu", shape, mesh_dim_names=("copy", "shard")))


def tensor_parallel(model: Net) -> nn.Module:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("tp",))
    return parallelize_module(model, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})


def rows_and_tensor_parallel(model: Net) -> nn.Module:
    shape = (dist.get_world_size() // 2, 2)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("dp", "tp"))
    # Every parameter on both dimensions, or clipping by the norm of all cannot add them up.
    plan = {name: ColwiseParallel() for name in ("up",)} | {"down": RowwiseParallel()}
    parallelize_module(model, mesh["tp"], plan)
    return fully_shard(model, mesh=mesh["dp"])


def replicated(model: Net) -> nn.Module:
    return DistributedDataParallel(model)


WAYS: dict[str, Callable[[Net], nn.Module]] = {
    "rows": rows,
    "hybrid": hybrid,
    "tensor parallel": tensor_parallel,
    "rows and tensor parallel": rows_and_tensor_parallel,
    "replicated": replicated,
    "replicated, shared work": replicated,
}
#: Where every process has the whole batch.
SAME_BATCH = ("tensor parallel", "one")
#: Where gradients are clipped by the norm of all; PyTorch cannot add up norms over different meshes.
CLIPPED = ("one", "rows", "hybrid", "replicated", "replicated, shared work")
OPTIONS: dict[type, dict[str, Any]] = {
    DCTAdamW: {
        "preset": None,
        "residual": "error_feedback",
        "refresh_every": 3,
        "bias_correction": "column",
    },
    Trion: {},
}


def sides(way: str) -> dict[str, str]:
    """The sides to transform on where a single process is to do the same."""
    return {"up": "right", "down": "left" if way == "tensor parallel" else "right"}


def prepared(way: str, kind: type) -> tuple[nn.Module, Any]:
    """A model and its optimizer."""
    base = Net()
    model = WAYS[way](base) if way in WAYS else base
    groups = []
    for group in matrix_groups(base, min_size=1):
        if "algorithm" in group:
            groups.append(group)
            continue
        for name, parameter in group.pop("params"):
            own = {"params": [(name, parameter)], "side": sides(way)[name.split(".")[0]]}
            groups.append(group | own)
    shared = {"process_group": dist.group.WORLD} if way == "replicated, shared work" else {}
    options = {**OPTIONS[kind], **shared}
    return model, kind(groups, lr=0.03, weight_decay=0.1, rank=4, eps=1e-4, **options)


def batches(way: str, step: int) -> list[Tensor]:
    """This process's micro-batches of a step."""
    words = torch.randint(0, WORDS, (MICRO, BATCH), generator=torch.Generator().manual_seed(step))
    world, rank = (1, 0) if way in (*SAME_BATCH,) else (dist.get_world_size(), dist.get_rank())
    if way == "rows and tensor parallel":
        world, rank = world // 2, rank // 2
    return [micro.chunk(world)[rank] for micro in words]


def train(
    model: nn.Module, optimizer: Any, way: str, first: int, last: int, clip: bool | None = None
) -> None:
    """Do steps, gradients of micro-batches accumulated before they are averaged."""
    for step in range(first, last):
        parts = batches(way, step)
        for number, words in enumerate(parts):
            final = number == len(parts) - 1
            if hasattr(model, "set_requires_gradient_sync"):
                model.set_requires_gradient_sync(final)
            waiting = isinstance(model, DistributedDataParallel) and not final
            with model.no_sync() if waiting else nullcontext():
                loss = nn.functional.cross_entropy(model(words), (3 * words + 1) % WORDS)
                (loss / len(parts)).backward()
        if way in CLIPPED if clip is None else clip:
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()


def outcome(model: nn.Module, optimizer: Any) -> dict[str, Any]:
    base = model.module if isinstance(model, DistributedDataParallel) else model
    parameters = dict(base.named_parameters())
    return {
        "parameters": {name: whole(p) for name, p in parameters.items()},
        "indices": {
            name: optimizer.state[p]["indices"].clone()
            for name, p in parameters.items()
            if "indices" in optimizer.state[p]
        },
    }


def state_bytes(optimizer: Any) -> int:
    """Bytes of state on this process."""
    tensors = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor)]
    return sum((t.to_local() if hasattr(t, "to_local") else t).nbytes for t in tensors)


def saved_and_done(saved: Path, ways: list[str], kinds: list[type]) -> dict[Any, Any]:
    """Train to the end, saving on the way."""
    found = {}
    for way in ways:
        for kind in kinds:
            model, optimizer = prepared(way, kind)
            train(model, optimizer, way, 0, SAVED_AT)
            parts = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
            dcp.save(parts, checkpoint_id=saved / way / kind.__name__)
            train(model, optimizer, way, SAVED_AT, STEPS)
            found[way, kind] = outcome(model, optimizer)
    found["shares"] = shares(kinds)
    for shared in (False, True):
        found["compressed", shared] = compressed(shared)
    for kind in kinds:
        found["hooked", kind] = hooked(kind)
    return found


def hooked(kind: type) -> list[dict[str, Any]]:
    """What a model of sharded rows came to by steps after backward, and by steps in it."""
    found = []
    for early in (False, True):
        model, optimizer = prepared("rows", kind)
        if early:
            step_in_backward(optimizer)
        for step in range(4):
            words = batches("rows", step)[0]
            nn.functional.cross_entropy(model(words), (3 * words + 1) % WORDS).backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append(outcome(model, optimizer))
    return found


def shares(kinds: list[type]) -> dict[Any, tuple[int, int]]:
    """Bytes of state of a larger model in one process, and in this one out of several."""
    found = {}
    for way, shared in (("rows", None), ("replicated, shared work", dist.group.WORLD)):
        for kind in kinds:
            sizes = []
            for spread in (False, True):
                model = nn.Sequential(
                    nn.Embedding(64, 128), nn.Linear(128, 192), nn.Linear(192, 128)
                )
                if spread and way == "rows":
                    rows(model)
                own = {"process_group": shared} if spread and shared else {}
                groups = matrix_groups(model, matrix={"side": "right"}, min_size=1)
                optimizer = kind(groups, rank=32, **OPTIONS[kind], **own)
                for parameter in model.parameters():
                    parameter.grad = torch.ones_like(parameter)
                optimizer.step()
                sizes.append(state_bytes(optimizer))
            found[way, kind] = (sizes[0], sizes[1])
    return found


PROJECTED = {"preset": None, "refresh_every": 5, "residual": "discard", "eps": 1e-4}


def projecting(base: nn.Module, **options: Any) -> Any:
    """An optimizer whose gradients can be averaged projected."""
    return DCTAdamW(
        matrix_groups(base, min_size=1), lr=0.03, rank=0.125, **{**PROJECTED, **options}
    )


def compressed(shared: bool) -> dict[str, Any]:
    """Train with compressed gradients; the work is shared too or not. What they moved of a wider layer's gradients."""
    own = {"process_group": dist.group.WORLD} if shared else {}
    base = Net()
    model = DistributedDataParallel(base)
    optimizer = projecting(base, **own)
    compressed_gradients(model, optimizer)
    train(model, optimizer, "replicated", 0, STEPS, clip=False)
    found = outcome(model, optimizer)

    layer = nn.Linear(64, 64, bias=False)
    model = DistributedDataParallel(layer)
    optimizer = projecting(layer, refresh_every=20)
    compressed_gradients(model, optimizer)
    found["moved"] = []
    for step in range(40):
        model(torch.randn(3, 64, generator=torch.Generator().manual_seed(step))).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        found["moved"].append(optimizer.communication_report()["all_reduce"].bytes)
    return found


def resumed(saved: Path, ways: list[tuple[str, str]], kinds: list[type]) -> dict[Any, Any]:
    """Go on, in the second way of each pair, from what was saved in the first."""
    found = {}
    for before, way in ways:
        for kind in kinds:
            model, optimizer = prepared(way, kind)
            load(model, optimizer, saved / before / kind.__name__)
            train(model, optimizer, way, SAVED_AT, STEPS, clip=before in CLIPPED)
            found[before, way, kind] = outcome(model, optimizer)
    return found


def load(model: nn.Module, optimizer: Any, path: Path) -> None:
    own = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
    dcp.load(own, checkpoint_id=path)
    set_state_dict(
        model,
        optimizer,
        model_state_dict=own["model"],
        optim_state_dict=own["optimizer"],
    )
