"""What is no hidden matrix, or has a rank that saves nothing, gets AdamW as PyTorch does it, and is reported so."""

import pytest
import torch
from helpers import assert_close
from lowrank_torch import DCTAdamW, Trion
from torch_helpers import assert_same_bits, copies, parameters, set_gradients, train

pytestmark = pytest.mark.usefixtures("torch")

HYPER = {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.3}
STEPS = 6


@pytest.mark.parametrize(
    ("shape", "options", "reason"),
    [
        ((), {}, "0-dimensional, not a matrix"),
        ((7,), {}, "1-dimensional, not a matrix"),
        ((24, 4), {}, "rank 4 is not below the transformed size 4"),
        ((3, 24), {}, "rank 4 is not below the transformed size 3"),
        ((24, 4), {"side": "right", "rank": 9}, "rank 9 is not below the transformed size 4"),
        ((2, 3, 1, 1), {}, "rank 4 is not below the transformed size 2"),
        ((5, 9), {"batch_dims": 1}, "1-dimensional, not a matrix"),
        ((30, 8), {"algorithm": "adamw"}, ""),
        ((0, 9), {}, "rank 4 is not below the transformed size 0"),
        ((0,), {}, "1-dimensional, not a matrix"),
    ],
    ids=lambda value: str(value) if isinstance(value, tuple) else None,
)
@pytest.mark.parametrize("maximize", [False, True])
def test_equals_torch_adamw(shape, options, reason, maximize):
    ours = parameters(shape)
    theirs = copies(ours)
    optimizer = DCTAdamW(ours, **{"rank": 4, "maximize": maximize} | HYPER | options)
    train(optimizer, ours, STEPS)
    train(torch.optim.AdamW(theirs, maximize=maximize, **HYPER), theirs, STEPS)
    assert_close(ours[0].detach(), theirs[0].detach(), xp=torch, dtype="float32", kind="trajectory")
    (row,) = optimizer.summary()
    assert (row.algorithm, row.rank, row.axis, row.reason) == ("adamw", None, None, reason)
    assert row.shape == shape


@pytest.mark.parametrize("shape", [(0, 9), (9, 0), (2, 0, 3), (0,)])
def test_trion_takes_what_is_empty(shape):
    given = parameters(shape, (12, 8))
    optimizer = Trion(given, rank=3, batch_dims=max(0, len(shape) - 2))
    train(optimizer, given, 2)
    row, _ = optimizer.summary()
    assert row.algorithm == "adamw"
    optimizer.load_state_dict(optimizer.state_dict())
    train(optimizer, given, 1)


def test_rank_one_below_the_size_is_low_rank():
    ours = parameters((24, 5))
    (row,) = DCTAdamW(ours, rank=4).summary()
    assert (row.algorithm, row.rank, row.axis, row.reason) == ("dct_adamw", 4, -1, "")


def test_embedding_in_a_group_of_its_own_equals_torch_adamw():
    torch.manual_seed(0)
    ours = torch.nn.Embedding(20, 6)
    theirs = torch.nn.Embedding(20, 6)
    theirs.load_state_dict(ours.state_dict())
    groups = [{"params": ours.parameters(), "algorithm": "adamw"}]
    pairs = (
        (ours, DCTAdamW(groups, rank=2, **HYPER)),
        (theirs, torch.optim.AdamW(theirs.parameters(), **HYPER)),
    )
    for table, optimizer in pairs:
        for step in range(STEPS):
            optimizer.zero_grad()
            table(torch.tensor([step, 1, 1, 19])).square().sum().backward()
            optimizer.step()
    assert_close(
        ours.weight.detach(), theirs.weight.detach(), xp=torch, dtype="float32", kind="trajectory"
    )


@pytest.mark.parametrize("shape", [(24, 10), (7,)], ids=["low rank", "adamw"])
def test_first_gradient_may_come_late(shape):
    early, late = parameters((8, 6), shape)
    (alone,) = copies([late])
    optimizer = DCTAdamW([early, late], rank=3, **HYPER)
    before = late.detach().clone()
    train(optimizer, [early], 3)
    assert_same_bits([late], [before])
    assert not optimizer.state.get(late)
    reference = DCTAdamW([alone], rank=3, **HYPER)
    for step in range(4):
        set_gradients([early, late], step)
        alone.grad = late.grad.clone()
        optimizer.step()
        reference.step()
    assert_same_bits([late], [alone])
    assert optimizer.state[late]["step"] == 4
    assert optimizer.state[early]["step"] == 7


@pytest.mark.parametrize("shape", [(24, 10), (7,)], ids=["low rank", "adamw"])
def test_without_a_gradient_nothing_happens(shape):
    stepped, left = parameters(shape, shape)
    before = left.detach().clone()
    optimizer = DCTAdamW([stepped, left], rank=3, **HYPER)
    train(optimizer, [stepped], 2)
    assert_same_bits([left], [before])
    assert not torch.equal(stepped, parameters(shape)[0])


@pytest.mark.parametrize("side", ["left", "right"])
def test_matrix_without_rows_is_stepped_in_place(side):
    empty, full = parameters((0, 9) if side == "right" else (9, 0), (12, 9))
    optimizer = DCTAdamW([empty, full], rank=3, side=side, **HYPER)
    assert [row.algorithm for row in optimizer.summary()] == ["dct_adamw", "dct_adamw"]
    train(optimizer, [empty, full], 3)
    assert optimizer.state[empty]["step"] == 3
    assert optimizer.state[empty]["first_moment"].numel() == 0
