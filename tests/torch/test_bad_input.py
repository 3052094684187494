"""Bad input is an error that names the argument, the rule and the value, before anything has changed."""

import math

import pytest
import torch
from lowrank_torch import DCTAdamW
from torch_helpers import parameters, set_gradients, tensor, train, unchanged

pytestmark = pytest.mark.usefixtures("torch")

NAN = math.nan
RANK = "rank must be a positive integer or a fraction in"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rank": 0}, ValueError, rf"{RANK} .*, got 0$"),
        ({"rank": -2}, ValueError, rf"{RANK} .*, got -2$"),
        ({"rank": 1.5}, ValueError, rf"{RANK} .*, got 1\.5$"),
        ({"rank": 0.0}, ValueError, rf"{RANK} .*, got 0\.0$"),
        ({"rank": NAN}, ValueError, rf"{RANK} .*, got nan$"),
        ({"rank": True}, TypeError, rf"{RANK} .*, got True$"),
        ({"rank": "4"}, TypeError, rf"{RANK} .*, got '4'$"),
        ({"lr": NAN}, ValueError, "lr must be at least 0 and finite, got nan"),
        ({"lr": -1e-3}, ValueError, "lr must be at least 0 and finite, got -0.001"),
        ({"lr": math.inf}, ValueError, "lr must be at least 0 and finite, got inf"),
        ({"lr": "fast"}, TypeError, "lr must be a number, got 'fast'"),
        ({"lr": None}, TypeError, "lr must be a number, got None"),
        ({"lr": torch.tensor(NAN)}, ValueError, "lr must be at least 0 and finite, got nan"),
        ({"lr": torch.ones(2)}, ValueError, r"lr must be one number, got .* shape \(2,\)"),
        ({"betas": (0.9, NAN)}, ValueError, r"betas\[1\] must be at least 0 .*, got nan"),
        ({"betas": (-0.1, 0.9)}, ValueError, r"betas\[0\] must be at least 0 .*, got -0.1"),
        ({"betas": (0.9, 1.0)}, ValueError, r"betas\[1\] must be .* less than 1, got 1.0"),
        ({"betas": 0.9}, ValueError, "betas must be a pair of numbers, got 0.9"),
        ({"betas": (0.9,)}, ValueError, r"betas must be a pair of numbers, got \(0.9,\)"),
        ({"eps": -1e-8}, ValueError, "eps must be at least 0 and finite, got -1e-08"),
        ({"eps": NAN}, ValueError, "eps must be at least 0 and finite, got nan"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay must be at least 0 .*, got -0.1"),
        ({"weight_decay": NAN}, ValueError, "weight_decay must be at least 0 .*, got nan"),
        ({"refresh_every": 0}, ValueError, "refresh_every must be at least 1, got 0"),
        ({"refresh_every": 2.0}, TypeError, "refresh_every must be an integer, got 2.0"),
        ({"batch_dims": -1}, ValueError, "batch_dims must be at least 0, got -1"),
        ({"batch_dims": None}, TypeError, "batch_dims must be an integer, got None"),
        ({"maximize": "yes"}, ValueError, "maximize must be one of False, True, got 'yes'"),
        ({"algorithm": "sgd"}, ValueError, "algorithm must be one of 'dct_adamw', .* got 'sgd'"),
        ({"basis": "fourier"}, ValueError, "basis must be .*got 'fourier'"),
        ({"score": "l3"}, ValueError, "score must be one of .*got 'l3'"),
        ({"side": "top"}, ValueError, "side must be one of .*got 'top'"),
        ({"method": "svd"}, ValueError, "method must be one of .*got 'svd'"),
        ({"residual": "keep"}, ValueError, "residual must be one of .*got 'keep'"),
        ({"bias_correction": "no"}, ValueError, "bias_correction must be one of .*got 'no'"),
        ({"state_dtype": "int8"}, ValueError, "state_dtype must be one of .*got 'int8'"),
        ({"state_dtype": torch.int8}, ValueError, "state_dtype must be one of .*int8"),
        ({"fused": True}, TypeError, "DCTAdamW has no option 'fused', which is one of AdamW"),
        ({"momentum": 0.9}, TypeError, "DCTAdamW has no option 'momentum', .* betas"),
    ],
    ids=lambda value: f"{value}".replace("\n", "")[:40] if isinstance(value, dict) else "",
)
def test_constructor_refuses(options, error, message):
    given = parameters((12, 8), (5,))
    with pytest.raises(error, match=message):
        DCTAdamW(given, **{"rank": 4} | options)


def made_sparse(gradient):
    return gradient.to_sparse()


BAD_GRADIENTS = [
    ((6, 4), torch.float32, made_sparse, "the gradient of last must be dense, got .*sparse"),
    ((6, 9), torch.complex64, lambda g: g, "the gradient of last must be .*real.*complex64"),
    ((5,), torch.complex64, lambda g: g, "the gradient of last must be .*real.*complex64"),
]


@pytest.mark.parametrize(("shape", "dtype", "turn", "message"), BAD_GRADIENTS)
@pytest.mark.parametrize("stepped", [0, 2], ids=["first step", "later step"])
def test_bad_gradient_of_the_last_parameter_changes_nothing(shape, dtype, turn, message, stepped):
    first, bias = parameters((12, 8), (5,))
    last = torch.nn.Parameter(tensor(*shape).to(dtype))
    groups = [
        {"params": [("first", first), ("bias", bias)]},
        {"params": [("last", last)], "rank": 3},
    ]
    optimizer = DCTAdamW(groups, rank=4)
    train(optimizer, [first, bias], stepped)
    set_gradients([first, bias], stepped)
    last.grad = turn(tensor(*shape, seed=7).to(dtype))
    with unchanged(optimizer), pytest.raises(TypeError, match=message):
        optimizer.step()


def test_sparse_embedding_gradient_is_refused():
    (matrix,) = parameters((12, 8))
    table = torch.nn.Embedding(9, 4, sparse=True)
    optimizer = DCTAdamW(
        [{"params": [matrix]}, {"params": [table.weight], "algorithm": "adamw"}], rank=3
    )
    set_gradients([matrix], 0)
    table(torch.tensor([1, 2])).sum().backward()
    with (
        unchanged(optimizer),
        pytest.raises(TypeError, match="parameter 0 of group 1 must be dense"),
    ):
        optimizer.step()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("lr", NAN, "lr must be at least 0 and finite, got nan"),
        ("lr", torch.tensor(NAN), "lr must be at least 0 and finite, got nan"),
        ("betas", (0.9, 1.5), r"betas\[1\] must be .* got 1.5"),
        ("weight_decay", -1.0, "weight_decay must be at least 0 and finite, got -1.0"),
        ("rank", 0, f"{RANK}.* got 0"),
        ("rank", 5, "the optimizer's state must fit .*first_moment of last is of shape"),
        ("side", "left", "the optimizer's state must fit .*energy of last is of shape"),
        (
            "algorithm",
            "adamw",
            "the optimizer's state must fit .*energy of last is of shape absent",
        ),
    ],
)
def test_option_of_the_last_group_gone_bad_changes_nothing(option, value, message):
    first, bias, last = parameters((12, 8), (5,), (12, 6))
    groups = [
        {"params": [("first", first), ("bias", bias)]},
        {"params": [("last", last)], "rank": 3},
    ]
    optimizer = DCTAdamW(groups, rank=4)
    train(optimizer, [first, bias, last], 2)
    set_gradients([first, bias, last], 2)
    optimizer.param_groups[-1][option] = value
    with unchanged(optimizer), pytest.raises(ValueError, match=message):
        optimizer.step()


def test_rate_that_a_scheduler_made_nan_is_refused():
    given = parameters((12, 8), (5,))
    optimizer = DCTAdamW(given, rank=4)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 if step < 1 else NAN)
    train(optimizer, given, 1)
    scheduler.step()
    set_gradients(given, 1)
    with (
        unchanged(optimizer),
        pytest.raises(ValueError, match="lr must be at least 0 and finite, got nan"),
    ):
        optimizer.step()
