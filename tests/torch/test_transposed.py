"""Weights kept as (in, out) are stepped as the (out, in) of `torch.nn.Linear`: one function, one update."""

import helpers
import pytest
import torch
from lowrank_torch import DCTAdamW, Trion, accumulate_projected
from torch_helpers import assert_same_bits, unchanged

pytestmark = pytest.mark.usefixtures("torch")

OPTIMIZERS = [
    (DCTAdamW, {"rank": 4}),
    (DCTAdamW, {"rank": 4, "side": "left"}),
    (DCTAdamW, {"preset": None, "rank": 4, "residual": "error_feedback", "feedback_bits": 8}),
    (Trion, {"rank": 4}),
    (Trion, {"rank": 40, "scale": "dion"}),
]


def normal(*shape, seed=0):
    return torch.from_numpy(helpers.normal(*shape, seed=seed)).float()


def steps(parameter, optimizer, gradients):
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()


def both(shape, optimizer, options, **group):
    """Return an (out, in) parameter and its transpose, each stepped three times, and their optimizers."""
    plain = torch.nn.Parameter(normal(*shape))
    turned = torch.nn.Parameter(plain.detach().mT.contiguous())
    gradients = [normal(*shape, seed=seed) for seed in (1, 2, 3)]
    made = [
        optimizer([{"params": [p], "transposed": p is turned, **group}], lr=0.02, **options)
        for p in (plain, turned)
    ]
    steps(plain, made[0], gradients)
    steps(turned, made[1], [g.mT.contiguous() for g in gradients])
    return plain, turned, *made


@pytest.mark.parametrize(("optimizer", "options"), OPTIMIZERS, ids=str)
@pytest.mark.parametrize("shape", [(64, 16), (16, 64), (32, 32)], ids=str)
def test_update_is_that_of_the_transpose(optimizer, options, shape):
    plain, turned, *_ = both(shape, optimizer, options)
    torch.testing.assert_close(turned.mT, plain, rtol=1e-5, atol=1e-6)


def test_state_is_that_of_the_transpose():
    *_, one, other = both((64, 16), DCTAdamW, {"rank": 4})
    (plain,), (turned,) = one.summary(), other.summary()
    assert (plain.rank, plain.axis, plain.state_bytes) == (
        turned.rank,
        turned.axis,
        turned.state_bytes,
    )
    assert_same_bits(
        [one.state[p]["indices"] for p in one.state],
        [other.state[p]["indices"] for p in other.state],
    )


def test_parts_are_cut_along_the_outputs():
    group = {"split_sizes": [32, 16, 16], "num_heads": [4, 2, 2]}
    plain, turned, *_ = both((64, 32), DCTAdamW, {"rank": 3}, **group)
    torch.testing.assert_close(turned.mT, plain, rtol=1e-5, atol=1e-6)


def test_stack_of_experts():
    plain, turned, *_ = both((3, 24, 16), Trion, {"rank": 4}, batch_dims=1)
    torch.testing.assert_close(turned.mT, plain, rtol=1e-5, atol=1e-6)


def test_parameter_and_gradient_keep_their_memory():
    parameter = torch.nn.Parameter(normal(16, 64))
    place, strides = parameter.data_ptr(), parameter.stride()
    optimizer = Trion([{"params": [parameter], "transposed": True}], lr=0.02, rank=4)
    gradient = normal(16, 64, seed=1)
    parameter.grad = gradient
    optimizer.step()
    assert (parameter.data_ptr(), parameter.stride()) == (place, strides)
    assert_same_bits([gradient], [normal(16, 64, seed=1)])


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_convolution_backwards_is_flattened_before_it_is_turned(memory):
    kernel = normal(16, 24, 3, 3)
    plain = torch.nn.Parameter(kernel.flatten(1).mT.contiguous())
    turned = torch.nn.Parameter(kernel.clone(memory_format=memory))
    gradient = normal(16, 24, 3, 3, seed=1)
    for parameter, own in ((plain, gradient.flatten(1).mT.contiguous()), (turned, gradient)):
        group = {"params": [parameter], "transposed": parameter is turned}
        steps(parameter, Trion([group], lr=0.02, rank=4), [own])
    torch.testing.assert_close(turned.flatten(1).mT, plain, rtol=1e-5, atol=1e-6)


def test_projected_accumulation_projects_the_transpose():
    found = []
    for transposed in (False, True):
        first = normal(64, 16)
        parameter = torch.nn.Parameter(first.mT.contiguous() if transposed else first)
        optimizer = DCTAdamW(
            [{"params": [parameter], "transposed": transposed}],
            lr=0.02,
            rank=4,
            preset=None,
            residual="discard",
            refresh_every=5,
        )
        with accumulate_projected(optimizer):
            for seed in (1, 2, 3):
                gradient = normal(64, 16, seed=seed)
                ((gradient.mT if transposed else gradient) * parameter).sum().backward()
                optimizer.step()
                optimizer.zero_grad()
        found.append(parameter.mT if transposed else parameter)
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


def test_state_is_made_for_one_order():
    *_, one, other = both((64, 16), DCTAdamW, {"rank": 4})
    with unchanged(other), pytest.raises(ValueError, match="made with transposed=True in group 0"):
        other.load_state_dict(one.state_dict())


def test_order_is_told_by_a_truth_value():
    with pytest.raises(ValueError, match="transposed must be one of False, True, got 'yes'"):
        DCTAdamW([{"params": [torch.nn.Parameter(normal(4, 4))], "transposed": "yes"}], rank=2)


def test_parts_that_do_not_add_up_are_told_of_outputs():
    group = {"transposed": True, "split_sizes": [8, 8]}
    with pytest.raises(ValueError, match="split_sizes must add up to the 64 rows"):
        DCTAdamW([{"params": [torch.nn.Parameter(normal(16, 64))], **group}], rank=2)
