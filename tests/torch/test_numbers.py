"""Options of groups may be numbers of any kind; what is none is refused before any parameter has moved."""

import lowrank_torch
import numpy as np
import pytest
import torch

OPTIMIZERS = [lowrank_torch.DCTAdamW, lowrank_torch.Trion]


def two_groups(kind, **options):
    parameters = [torch.nn.Parameter(torch.ones(shape)) for shape in ((8, 6), (8, 6), (6,))]
    optimizer = kind([{"params": [p]} for p in parameters], rank=2, **options)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    return parameters, optimizer


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("number", [np.array(0.1), np.float32(0.1), np.array(0.1, ">f8")], ids=repr)
def test_numbers_of_numpy_step_as_pythons(kind, number):
    moved = []
    for value in (number, float(number)):
        parameters, optimizer = two_groups(kind, lr=value, betas=(value, value), eps=value)
        optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] = group["weight_decay"] = value
        optimizer.param_groups[0]["betas"] = [value, value]
        optimizer.step()
        moved.append([p.detach().clone() for p in parameters])
        assert type(optimizer.param_groups[0]["lr"]) is float
    for one, other in zip(*moved, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", ["lr", "weight_decay", "eps"])
@pytest.mark.parametrize("bad", [np.array([0.1, 0.1]), np.array(-1.0), np.array(1j), "x"], ids=repr)
def test_a_bad_number_moves_nothing(kind, name, bad):
    parameters, optimizer = two_groups(kind)
    optimizer.step()
    before = [p.detach().clone() for p in parameters]
    optimizer.param_groups[1][name] = bad
    with pytest.raises((TypeError, ValueError), match=name):
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(parameters, before, strict=True))


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize(
    "bad",
    [
        {"betas": (1.0, 0.9)},
        {"betas": (0.9, 1.5)},
        {"betas": "ab"},
        {"betas": None},
        {"eps": "x"},
        {"eps": float("nan")},
        {"eps": -1.0},
    ],
    ids=str,
)
def test_what_adamw_needs_is_checked_by_every_optimizer(kind, bad):
    (name,) = bad
    with pytest.raises((TypeError, ValueError), match=name):
        two_groups(kind, **bad)
    _, optimizer = two_groups(kind)
    new = {"params": [torch.nn.Parameter(torch.ones(3))], **bad}
    with pytest.raises((TypeError, ValueError), match=name):
        optimizer.add_param_group(new)
    assert len(optimizer.param_groups) == 3
