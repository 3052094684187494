"""Sharded parameters: their roles are those of the whole model, and a low-rank step on them is refused."""

import pytest
import torch
import torch.distributed as dist
from lowrank_torch import DCTAdamW, matrix_groups, parameter_roles
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch_helpers import parameters, unchanged

pytestmark = pytest.mark.usefixtures("torch")


@pytest.fixture
def process_group():
    """A group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 24), nn.LayerNorm(24), nn.Linear(24, 11))


def test_roles_are_those_of_the_whole_model(process_group):
    model = build()
    fully_shard(model)
    assert [row.role for row in parameter_roles(model)] == [
        "table",
        "matrix",
        "vector",
        "vector",
        "vector",
        "table",
        "vector",
    ]
    assert parameter_roles(model) == parameter_roles(build())


def test_low_rank_step_on_a_shard_is_refused(process_group):
    model = build()
    fully_shard(model)
    message = r"parameters that are whole, got a DTensor for 1.weight; algorithm=\"adamw\""
    with pytest.raises(NotImplementedError, match=message):
        DCTAdamW(matrix_groups(model), rank=3)
    optimizer = DCTAdamW([("whole", parameters((8, 6))[0])], rank=3)
    with unchanged(optimizer), pytest.raises(NotImplementedError, match=message):
        optimizer.add_param_group(matrix_groups(model)[0])
    assert len(optimizer.param_groups) == 1


def test_full_adamw_on_shards_equals_torch_adamw(process_group):
    models = [build(), build()]
    for model in models:
        fully_shard(model)
    groups = matrix_groups(models[0], matrix={"algorithm": "adamw"})
    hyper = {"lr": 0.02, "weight_decay": 0.0}
    optimizers = [
        DCTAdamW(groups, rank=3, **hyper),
        torch.optim.AdamW(models[1].parameters(), **hyper),
    ]
    for step in range(3):
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            model(torch.arange(step, step + 6)).square().mean().backward()
            optimizer.step()
    for found, wanted in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(found.full_tensor(), wanted.full_tensor())
