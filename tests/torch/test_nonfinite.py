"""A gradient that holds NaN or infinity: stepped on, a step skipped as a whole, or an error, as the option says."""

import copy
import math

import pytest
import torch
from lowrank_torch import DCTAdamW, step_in_backward
from sharded_torch import launch
from torch_helpers import OPTIMIZERS, parameters, set_gradients, train, unchanged

pytestmark = pytest.mark.usefixtures("torch")

SHAPES = ((12, 8), (12, 8), (5,))
BAD = (math.nan, math.inf, -math.inf)


def poisoned(given, step, value, place=-1):
    set_gradients(given, step)
    given[place].grad.view(-1)[3] = value


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("place", range(len(SHAPES)))
@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("before", [0, 2])
def test_a_step_is_skipped_as_a_whole_and_counted(kind, place, value, before):
    given = parameters(*SHAPES)
    optimizer = kind(given, rank=3, nonfinite="skip")
    train(optimizer, given, before)
    poisoned(given, before, value, place)
    with unchanged(optimizer):
        optimizer.step()
    assert optimizer.skipped_steps == 1
    assert len(optimizer.state) == (len(given) if before else 0)
    # The run goes on as if there had been no such step.
    plain = copy.deepcopy(optimizer)
    train(optimizer, given, 2, before + 1)
    assert optimizer.skipped_steps == 1
    others = [p for group in plain.param_groups for p in group["params"]]
    for group in plain.param_groups:
        group["nonfinite"] = "propagate"
    train(plain, others, 2, before + 1)
    assert all(torch.equal(one, other) for one, other in zip(given, others, strict=True))


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("before", [0, 2])
def test_raise_names_the_parameter_before_anything_moves(kind, before):
    given = parameters(*SHAPES)
    named = list(zip(("a", "b", "bias"), given, strict=True))
    optimizer = kind(named, rank=3, nonfinite="raise")
    train(optimizer, given, before)
    poisoned(given, before, math.inf)
    with unchanged(optimizer), pytest.raises(ValueError, match="gradient of bias must be finite"):
        optimizer.step()


def test_a_group_decides_for_its_own_gradients():
    first, last = parameters((12, 8), (5,))
    groups = [{"params": [first]}, {"params": [last], "nonfinite": "skip"}]
    optimizer = DCTAdamW(groups, rank=3)
    poisoned([first, last], 0, math.nan)
    optimizer.step()
    assert optimizer.skipped_steps == 1
    poisoned([first, last], 0, math.nan, 0)
    optimizer.step()
    assert optimizer.skipped_steps == 1
    assert first.isnan().any()


def test_gradients_are_asked_for_nothing_by_default(monkeypatch):
    given = parameters(*SHAPES)
    optimizer = DCTAdamW(given, rank=3)

    def fail(*_):
        raise AssertionError("a device would be waited for")

    monkeypatch.setattr("lowrank_torch._optimizer.are_finite", fail)
    train(optimizer, given, 2)


def test_steps_in_backward_skip_what_is_not_finite():
    model = torch.nn.Sequential(torch.nn.Linear(8, 12), torch.nn.Linear(12, 8))
    optimizer = DCTAdamW(model.named_parameters(), rank=3, nonfinite="skip")
    before = [p.detach().clone() for p in model.parameters()]
    with step_in_backward(optimizer):
        (model(torch.ones(2, 8)).sum() * math.nan).backward()
        optimizer.step()
    assert optimizer.skipped_steps == len(before)
    assert all(map(torch.equal, model.parameters(), before))


def test_a_graph_breaks_where_the_host_looks():
    torch._dynamo.reset()
    given = parameters((12, 8))
    optimizer = DCTAdamW(given, rank=3, nonfinite="skip", preset=None, refresh_every=2)
    train(optimizer, given, 2)
    step = torch.compile(optimizer.step, backend="eager")
    poisoned(given, 2, math.nan)
    before = given[0].detach().clone()
    step()
    assert torch.equal(given[0], before)
    set_gradients(given, 2)
    step()
    assert optimizer.skipped_steps == 1
    assert not torch.equal(given[0], before)


def test_every_rank_skips_what_one_has_found(tmp_path):
    for row in launch("sharded_scenarios:nonfinite", 2, tmp_path):
        assert row == {"skipped": 1, "unchanged": True, "raised": True}
