"""What training loops do with any optimizer: closures, accumulation, clipping, scaling, hooks, copies."""

import copy
import pickle

import pytest
import torch
from lowrank_torch import DCTAdamW
from torch import nn
from torch_helpers import (
    OPTIMIZERS,
    all_parameters,
    assert_same_bits,
    assert_same_state,
    copies,
    parameters,
    set_gradients,
    tensor,
    train,
    unchanged,
)

pytestmark = pytest.mark.usefixtures("torch")

SHAPES = ((24, 10), (10, 24), (6, 4, 3, 3), (5,))


def make(optimizer_type, given, **options):
    return optimizer_type(given, **{"lr": 0.02, "weight_decay": 0.1, "rank": 3} | options)


def regression():
    """A small model, its optimizer and the loss of micro-batch ``k``."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 8))
    optimizer = make(DCTAdamW, model.parameters())
    inputs = tensor(4, 5, 6, seed=1)
    targets = inputs @ tensor(6, 8, seed=2)
    return model, optimizer, lambda k: (model(inputs[k % 4]) - targets[k % 4]).square().mean()


@pytest.mark.parametrize("optimizer_type", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_are_read_and_never_written(optimizer_type, dtype):
    given = parameters(*SHAPES, dtype=dtype)
    given[2].data = given[2].data.to(memory_format=torch.channels_last)
    optimizer = make(optimizer_type, given)
    for step in range(3):
        set_gradients(given, step)
        before = [(p.grad, p.grad.clone(), p.grad.data_ptr(), p.grad._version) for p in given]
        optimizer.step()
        for parameter, (gradient, bits, pointer, version) in zip(given, before, strict=True):
            assert parameter.grad is gradient
            assert (gradient.data_ptr(), gradient._version) == (pointer, version)
            assert_same_bits([gradient], [bits])


@pytest.mark.parametrize("optimizer_type", OPTIMIZERS)
def test_parameters_are_written_in_place(optimizer_type):
    given = parameters(*SHAPES)
    before = [(p, p.data_ptr(), p.detach().clone()) for p in given]
    train(make(optimizer_type, given), given, 1)
    for parameter, (same, pointer, value) in zip(given, before, strict=True):
        assert parameter is same
        assert parameter.data_ptr() == pointer
        assert not torch.equal(parameter, value)


def test_closure_is_evaluated_with_gradients_and_its_loss_returned():
    model, optimizer, loss_of = regression()
    twin, other, loss_of_twin = regression()
    for step in range(4):

        def closure(step=step):
            optimizer.zero_grad()
            loss = loss_of(step)
            loss.backward()
            return loss

        with torch.no_grad():
            returned = optimizer.step(closure)
        other.zero_grad()
        expected = loss_of_twin(step)
        expected.backward()
        other.step()
        assert torch.equal(returned, expected)
    assert_same_bits(model.parameters(), twin.parameters())
    assert optimizer.step() is None


def test_training_lowers_the_loss():
    _, optimizer, loss_of = regression()
    losses = []
    for step in range(120):
        optimizer.zero_grad()
        loss = loss_of(step)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-4:]) < 0.5 * sum(losses[:4])


def test_accumulated_gradients_are_one_gradient():
    model, optimizer, loss_of = regression()
    twin, other, loss_of_twin = regression()
    for _ in range(3):
        optimizer.zero_grad()
        for micro in range(4):
            (loss_of(micro) / 4).backward()
        optimizer.step()
        other.zero_grad()
        sums = [torch.zeros_like(parameter) for parameter in twin.parameters()]
        for micro in range(4):
            parts = torch.autograd.grad(loss_of_twin(micro) / 4, list(twin.parameters()))
            sums = [total + part for total, part in zip(sums, parts, strict=True)]
        for parameter, total in zip(twin.parameters(), sums, strict=True):
            parameter.grad = total
        other.step()
    assert_same_bits(model.parameters(), twin.parameters())


def test_clipped_gradients_are_what_is_stepped():
    given = parameters(*SHAPES)
    scaled = copies(given)
    optimizer, other = make(DCTAdamW, given), make(DCTAdamW, scaled)
    for step in range(3):
        set_gradients(given, step)
        set_gradients(scaled, step)
        norm = torch.nn.utils.clip_grad_norm_(given, 0.5)
        assert norm > 0.5
        for parameter in scaled:
            parameter.grad.mul_(0.5 / (norm + 1e-6))
        optimizer.step()
        other.step()
        after = torch.nn.utils.get_total_norm([parameter.grad for parameter in given])
        assert after == pytest.approx(0.5, rel=1e-4)
    assert_same_bits(given, scaled)


def test_zero_grad_to_none_skips_and_to_zero_steps():
    given = parameters(*SHAPES)
    optimizer = make(DCTAdamW, given)
    train(optimizer, given, 2)
    optimizer.zero_grad(set_to_none=True)
    assert all(parameter.grad is None for parameter in given)
    with unchanged(optimizer):
        optimizer.step()
    set_gradients(given, 2)
    optimizer.zero_grad(set_to_none=False)
    assert all(torch.count_nonzero(parameter.grad) == 0 for parameter in given)
    before = [parameter.detach().clone() for parameter in given]
    optimizer.step()
    for parameter, value in zip(given, before, strict=True):
        assert not torch.equal(parameter, value)
        assert torch.isfinite(parameter).all()


@pytest.mark.parametrize("optimizer_type", OPTIMIZERS)
def test_step_with_zero_gradients_and_rate_moves_nothing(optimizer_type):
    given = parameters(*SHAPES)
    before = [parameter.detach().clone() for parameter in given]
    optimizer = make(optimizer_type, given, lr=0.0)
    for parameter in given:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert_same_bits(given, before)
    for group in optimizer.param_groups:
        group["lr"] = 0.02
    train(optimizer, given, 3)
    for parameter, value in zip(given, before, strict=True):
        assert torch.isfinite(parameter).all()
        assert not torch.equal(parameter, value)


def test_hooks_around_a_step_are_called_in_order():
    given = parameters(*SHAPES)
    optimizer = make(DCTAdamW, given)
    before = [parameter.detach().clone() for parameter in given]
    seen = []

    def first(opt, args, kwargs):
        assert opt is optimizer
        assert_same_bits(given, before)
        seen.append("pre")

    def last(opt, args, kwargs):
        assert opt is optimizer
        assert not torch.equal(given[0], before[0])
        seen.append("post")

    handles = optimizer.register_step_pre_hook(first), optimizer.register_step_post_hook(last)
    train(optimizer, given, 1)
    assert seen == ["pre", "post"]
    for handle in handles:
        handle.remove()
    train(optimizer, given, 1)
    assert seen == ["pre", "post"]


def test_step_hook_may_change_gradients():
    given = parameters(*SHAPES)
    doubled = copies(given)
    optimizer, other = make(DCTAdamW, given), make(DCTAdamW, doubled)

    def double(opt, args, kwargs):
        for parameter in all_parameters(opt):
            parameter.grad = 3 * parameter.grad

    optimizer.register_step_pre_hook(double)
    for step in range(3):
        set_gradients(given, step)
        set_gradients(doubled, step)
        for parameter in doubled:
            parameter.grad.mul_(3)
        optimizer.step()
        other.step()
    assert_same_bits(given, doubled)


@pytest.mark.parametrize("optimizer_type", OPTIMIZERS)
def test_copies_go_on_like_the_original(optimizer_type):
    given = parameters(*SHAPES)
    optimizer = make(optimizer_type, given)
    train(optimizer, given, 4)
    deep, deep_given = copy.deepcopy((optimizer, given))
    pickled, pickled_given = pickle.loads(pickle.dumps((optimizer, given)))
    train(optimizer, given, 4, start=4)
    for twin, theirs in ((deep, deep_given), (pickled, pickled_given)):
        assert [id(p) for p in all_parameters(twin)] == [id(p) for p in theirs]
        train(twin, theirs, 4, start=4)
        assert_same_bits(theirs, given)
        assert_same_state(twin, optimizer)
        assert twin.summary() == optimizer.summary()
        twin.add_param_group({"params": parameters((8, 6))})
        twin.load_state_dict(copy.deepcopy(twin.state_dict()))


def test_copy_of_an_optimizer_loads_what_the_original_saved():
    given = parameters(*SHAPES)
    optimizer = make(DCTAdamW, given)
    train(optimizer, given, 2)
    twin, theirs = copy.deepcopy((optimizer, given))
    train(twin, theirs, 1)
    twin.load_state_dict(optimizer.state_dict())
    assert_same_state(twin, optimizer)


def test_representation_names_the_options():
    text = repr(make(DCTAdamW, parameters((8, 6))))
    assert text.startswith("DCTAdamW(dct_adamw: ")
    assert "rank=3" in text
    assert "\n" not in text
