"""Sharded parameters in one process: roles are those of the whole model, and what cannot be stepped is refused."""

import pytest
import torch
import torch.distributed as dist
from lowrank_torch import DCTAdamW, matrix_groups, parameter_roles
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
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


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"side": "left"}, ValueError, "side must be 'auto' or 'right' where rows are sharded"),
        ({"basis": "svd"}, NotImplementedError, "basis='svd' needs whole matrices"),
        ({"split_sizes": [8, 16]}, NotImplementedError, "split_sizes needs rows that are whole"),
    ],
)
def test_what_shards_do_not_allow_is_refused(options, kind, message, process_group):
    model = build()
    fully_shard(model)
    with pytest.raises(kind, match=f"1.weight: {message}"):
        DCTAdamW(matrix_groups(model, matrix=options, min_size=1), rank=3, preset=None)
    optimizer = DCTAdamW([("whole", parameters((8, 6))[0])], rank=3, preset=None)
    with unchanged(optimizer), pytest.raises(kind, match=f"1.weight: {message}"):
        optimizer.add_param_group(matrix_groups(model, matrix=options, min_size=1)[0])
    assert len(optimizer.param_groups) == 1


def test_side_follows_the_shards(process_group):
    wide = nn.Linear(8, 4, bias=False)
    assert DCTAdamW(wide.named_parameters(), rank=3).summary()[0].axis == -2
    fully_shard(wide)
    assert DCTAdamW(wide.named_parameters(), rank=3).summary()[0].axis == -1


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


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("use_orig_params", [False, True])
def test_flat_shards_are_refused(use_orig_params, process_group):
    model = FullyShardedDataParallel(
        build(), use_orig_params=use_orig_params, device_id=torch.device("cpu")
    )
    with pytest.raises(NotImplementedError, match=r"flat shard .*fully_shard"):
        matrix_groups(model, min_size=1)
    with pytest.raises(NotImplementedError, match=r"flat shard .*fully_shard"):
        DCTAdamW(model.parameters(), rank=3)
    DCTAdamW([{"params": model.parameters(), "algorithm": "adamw"}], rank=3)
