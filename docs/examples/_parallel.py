"""One training job on several processes: how they find each other, share a model, and save it as one.

`torchrun --nproc-per-node N` starts the processes and tells each its rank; on one process, without `--parallel`,
nothing here does anything.
"""

import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from _job import CLIP_NORM, UsageError
from _llama import Llama
from torch import Tensor, nn

WAYS = ("ddp", "fsdp", "tp")
# How long a process waits for the others before it gives up.
PATIENCE = timedelta(minutes=2)


class Processes:
    """The processes of a job; this one alone until `start`."""

    ways = WAYS

    def __init__(self) -> None:
        self.way: str | None = None
        self.rank, self.world = 0, 1
        self.device = torch.device("cpu")

    def start(self, way: str | None) -> None:
        """Join the others, if there are any."""
        if way is None or self.way is not None:
            return
        if "RANK" not in os.environ:
            raise UsageError(
                "argument --parallel: needs several processes; start them with torchrun --nproc-per-node N"
            )
        gpu = torch.cuda.is_available()
        if gpu:
            self.device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(self.device)
        dist.init_process_group("nccl" if gpu else "gloo", timeout=PATIENCE)
        self.way, self.rank, self.world = way, dist.get_rank(), dist.get_world_size()

    def end(self) -> None:
        """Leave the others."""
        if self.way is not None:
            self.way = None
            dist.destroy_process_group()

    @property
    def leads(self) -> bool:
        """Whether this process is the one that shows and saves."""
        return self.rank == 0

    def any(self, wish: bool) -> bool:
        """Whether any process wishes it."""
        if self.way is None:
            return wish
        together = torch.tensor(int(wish), device=self.device)
        dist.all_reduce(together, dist.ReduceOp.MAX)
        return bool(together)

    # -- a model and its batches ---------------------------------------------------------------

    def share(self, model: Llama, batch: int) -> nn.Module:
        """The model as it is called in training; what it consists of is spread over the processes."""
        model.to(self.device)
        if self.way in ("ddp", "fsdp") and batch % self.world:
            raise UsageError(
                f"argument --batch: must be a multiple of the {self.world} processes, got {batch}"
            )
        if self.way is None:
            return model
        if self.way == "ddp":
            return nn.parallel.DistributedDataParallel(model)
        from torch.distributed.device_mesh import init_device_mesh

        mesh = init_device_mesh(self.device.type, (self.world,))
        if self.way == "fsdp":
            from torch.distributed.fsdp import fully_shard

            for block in model.blocks:
                fully_shard(block, mesh=mesh)
            return fully_shard(model, mesh=mesh)
        from torch.distributed.tensor.parallel import (
            ColwiseParallel,
            RowwiseParallel,
            parallelize_module,
        )

        for block in model.blocks:
            attention: Any = block.attention
            if attention.heads % self.world:
                raise UsageError(
                    f"argument --heads: must be a multiple of the {self.world} processes, got {attention.heads}"
                )
            attention.heads //= self.world
            inner = {f"attention.{name}": ColwiseParallel() for name in "qkv"}
            inner |= {f"feed_forward.{name}": ColwiseParallel() for name in ("gate", "up")}
            outer = {name: RowwiseParallel() for name in ("attention.o", "feed_forward.down")}
            parallelize_module(block, mesh, inner | outer)
        return model

    def optimizer_options(self) -> dict[str, Any]:
        """What a low-rank optimizer is told of the processes."""
        return {"process_group": dist.group.WORLD} if self.way == "ddp" else {}

    def part(self, windows: Tensor) -> Tensor:
        """This process's part of a batch: all of it where processes share every window."""
        windows = windows.to(self.device)
        if self.way not in ("ddp", "fsdp"):
            return windows
        return windows.chunk(self.world)[self.rank]

    def mean(self, loss: Tensor) -> float:
        """The loss of the whole batch."""
        if self.way in ("ddp", "fsdp"):
            loss = loss.detach() / self.world
            dist.all_reduce(loss)
        return loss.item()

    def clip(self, model: nn.Module) -> None:
        """Clip gradients by the norm of all of them."""
        if self.way != "tp":
            nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
            return
        # PyTorch's function does not add up the norms of matrices that are sharded and vectors that are not.
        gradients: list[Any] = [p.grad for p in model.parameters() if p.grad is not None]
        norms = [
            g.norm().full_tensor() if hasattr(g, "placements") else g.norm() for g in gradients
        ]
        scale = float(torch.clamp(CLIP_NORM / (torch.stack(norms).norm() + 1e-6), max=1.0))
        for gradient in gradients:
            gradient.mul_(scale)

    # -- saving --------------------------------------------------------------------------------

    def state(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
        """Weights and state as one process would have them; empty on those that do not lead."""
        if self.way is None:
            return model.state_dict(), optimizer.state_dict()
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return get_state_dict(model, optimizer, options=options)

    def load(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]
    ) -> None:
        """Go back to what `state` returned where it led."""
        if self.way is None:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            return
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

        set_state_dict(
            model,
            optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
            options=StateDictOptions(full_state_dict=True),
        )
