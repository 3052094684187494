"""Stacking: parameters of one shape are stepped together, and each goes where it would have gone by itself."""

import copy

import lowrank_torch
import lowrank_torch._schedule as schedule
import pytest
import torch
from helpers import assert_close, to_numpy
from torch_helpers import OPTIMIZERS, VARIANTS, parameters, tensor, variant_id

SHAPES = [(12, 8), (12, 8), (8, 12), (12, 8), (5,), (8, 12)]


def give_gradients(given, step, *, absent=()):
    for place, parameter in enumerate(given):
        missing = place in absent
        gradient = tensor(*parameter.shape, seed=50 * step + place, dtype=parameter.dtype)
        parameter.grad = None if missing else gradient


def trained(constructor, foreach, *, steps=6, shapes=SHAPES, **options):
    given = parameters(*shapes)
    optimizer = constructor(given, lr=0.01, rank=3, foreach=foreach, **options)
    for step in range(steps):
        # The second parameter's first gradient comes late, so that one shape has two step counts.
        give_gradients(given, step, absent=(1,) if step < 2 else ())
        optimizer.step()
    return given, optimizer


def assert_same_run(constructor, **options):
    together, stacked = trained(constructor, True, **options)
    alone, single = trained(constructor, False, **options)
    for one, other in zip(together, alone, strict=True):
        assert_close(one.detach(), to_numpy(other), xp=torch, dtype="float32", kind="trajectory")
        mine, theirs = stacked.state[one], single.state[other]
        assert mine.keys() == theirs.keys()
        for name, value in theirs.items():
            if name == "step":
                assert mine[name] == value
                continue
            assert mine[name].shape == value.shape
            assert mine[name].dtype == value.dtype
            if not value.is_floating_point() and "feedback" not in name:
                assert torch.equal(mine[name], value), name


@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
def test_dct_adamw_goes_where_it_would_alone(variant):
    assert_same_run(lowrank_torch.DCTAdamW, **variant)


@pytest.mark.parametrize(
    "options", [{}, {"momentum_bits": 8}, {"row_decay": 0.9}, {"maximize": True}], ids=str
)
def test_trion_goes_where_it_would_alone(options):
    assert_same_run(lowrank_torch.Trion, **options)


@pytest.mark.parametrize(
    "split", [{"num_heads": 2}, {"split_sizes": [8, 4], "num_heads": 2}], ids=str
)
def test_blocks_of_each_parameter_stay_apart(split):
    assert_same_run(lowrank_torch.DCTAdamW, shapes=[(12, 8)] * 3, refresh_every=2, **split)


@pytest.fixture
def seen(monkeypatch):
    """The shapes that the core is given gradients of, in the order in which threads come to them."""
    shapes = []
    for constructor in OPTIMIZERS:
        rule = constructor.rule

        def steps(gradient, *rest, _steps=rule.steps):
            shapes.append(tuple(gradient.shape))
            return (yield from _steps(gradient, *rest))

        monkeypatch.setattr(constructor, "rule", rule._replace(steps=steps))
    return shapes


@pytest.mark.parametrize(
    ("constructor", "late"),
    [
        pytest.param(lowrank_torch.DCTAdamW, [(2, 8, 12), (2, 12, 8), (12, 8)], id="DCTAdamW"),
        # Which does the same at every step.
        pytest.param(lowrank_torch.Trion, [(2, 8, 12), (3, 12, 8)], id="Trion"),
    ],
)
def test_one_call_steps_all_of_one_shape(constructor, late, seen):
    trained(constructor, True, steps=3)
    assert sorted(seen[:2]) == [(2, 8, 12), (2, 12, 8)], "the one without a gradient waits"
    assert sorted(seen[4:]) == late, "and has a step count of its own"


def test_foreach_false_and_narrow_state_step_one_by_one(seen):
    trained(lowrank_torch.DCTAdamW, False, steps=1)
    # Rounding at random depends on the place of a number, which in a stack is another one.
    trained(lowrank_torch.DCTAdamW, True, steps=1, state_dtype="bfloat16")
    assert set(seen) == {(12, 8), (8, 12)}


def test_a_stack_has_bounded_size(seen, monkeypatch):
    monkeypatch.setattr(schedule, "CPU_STACK", 2 * 12 * 8)
    trained(lowrank_torch.DCTAdamW, True, steps=1, shapes=[(12, 8)] * 6 + [(24, 16)] * 2)
    assert sorted(seen) == [(2, 12, 8), (2, 12, 8), (12, 8), (24, 16), (24, 16)]


def test_parameters_of_another_dtype_or_group_are_not_mixed(seen):
    given = parameters((12, 8), (12, 8), (12, 8), (12, 8))
    given[1].data = given[1].data.double()
    groups = [{"params": given[:3]}, {"params": given[3:], "rank": 2}]
    optimizer = lowrank_torch.DCTAdamW(groups, rank=3)
    give_gradients(given, 0)
    optimizer.step()
    assert sorted(seen) == [(2, 12, 8), (12, 8), (12, 8)], "each of its own kind"
    assert optimizer.state[given[1]]["first_moment"].dtype == torch.float64


def test_resumes_to_the_bit_from_stacked_state(tmp_path):
    given, optimizer = trained(lowrank_torch.DCTAdamW, True, refresh_every=4)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    again = [torch.nn.Parameter(parameter.detach().clone()) for parameter in given]
    other = lowrank_torch.DCTAdamW(again, lr=0.01, rank=3, refresh_every=4)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for step in range(6, 10):
        give_gradients(given, step)
        give_gradients(again, step)
        optimizer.step()
        other.step()
    assert all(torch.equal(a, b) for a, b in zip(given, again, strict=True))


def test_a_copy_shares_no_memory_with_the_stack():
    given, optimizer = trained(lowrank_torch.DCTAdamW, True)
    state = copy.deepcopy(optimizer.state_dict())
    before = state["state"][0]["first_moment"].clone()
    give_gradients(given, 9)
    optimizer.step()
    assert torch.equal(state["state"][0]["first_moment"], before)
