"""Steps captured in CUDA graphs, on a GPU: replays do what steps do, and nothing waits.

`tests/torch/test_capturable.py` emulates the same on a CPU for every option.
"""

import pytest
import torch
from lowrank_torch import DCTAdamW, Trion

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no GPU"),
    pytest.mark.usefixtures("torch"),
]

#: Two of a shape, a left side, a stack, one that the kernels take, and a vector.
SHAPES = ((64, 96), (64, 96), (96, 64), (2, 64, 96), (256, 768), (48,))
PLAIN = {"preset": None}
CASES = {
    "defaults": (DCTAdamW, {"side": "right"}),
    "plain": (DCTAdamW, {**PLAIN, "side": "right"}),
    "columns every 3": (
        DCTAdamW,
        {**PLAIN, "side": "right", "refresh_every": 3, "residual": "normalized"},
    ),
    "feedback": (
        DCTAdamW,
        {**PLAIN, "residual": "error_feedback", "feedback_bits": 8, "refresh_every": 3},
    ),
    "scaled": (
        DCTAdamW,
        {**PLAIN, "residual": "scaled", "bias_correction": "gentle", "refresh_every": 3},
    ),
    "tiny": (DCTAdamW, {"preset": "tiny"}),
    "sampled": (DCTAdamW, {**PLAIN, "selection": "sampled", "state_dtype": "bfloat16"}),
    "trion": (Trion, {}),
    "trion, best": (Trion, {"rank": 1.0, "preset": "best"}),
    "trion in 8 bits": (Trion, {"momentum_bits": 8}),
    "adamw": (DCTAdamW, {"algorithm": "adamw"}),
}
WARM, REPLAYS = 2, 6


def made(kind, options, **others):
    source = torch.Generator().manual_seed(0)
    given = [torch.nn.Parameter(torch.randn(s, generator=source).cuda()) for s in SHAPES]
    for parameter in given:
        parameter.grad = torch.zeros_like(parameter)
    groups = [
        {"params": [*given[:3], given[4]]},
        {"params": given[3:4], "batch_dims": 1},
        {"params": given[5:]},
    ]
    numbers = {"lr": torch.tensor(0.02, device="cuda")}
    numbers["weight_decay"] = torch.tensor(0.1, device="cuda")
    own = {"rank": 16, "capturable": True, **numbers, **options, **others}
    return given, kind(groups, **own)


def give(given, step):
    source = torch.Generator().manual_seed(1 + step)
    for parameter in given:
        parameter.grad.copy_(torch.randn(parameter.shape, generator=source))


def captured(given, optimizer):
    """A graph of one step, captured after a warm-up on a stream of its own."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for step in range(WARM):
            give(given, step)
            optimizer.step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    return graph


@pytest.mark.parametrize("kernels", ["0", "1"])
@pytest.mark.parametrize("numbers", ["tensors", "host"])
@pytest.mark.parametrize("name", CASES)
def test_replays_do_what_steps_do(name, numbers, kernels, monkeypatch):
    monkeypatch.setenv("LOWRANK_KERNELS", kernels)
    kind, options = CASES[name]
    others = {} if numbers == "tensors" else {"lr": 0.02, "weight_decay": 0.1}
    ours, replayed = made(kind, options, **others)
    theirs, eager = made(kind, options, **others)
    start = [parameter.detach().clone() for parameter in ours]
    graph = captured(ours, replayed)
    for step in range(WARM):
        give(theirs, step)
        eager.step()
    for step in range(WARM, WARM + REPLAYS):
        give(ours, step)
        give(theirs, step)
        if numbers == "tensors":
            for group in (*replayed.param_groups, *eager.param_groups):
                group["lr"].fill_(0.02 / step)
        graph.replay()
        eager.step()
    for p, q, before in zip(ours, theirs, start, strict=True):
        # Codes and narrow numbers may fall on the other side.
        assert (p - q).norm() <= 1e-3 * (q - before).norm()
        assert int(replayed.state[p]["step"]) == WARM + REPLAYS


@pytest.mark.parametrize("name", CASES)
def test_no_step_waits_for_the_device(name):
    given, optimizer = made(*CASES[name])
    give(given, 0)
    optimizer.step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
@pytest.mark.parametrize(
    ("capturable", "message"), [(False, "capturable=False"), (True, "has no state on its device")]
)
def test_a_capture_that_would_go_wrong_is_refused(capturable, message):
    given, optimizer = made(DCTAdamW, {}, capturable=capturable)
    give(given, 0)
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match=message), torch.cuda.graph(graph):
        optimizer.step()
