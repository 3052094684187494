"""The kernels compiled, on a GPU: beside float64, in CUDA graphs, without a wait, under a compiler."""

import copy

import pytest
import torch
from lowrank_torch import DCTAdamW

from lowrank_core import DCTAdamWConfig, dct_adamw_init, ops_for_namespace
from lowrank_core.ops.rows import RowMoments, RowWrite
from lowrank_core.rules.dct_adamw_rows import dct_adamw_rows
from lowrank_core.rules.reductions import run
from lowrank_core.rules.rule import bind

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no GPU"),
    pytest.mark.usefixtures("torch"),
]


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    monkeypatch.setenv("LOWRANK_KERNELS", "1")


def parameter(*shape, seed=0):
    source = torch.Generator().manual_seed(seed)
    made = torch.nn.Parameter(torch.randn(*shape, generator=source).cuda())
    made.grad = torch.randn(*shape, generator=source).cuda()
    return made


@pytest.mark.parametrize("residual", ["sign", "normalized"])
@pytest.mark.parametrize("shape", [(64, 96), (512, 1024), (256, 4096)], ids=str)
def test_a_graph_of_both_kernels_does_what_they_do(shape, residual):
    ops = ops_for_namespace(torch)
    config = DCTAdamWConfig(rank=0.25, side="right", residual=residual)
    gradient = torch.randn(*shape, device="cuda")
    weight = torch.randn(*shape, device="cuda")
    kernels = ops.row_kernels([gradient], [weight], [()])
    matrix = bind(config, shape, ops, gradient.device)
    state = dct_adamw_init(shape, config, xp=torch, device="cuda")
    lr = torch.tensor(0.01, device="cuda")

    def step(weight, state):
        rows = kernels([gradient], [weight], [None], ops)
        job, after = run(dct_adamw_rows(rows, state, matrix, True))
        moments = RowMoments(state.first_moment, state.second_moment, None)
        rows.step([moments], job, [RowWrite(lr, 0.1)])
        state.indices.copy_(after.indices)
        if state.energy is not None:
            state.energy.copy_(after.energy)

    twin, other = weight.clone(), copy.deepcopy(state)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            step(weight, state)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(weight, state)
    for rate in (0.01, 0.0, 0.02):
        lr.fill_(rate)
        graph.replay()
    for rate in (0.01, 0.01, 0.01, 0.0, 0.02):
        lr.fill_(rate)
        step(twin, other)
    assert torch.isfinite(weight).all()
    assert torch.equal(weight, twin)
    assert torch.equal(state.first_moment, other.first_moment)


def test_a_step_does_not_wait_for_the_device():
    own = [parameter(128, 96), parameter(256, 1024)]
    optimizer = DCTAdamW(own, rank=0.25, side="right")
    for _ in range(2):
        optimizer.step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_compiled_step_does_what_the_kernels_do():
    torch.set_float32_matmul_precision("highest")
    ours, theirs = parameter(64, 96), parameter(64, 96)
    start = ours.detach().clone()
    eager, compiled = (DCTAdamW([p], rank=0.25, side="right") for p in (ours, theirs))
    step = torch.compile(compiled.step)
    for _ in range(3):
        eager.step()
        step()
    torch.testing.assert_close(ours - start, theirs - start, rtol=1e-3, atol=1e-5)
