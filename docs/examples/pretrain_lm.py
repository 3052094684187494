"""Train a small language model with AdamW and with DCT-AdamW, and compare them.

    python docs/examples/pretrain_lm.py

reads the sources of Python's standard library, trains the same Llama-style model on them with one
optimizer after the other, and shows what each reached and how much memory it held: a table, and
the loss curves in `pretrain_lm.png`. `--help` lists what can be changed; `--checkpoint PATH` makes
a run that can be stopped at any moment and goes on exactly where it was. The parts that are not
about optimizers lie beside this file: `_llama.py` (model), `_text.py` (data), `_settings.py`
(command line), `_job.py` (the loop, checkpoints), `_report.py` (progress, table, picture).
`pretrain_lm_jax.py` is the same job in JAX.

    torchrun --nproc-per-node 2 docs/examples/pretrain_lm.py --parallel fsdp

shares the work among processes (`_parallel.py`).

Needs `pip install 'lowrank-core[examples]'`.
"""

import os
import pickle
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

# OpenMP reads this as PyTorch loads it. Threads that wait by spinning take the processor from the
# one they wait for as soon as anything else runs on the machine, and steps become ten times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import _job
import lowrank_torch
import torch
from _job import BETAS, RATES, WEIGHT_DECAY, Framework, Recipe, UsageError, rate_factor
from _llama import Llama, next_byte_loss
from _muon import MuonWithAdamW
from _parallel import Processes
from _settings import Settings
from _weights import first_weights
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

PICTURE = "pretrain_lm.png"
PROCESSES = Processes()


def adamw(model: nn.Module, lr: float, _settings: Settings) -> Optimizer:
    """PyTorch's AdamW; vectors (norms) are not decayed."""
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p.ndim >= 2]},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=lr, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=PROCESSES.way is None
    )


@dataclass(frozen=True)
class LowRank:
    """Build one of the library's optimizers: low rank for the hidden matrices, AdamW for the rest.

    `rest` holds what the rest does otherwise: a rate of its own where the matrices' means something else.

    `--option` reaches any keyword of the constructor, over the ones given here.
    """

    constructor: Callable[..., Optimizer]
    keywords: Mapping[str, Any]
    rest: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, model: nn.Module, lr: float, settings: Settings) -> Optimizer:
        keywords = {"weight_decay": WEIGHT_DECAY, **self.keywords, **settings.options}
        keywords |= PROCESSES.optimizer_options()
        groups = lowrank_torch.matrix_groups(model, other=self.rest)
        try:
            return self.constructor(groups, lr=lr, rank=settings.rank, **keywords)
        except (NotImplementedError, TypeError, ValueError) as error:
            blamed = f"argument --option: {error}" if settings.options else str(error)
            raise UsageError(blamed) from error


def muon(model: nn.Module, lr: float, _settings: Settings) -> Optimizer:
    """PyTorch's Muon for hidden matrices, its AdamW at its own best rate for the rest."""
    if PROCESSES.way in ("fsdp", "tp"):
        raise UsageError(
            "argument --optimizer: muon needs whole matrices, which --parallel ddp has"
        )
    matrices = {"lr": lr, "momentum": 0.95, "weight_decay": WEIGHT_DECAY, "nesterov": False}
    rest = {"lr": RATES["adamw"], "betas": BETAS, "weight_decay": WEIGHT_DECAY}
    return MuonWithAdamW(model, matrices=matrices, rest=rest)


DCT_ADAMW = LowRank(lowrank_torch.DCTAdamW, {"betas": BETAS})
GALORE = LowRank(
    lowrank_torch.DCTAdamW,
    {"betas": BETAS, "preset": "galore"},
)
TRION = LowRank(lowrank_torch.Trion, {"betas": BETAS}, rest={"lr": RATES["adamw"]})
OPTIMIZERS = {
    "adamw": Recipe("AdamW", RATES["adamw"], adamw),
    "dct-adamw": Recipe("DCT-AdamW", RATES["dct-adamw"], DCT_ADAMW, low_rank=True),
    "galore": Recipe("GaLore (SVD)", RATES["galore"], GALORE, low_rank=True),
    "muon": Recipe("Muon", RATES["muon"], muon),
    "trion": Recipe("Trion", RATES["trion"], TRION, low_rank=True),
}


class Training:
    """One optimizer at work: everything that changes from step to step, and can be saved."""

    def __init__(self, name: str, lr: float, settings: Settings) -> None:
        torch.manual_seed(settings.seed)
        self.model = Llama(settings.width, settings.layers, settings.heads, settings.length)
        own = dict(self.model.named_parameters())
        first = first_weights(settings.weights, {n: p.detach().numpy() for n, p in own.items()})
        with torch.no_grad():
            for n, parameter in own.items():
                parameter.copy_(torch.tensor(first[n]))
        self.shared = PROCESSES.share(self.model, settings.batch)
        self.optimizer = OPTIMIZERS[name].build(self.model, lr, settings)
        self.schedule = LambdaLR(self.optimizer, partial(rate_factor, steps=settings.steps))

    def step(self, windows: Any) -> tuple[float, float]:
        """Train on a batch; the loss, and the seconds spent in the optimizer alone."""
        loss = next_byte_loss(self.shared, PROCESSES.part(torch.as_tensor(windows)))
        loss.backward()  # type: ignore[no-untyped-call]
        PROCESSES.clip(self.model)
        start = time.perf_counter()
        self.optimizer.step()
        seconds = time.perf_counter() - start
        self.optimizer.zero_grad()
        self.schedule.step()
        return PROCESSES.mean(loss), seconds

    @torch.no_grad()
    def validate(self, windows: Any, batch: int) -> float:
        """Mean loss over the held-out windows."""
        parts = torch.split(torch.as_tensor(windows).to(PROCESSES.device), batch)
        total = sum(next_byte_loss(self.model, part).item() * len(part) for part in parts)
        return total / len(windows)

    def state_bytes(self) -> int:
        """Bytes of every tensor in the optimizer's state, on this process."""
        tensors = _tensors(self.optimizer.state)
        return sum((t.to_local() if hasattr(t, "to_local") else t).nbytes for t in tensors)

    def parameters(self) -> int:
        """Number of the model's weights."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def state_dict(self) -> dict[str, Any]:
        """All of it, in tensors, numbers and strings."""
        model, optimizer = PROCESSES.state(self.model, self.optimizer)
        return {
            "model": model,
            "optimizer": optimizer,
            "schedule": self.schedule.state_dict(),
            "random": torch.get_rng_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to where `state_dict` was called."""
        PROCESSES.load(self.model, self.optimizer, state)
        self.schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["random"])


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(part)


def write(content: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint."""
    try:
        torch.save(content, path)
    except RuntimeError as error:  # as PyTorch reports a full disk
        raise OSError(str(error)) from error


def about() -> str:
    """What trains, and on how much."""
    return f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads"


PYTORCH = Framework(
    about=about,
    recipes=OPTIMIZERS,
    training=Training,
    write=write,
    read=partial(torch.load, weights_only=True),
    read_errors=(pickle.UnpicklingError,),
    picture=PICTURE,
    processes=PROCESSES,
)


def main(arguments: list[str] | None = None) -> int:
    """Run the job of a command line; the exit status."""
    try:
        status = _job.main(PYTORCH, arguments)
    except (RuntimeError, ValueError) as error:
        if PROCESSES.way is None:
            raise
        # As PyTorch reports that another process has gone, or not answered in time. None of what it would
        # wait for will come.
        print(f"process {PROCESSES.rank}: cannot go on: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    PROCESSES.end()
    return status


if __name__ == "__main__":
    sys.exit(main())
