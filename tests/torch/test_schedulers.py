"""Learning-rate schedulers act on every group, and on momentum where they cycle it."""

import copy

import pytest
import torch
from helpers import assert_close
from lowrank_torch import DCTAdamW, Trion
from torch.optim import lr_scheduler
from torch_helpers import assert_same_bits, copies, parameters, set_gradients, train

import lowrank_core as lc

pytestmark = pytest.mark.usefixtures("torch")

STEPS = 12
HYPER = {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.2}

FAMILIES = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "warm-up from zero": lambda o: lr_scheduler.LambdaLR(o, lambda step: min(1.0, step / 4)),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=STEPS),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(
        o, max_lr=0.2, total_steps=STEPS + 1, cycle_momentum=False
    ),
    "one cycle with momentum": lambda o: lr_scheduler.OneCycleLR(
        o, max_lr=0.2, total_steps=STEPS + 1, base_momentum=0.5, max_momentum=0.9
    ),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=1),
    "sequence": lambda o: lr_scheduler.SequentialLR(
        o,
        [lr_scheduler.LinearLR(o, 0.1, total_iters=4), lr_scheduler.ExponentialLR(o, 0.8)],
        milestones=[4],
    ),
}


def scheduled(optimizer, given, family):
    """Train, and return the rate and the betas of each step of the last group."""
    scheduler = FAMILIES[family](optimizer)
    seen = []
    for step in range(STEPS):
        group = optimizer.param_groups[-1]
        seen.append((float(group["lr"]), tuple(map(float, group["betas"]))))
        train(optimizer, given, 1, start=step)
        scheduler.step(*([1.0] if family == "plateau" else []))
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_every_step_uses_the_scheduled_values(family):
    (parameter,) = parameters((24, 10))
    (manual,) = copies([parameter])
    # The schedule as PyTorch's own optimizer sees it, then the core's steps with it.
    reference = copies([parameter])
    schedule = scheduled(torch.optim.AdamW(reference, **HYPER), reference, family)
    assert len(set(schedule)) > 2
    value, state = manual.detach().clone(), None
    for step, (rate, betas) in enumerate(schedule):
        config = lc.DCTAdamWConfig(rank=3, betas=betas, eps=HYPER["eps"], **lc.PRESETS["factored"])
        set_gradients([manual], step)
        state = state or lc.dct_adamw_init((24, 10), config, xp=torch)
        update, state = lc.dct_adamw_step(manual.grad, state, config)
        value = value - rate * HYPER["weight_decay"] * value - rate * lc.materialize(update)
    seen = scheduled(DCTAdamW([parameter], rank=3, **HYPER), [parameter], family)
    assert seen == schedule
    assert_close(parameter.detach(), value, xp=torch, dtype="float32", kind="trajectory")


@pytest.mark.parametrize("family", FAMILIES)
def test_groups_are_scheduled_each(family):
    given = parameters((24, 10), (5,))
    theirs = copies(given)
    groups = [{"params": [given[0]]}, {"params": [given[1]], "lr": 0.01, "algorithm": "adamw"}]
    ours = scheduled(DCTAdamW(groups, rank=3, **HYPER), given, family)
    groups = [{"params": [theirs[0]]}, {"params": [theirs[1]], "lr": 0.01}]
    assert ours == scheduled(torch.optim.AdamW(groups, **HYPER), theirs, family)
    assert_close(
        given[1].detach(), theirs[1].detach(), xp=torch, dtype="float32", kind="trajectory"
    )


@pytest.mark.parametrize("shape", [(), (1,)], ids=["0-d", "one number"])
@pytest.mark.parametrize("family", ["lambda", "cosine"])
def test_tensor_rate_is_scheduled_like_a_number(family, shape):
    given, numbers = parameters((24, 10), (5,)), parameters((24, 10), (5,))
    rate = torch.full(shape, 0.0625)
    optimizer = DCTAdamW(given, rank=3, **HYPER | {"lr": rate})
    scheduled(optimizer, given, family)
    scheduled(DCTAdamW(numbers, rank=3, **HYPER | {"lr": 0.0625}), numbers, family)
    assert isinstance(optimizer.param_groups[0]["lr"], torch.Tensor)
    for found, wanted in zip(given, numbers, strict=True):
        assert_close(found.detach(), wanted.detach(), xp=torch, dtype="float32", kind="trajectory")


def test_tensor_rate_is_not_written_to():
    given = parameters((24, 10), (5,))
    rate = torch.tensor(0.0625)
    train(DCTAdamW(given, rank=3, **HYPER | {"lr": rate}), given, 3)
    assert_same_bits([rate], [torch.tensor(0.0625)])


def test_scheduled_run_resumes_through_both_state_dicts():
    given = parameters((24, 10), (5,))
    family = "one cycle with momentum"
    optimizer = DCTAdamW(given, rank=3, **HYPER)
    scheduler = FAMILIES[family](optimizer)
    for step in range(4):
        train(optimizer, given, 1, start=step)
        scheduler.step()
    again = copies(given)
    other = DCTAdamW(again, rank=3, **HYPER)
    resumed = FAMILIES[family](other)
    other.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(scheduler.state_dict())
    for step in range(4, 9):
        for one, theirs, schedule in ((optimizer, given, scheduler), (other, again, resumed)):
            train(one, theirs, 1, start=step)
            schedule.step()
    assert_same_bits(again, given)


def test_a_warm_up_from_zero_counts_all_parameters_alike():
    # Behind a last layer of zeros the others' first gradients are zero.
    up, down = torch.nn.Linear(40, 36), torch.nn.Linear(36, 40)
    torch.nn.init.zeros_(down.weight)
    optimizer = DCTAdamW([*up.parameters(), *down.parameters()], lr=1e-3, rank=4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 5))
    x = torch.ones(3, 40)
    for _ in range(3):
        (down(torch.tanh(up(x))) - x).square().mean().backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    assert {int(state["step"]) for state in optimizer.state.values()} == {3}


@pytest.mark.parametrize("cycle", ["one cycle", "cyclic"])
def test_a_schedule_of_momentum_moves_trions_and_no_beta_of_adamw(cycle):
    weight, bias = parameters((24, 10), (5,))
    groups = [{"params": [weight]}, {"params": [bias], "algorithm": "adamw"}]
    optimizer = copy.deepcopy(Trion(groups, rank=3, momentum=0.7))
    options = {"base_momentum": 0.5, "max_momentum": 0.9}
    if cycle == "one cycle":
        schedule = lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=9, **options)
    else:
        schedule = lr_scheduler.CyclicLR(optimizer, 0.01, 0.1, step_size_up=4, **options)
    given = [p for group in optimizer.param_groups for p in group["params"]]
    (manual,) = copies(given[:1])
    value, state, seen = manual.detach().clone(), None, []
    for step in range(8):
        group = optimizer.param_groups[0]
        seen.append(group["momentum"])
        set_gradients([manual], step)
        config = lc.TrionConfig(rank=3, momentum=seen[-1])
        state = state or lc.trion_init((24, 10), config, xp=torch)
        update, state = lc.trion_step(manual.grad, state, config)
        value = value - group["lr"] * (group["weight_decay"] * value + lc.materialize(update))
        train(optimizer, given, 1, start=step)
        schedule.step()
    assert len(set(seen)) > 4
    assert [group["betas"] for group in optimizer.param_groups] == [(0.9, 0.95)] * 2
    assert_close(given[0].detach(), value, xp=torch, dtype="float32", kind="trajectory")
    # A group that comes later, to a copy too, has the betas of the others.
    optimizer.add_param_group({"params": parameters((6,)), "algorithm": "adamw"})
    assert optimizer.param_groups[-1]["betas"] == (0.9, 0.95)
