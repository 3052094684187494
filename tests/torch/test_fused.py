"""Fused projections and heads are stepped as the matrices they consist of."""

import pytest
import torch
from helpers import assert_close
from lowrank_torch import DCTAdamW
from torch import nn
from torch_helpers import OPTIMIZERS, copies, parameters, set_gradients, unchanged

pytestmark = pytest.mark.usefixtures("torch")

HYPER = {"lr": 0.02, "weight_decay": 0.1}


@pytest.mark.parametrize("optimizer_type", OPTIMIZERS)
@pytest.mark.parametrize(
    ("sizes", "heads"),
    [((16, 8, 8), None), ((16, 8, 8), 2), ((16, 8, 8), (4, 2, 1)), (None, 4)],
    ids=str,
)
def test_parts_are_stepped_as_parameters_of_their_own(optimizer_type, sizes, heads):
    (fused,) = parameters((32, 12))
    parts = sizes or (32,)
    counts = heads if isinstance(heads, tuple) else (heads or 1,) * len(parts)
    apart = [
        nn.Parameter(block.detach().clone().view(count, -1, 12))
        for block, count in zip(fused.split(parts), counts, strict=True)
    ]
    optimizer = optimizer_type([fused], rank=3, split_sizes=sizes, num_heads=heads, **HYPER)
    reference = optimizer_type(apart, rank=3, batch_dims=1, **HYPER)
    for step in range(5):
        set_gradients([fused], step)
        for parameter, block in zip(apart, fused.grad.split(parts), strict=True):
            parameter.grad = block.reshape(parameter.shape).clone()
        optimizer.step()
        reference.step()
    expected = torch.cat([parameter.detach().reshape(-1, 12) for parameter in apart])
    assert_close(fused.detach(), expected, xp=torch, dtype="float32", kind="trajectory")
    (row,) = optimizer.summary()
    assert row.state_bytes == sum(part.state_bytes for part in reference.summary())
    tensors = [value for value in optimizer.state[fused].values() if torch.is_tensor(value)]
    assert sum(value.nbytes for value in tensors) == row.state_bytes


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"split_sizes": (16, 8)}, ValueError, "split_sizes must add up to the 32 rows"),
        ({"split_sizes": 16}, TypeError, "split_sizes must be a list of integers or None, got 16"),
        ({"split_sizes": (32, 0)}, ValueError, "each of split_sizes must be at least 1, got 0"),
        ({"num_heads": 5}, ValueError, "num_heads must divide the rows it cuts, 32 .* got 5"),
        ({"num_heads": 0}, ValueError, "num_heads must be at least 1, got 0"),
        ({"num_heads": (2, 2)}, ValueError, "num_heads must be one number or one for each of"),
    ],
    ids=str,
)
def test_parts_that_do_not_fit_are_refused(options, error, message):
    first, second = parameters((8, 6), (32, 12))
    with pytest.raises(error, match=message):
        DCTAdamW([second], rank=3, **options)
    optimizer = DCTAdamW([first], rank=3)
    with unchanged(optimizer), pytest.raises(error, match=message):
        optimizer.add_param_group({"params": [second], **options})
    assert len(optimizer.param_groups) == 1


def test_state_of_other_parts_is_refused():
    given = parameters((32, 12))
    optimizer = DCTAdamW(given, rank=3, split_sizes=(16, 8, 8))
    other = DCTAdamW(copies(given), rank=3, split_sizes=(8, 8, 16))
    set_gradients(given, 0)
    optimizer.step()
    with (
        unchanged(optimizer),
        pytest.raises(ValueError, match=r"split_sizes=\(16, 8, 8\) in group 0"),
    ):
        optimizer.load_state_dict(other.state_dict())
