"""Gradient scaling: a power of two changes no bit, and a step with an infinite gradient is skipped whole."""

import pytest
import torch
from lowrank_torch import DCTAdamW
from torch_helpers import assert_same_bits, copies, parameters, tensor, unchanged

pytestmark = pytest.mark.usefixtures("torch")


def losses(given, step):
    """A loss whose gradients are seeded numbers."""
    return sum((p * tensor(*p.shape, seed=step * 10 + k)).sum() for k, p in enumerate(given))


def make(given):
    return DCTAdamW(given, lr=0.02, rank=3)


def test_scaled_run_equals_the_plain_run():
    given = parameters((24, 10), (5,))
    plain = copies(given)
    optimizer, other = make(given), make(plain)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(4):
        optimizer.zero_grad()
        scaler.scale(losses(given, step)).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        other.zero_grad()
        losses(plain, step).backward()
        other.step()
    assert scaler.get_scale() == 2.0**10
    assert_same_bits(given, plain)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_step_with_an_infinite_gradient_is_skipped(bad):
    given = parameters((24, 10), (5,))
    optimizer = make(given)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for step in range(2):
        optimizer.zero_grad()
        scaler.scale(losses(given, step)).backward()
        if step == 1:
            given[1].grad[2] = bad
            with unchanged(optimizer):
                scaler.unscale_(optimizer)
                # What is unscaled is the caller's own gradient; it is put back to be compared.
                for parameter in given:
                    parameter.grad.mul_(4)
                scaler.step(optimizer)
        else:
            scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 2.0
    assert optimizer.state[given[0]]["step"] == 1
