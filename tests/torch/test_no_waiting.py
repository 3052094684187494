"""A step asks no device for a number: on a GPU the host would wait there for all that was launched before."""

import lowrank_torch
import pytest
import torch
from device_emulation import Watch

CASES = {
    "defaults": (lowrank_torch.DCTAdamW, {}),
    "columns stay": (
        lowrank_torch.DCTAdamW,
        {"preset": None, "residual": "discard", "refresh_every": 50},
    ),
    "factored": (lowrank_torch.DCTAdamW, {"preset": "factored"}),
    "tiny": (lowrank_torch.DCTAdamW, {"preset": "tiny"}),
    "scaled": (
        lowrank_torch.DCTAdamW,
        {"preset": None, "residual": "scaled", "bias_correction": "gentle"},
    ),
    "error feedback": (
        lowrank_torch.DCTAdamW,
        {"preset": None, "residual": "error_feedback", "feedback_bits": 8},
    ),
    "sampled": (
        lowrank_torch.DCTAdamW,
        {"preset": None, "selection": "sampled", "hysteresis": 0.1},
    ),
    "half": (lowrank_torch.DCTAdamW, {"preset": None, "state_dtype": "bfloat16"}),
    "power": (lowrank_torch.DCTAdamW, {"preset": None, "basis": "power", "residual": "discard"}),
    "trion": (lowrank_torch.Trion, {}),
    "trion in 8 bits": (lowrank_torch.Trion, {"momentum_bits": 8, "row_decay": 0.9}),
}


def stepped(kind, options):
    torch.manual_seed(0)
    shapes = [(64, 32)] * 2 + [(32, 64), (2, 16, 48), (48,)]
    params = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    groups = [
        {"params": params[:3]},
        {"params": params[3:4], "batch_dims": 1},
        {"params": params[4:]},
    ]
    optimizer = kind(groups, lr=1e-3, rank=8, **options)
    for _ in range(2):
        for parameter in params:
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("name", CASES)
def test_no_step_reads_a_number(name):
    optimizer = stepped(*CASES[name])
    with Watch() as watch:
        optimizer.step()
        optimizer.step()
    assert watch.found == []


def test_a_read_is_seen():
    with Watch() as watch:
        bool((torch.ones(3) > 0).any())
        torch.ones(3).nonzero()
    assert len(watch.found) == 2
