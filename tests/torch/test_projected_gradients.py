"""Gradients that are kept as coefficients, in the hands of whoever looks at ``.grad`` between backward and step."""

import copy

import pytest
import torch
from lowrank_torch import DCTAdamW, accumulate_projected
from torch import nn
from torch_helpers import assert_same_bits, tensor

pytestmark = pytest.mark.usefixtures("torch")

REFRESH = 4


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 16))


def optimizer_of(net):
    options = {
        "preset": None,
        "lr": 0.01,
        "rank": 4,
        "refresh_every": REFRESH,
        "residual": "discard",
    }
    return DCTAdamW(net.named_parameters(), **options)


def backward(net, step, scaler=None, *, scale=1.0):
    loss = (net(scale * tensor(8, 16, seed=step)) ** 2).mean()
    (loss if scaler is None else scaler.scale(loss)).backward()


def run(projected, between=lambda net: True, *, scaler=None, to_none=True, parts=1, scales=()):
    """Parameters after steps of ``parts`` backward passes, with ``between`` after those, which may skip the step."""
    net = model()
    optimizer = optimizer_of(net)
    if projected:
        accumulate_projected(optimizer)
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    for step in range(7):
        for part in range(parts):
            scale = scales[step] if step < len(scales) else 1.0
            backward(net, 10 * step + part, scaler, scale=scale)
        if between(net) is not False:
            scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=to_none)
    return list(net.parameters())


def kept(steps=2):
    """A model and an optimizer that keeps its gradients projected, with those of a backward pass."""
    net = model()
    optimizer = optimizer_of(net)
    accumulate_projected(optimizer)
    for step in range(steps):
        backward(net, step)
        if step < steps - 1:
            optimizer.step()
    assert len(optimizer.projected()) == 2
    return net, optimizer


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("parts", [1, 2])
def test_a_scaled_run_is_the_plain_one(parts, to_none):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    scaled = run(True, scaler=scaler, parts=parts, to_none=to_none)
    assert scaler.get_scale() == 2.0**12
    assert_same_bits(scaled, run(True, parts=parts))


def clipped_run(scaler):
    """Parameters after steps on gradients that are unscaled and clipped as a trainer does."""
    net = model()
    optimizer = optimizer_of(net)
    accumulate_projected(optimizer)
    for step in range(7):
        backward(net, step, scaler)
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(net.parameters(), 0.05)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    return list(net.parameters())


def test_a_scaled_run_is_clipped_as_the_plain_one():
    scaled = clipped_run(torch.amp.GradScaler("cpu", init_scale=2.0**12))
    assert_same_bits(scaled, clipped_run(torch.amp.GradScaler("cpu", enabled=False)))


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_scaler_skips_a_step_whose_coefficients_overflow(bad):
    def spoil(net):
        spoil.step += 1
        if spoil.step == 3:
            # The gradient of the second matrix is finite, as are those of the vectors.
            net[0].weight.grad.mul_(bad)

    spoil.step = 0
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    given = run(True, spoil, scaler=scaler)
    assert scaler.get_scale() == 2.0
    assert all(p.isfinite().all() for p in given)


def skips_nan(net):
    return all(torch.isfinite(p.grad).all() for p in net.parameters())


def asks_each(net):
    return not any(p.grad.isnan().any() or p.grad.isinf().any() for p in net.parameters())


def clips(net):
    nn.utils.clip_grad_norm_(net.parameters(), 0.05)


def clips_in_a_loop(net):
    norm = torch.stack([p.grad.data.norm(2) for p in net.parameters()]).norm(2)
    for parameter in net.parameters():
        parameter.grad.data.mul_(0.05 / max(norm, 0.05))


def divides(net):
    for parameter in net.parameters():
        parameter.grad = parameter.grad / 2


def forgets(net):
    net.zero_grad()
    backward(net, 99)


@pytest.mark.parametrize(
    "between", [skips_nan, asks_each, clips, clips_in_a_loop, divides, forgets]
)
def test_who_looks_at_gradients_finds_them(between):
    # One batch whose weights' gradients are not finite, where the run survives it.
    scales = (1.0, 1.0, float("inf")) if between in (skips_nan, asks_each) else ()
    whole = run(False, between, scales=scales)
    for found, wanted in zip(run(True, between, scales=scales), whole, strict=True):
        # Coefficients are scaled in another order than gradients.
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_the_norm_of_several_gradients_is_refused():
    net, _ = kept()
    backward(net, 7)
    with pytest.raises(
        NotImplementedError, match=r"norm of the gradient of 0.weight.*clip_norm_.*max_g"
    ):
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)


def test_numbers_that_are_gone_are_refused():
    net, _ = kept()
    gradient = net[0].weight.grad
    for ask in (
        torch.sum,
        torch.abs,
        lambda x: x + 1,
        lambda x: x.clamp_(-1, 1),
        torch.Tensor.numpy,
    ):
        with pytest.raises((NotImplementedError, RuntimeError), match=r"0\.weight|numpy"):
            ask(gradient)
    with pytest.raises(NotImplementedError, match=r"mul_.* needs the whole gradient of 0.weight"):
        gradient.mul_(torch.ones(24, 16))
    assert repr(gradient) == "ProjectedGradient(0.weight, shape=(24, 16), 96 coefficients)"


def test_copies_have_coefficients_of_their_own():
    net, _ = kept()
    gradient = net[0].weight.grad
    for copied in (gradient.clone(), copy.deepcopy(gradient)):
        copied.zero_()
        assert not copied.parts[0].any()
    assert gradient.parts[0].any()
    gradient.detach().zero_()
    assert not gradient.parts[0].any()


def test_loading_forgets_them():
    net, optimizer = kept()
    optimizer.load_state_dict(optimizer.state_dict())
    assert net[0].weight.grad is None
    assert net[0].bias.grad is not None
