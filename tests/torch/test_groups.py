"""Every option may be set in a parameter group, and groups may be added later."""

import gc
import logging
import weakref

import pytest
import torch
from lowrank_torch import DCTAdamW
from torch_helpers import (
    OPTIMIZERS,
    all_parameters,
    assert_same_bits,
    copies,
    parameters,
    set_gradients,
    tensor,
    train,
    unchanged,
)

pytestmark = pytest.mark.usefixtures("torch")

SHAPE = (24, 10)
COMMON = {
    "lr": 0.02,
    "betas": (0.8, 0.95),
    "eps": 1e-6,
    "weight_decay": 0.1,
    "rank": 3,
    "preset": None,
}


@pytest.mark.parametrize(
    "own",
    [
        {"lr": 0.5},
        {"betas": (0.5, 0.6)},
        {"eps": 0.3},
        {"rank": 7},
        {"rank": 0.2},
        {"weight_decay": 0.9},
        {"side": "left"},
        {"refresh_every": 5},
        {"score": "l1"},
        {"residual": "error_feedback"},
        {"bias_correction": "column"},
        {"maximize": True},
        {"algorithm": "adamw"},
        {"state_dtype": "bfloat16"},
    ],
    ids=lambda own: next(iter(own)),
)
def test_option_of_a_group_is_honoured(own):
    first, second = parameters(SHAPE, SHAPE)
    apart = copies([first, second])
    together = DCTAdamW([{"params": [first]}, {"params": [second], **own}], **COMMON)
    train(together, [first, second], 6)
    # Two optimizers of one group each, on the same gradients.
    optimizers = [
        DCTAdamW([apart[0]], **COMMON),
        DCTAdamW([{"params": [apart[1]]}], **COMMON | own),
    ]
    for step in range(6):
        set_gradients(apart, step)
        for optimizer in optimizers:
            optimizer.step()
    assert_same_bits([first, second], apart)
    ignored = copies(parameters(SHAPE, SHAPE))
    train(DCTAdamW(ignored, **COMMON), ignored, 6)
    assert torch.equal(ignored[0], first)
    assert not torch.equal(ignored[1], second)


def test_method_of_a_group_is_honoured():
    (parameter,) = parameters((24, 16))
    optimizer = DCTAdamW([{"params": [parameter], "method": "fft"}], **COMMON)
    transformed = []
    ops = optimizer._ops

    def dct_scored(x, *, axis, **options):
        transformed.append(axis)
        return type(ops).dct_scored(ops, x, axis=axis, **options)

    ops.dct_scored = dct_scored
    train(optimizer, [parameter], 1)
    assert transformed == [-1]


def test_added_group_is_stepped_with_its_own_options():
    first, second = parameters(SHAPE, SHAPE)
    alone = copies([second])
    optimizer = DCTAdamW([first], **COMMON)
    train(optimizer, [first], 2)
    optimizer.add_param_group({"params": [second], "lr": 0.3, "rank": 5})
    assert optimizer.param_groups[1]["weight_decay"] == COMMON["weight_decay"]
    assert [row.rank for row in optimizer.summary()] == [3, 5]
    train(optimizer, [second], 3)
    train(DCTAdamW(alone, **COMMON | {"lr": 0.3, "rank": 5}), alone, 3)
    assert_same_bits([second], alone)


@pytest.mark.parametrize(
    ("group", "error", "message"),
    [
        ({"ranks": 3}, TypeError, "a parameter group has no option 'ranks'; did you mean 'rank'"),
        ({"rank": 0}, ValueError, "rank must be a positive integer.* got 0"),
        ({"lr": -1.0}, ValueError, "lr must be at least 0 and finite, got -1.0"),
        ({"betas": (0.9, 1.0)}, ValueError, r"betas\[1\] must be .* less than 1, got 1.0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_group_is_refused_and_not_added(group, error, message):
    first, second = parameters(SHAPE, SHAPE)
    optimizer = DCTAdamW([first], **COMMON)
    train(optimizer, [first], 1)
    with unchanged(optimizer), pytest.raises(error, match=message):
        optimizer.add_param_group({"params": [second], **group})
    assert len(all_parameters(optimizer)) == 1


def test_parameter_in_two_groups_is_refused():
    (parameter,) = parameters(SHAPE)
    optimizer = DCTAdamW([parameter], **COMMON)
    with unchanged(optimizer), pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [parameter]})


def test_named_parameters_name_the_rows_of_the_summary():
    model = torch.nn.Sequential(torch.nn.Linear(10, 24), torch.nn.LayerNorm(24))
    optimizer = DCTAdamW(model.named_parameters(), **COMMON)
    assert [row.name for row in optimizer.summary()] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert [row.name for row in DCTAdamW(model[0].parameters(), rank=3).summary()] == [
        "parameter 0 of group 0",
        "parameter 1 of group 0",
    ]


def test_keys_of_others_pass_and_stay():
    (first, second) = parameters(SHAPE, SHAPE)
    optimizer = DCTAdamW(
        [{"params": [first], "lr_scale": 0.5, "rho": 0.1, "use_muon": True}], **COMMON
    )
    assert optimizer.param_groups[0]["lr_scale"] == 0.5
    torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=9)
    optimizer.add_param_group({**optimizer.param_groups[0], "params": [second]})
    train(optimizer, [first, second], 2)
    again = DCTAdamW([first], **COMMON)
    with unchanged(again), pytest.raises(TypeError, match="'ranks'; did you mean 'rank'"):
        again.add_param_group({"params": [second], "ranks": 3})


@pytest.mark.parametrize("optimizer_type", OPTIMIZERS)
@pytest.mark.parametrize("key", ["step", "eps2", "beta", "k", "core", "d0"])
def test_short_keys_of_others_are_no_misspelt_options(optimizer_type, key):
    (parameter,) = parameters(SHAPE)
    optimizer = optimizer_type([{"params": [parameter], key: 1}], **COMMON)
    assert optimizer.param_groups[0][key] == 1


@pytest.mark.parametrize("optimizer_type", OPTIMIZERS)
def test_groups_with_and_without_names_stand_side_by_side(optimizer_type):
    first, second, third = parameters(SHAPE, (5,), SHAPE)
    optimizer = optimizer_type([("first", first)], **COMMON)
    optimizer.add_param_group({"params": iter([second, third]), "lr": 0.5})
    names = ["first", "parameter 0 of group 1", "parameter 1 of group 1"]
    assert [row.name for row in optimizer.summary()] == names
    other = optimizer_type([second], **COMMON)
    other.add_param_group({"params": [("first", first)]})
    assert [row.name for row in other.summary()] == ["parameter 0 of group 0", "first"]
    train(optimizer, [first, second, third], 2)
    train(other, [first, second], 2)


def test_names_are_made_anew_for_a_copied_group():
    first, second, third = parameters(SHAPE, SHAPE, SHAPE)
    optimizer = DCTAdamW([("first", first)], **COMMON)
    optimizer.add_param_group({**optimizer.param_groups[0], "params": second})
    optimizer.add_param_group({**optimizer.param_groups[0], "params": [("third", third)]})
    names = ["first", "parameter 0 of group 1", "third"]
    assert [row.name for row in optimizer.summary()] == names


def test_a_refused_group_leaves_the_others_without_names():
    first, second = parameters(SHAPE, SHAPE)
    optimizer = DCTAdamW([first], **COMMON)
    for group in ({"params": [("a", first)]}, {"params": [("b", second)], "split_sizes": [1]}):
        with unchanged(optimizer), pytest.raises(ValueError, match=r"more than one|split_sizes"):
            optimizer.add_param_group(group)
        assert "param_names" not in optimizer.param_groups[0]


def run_of(groups):
    """Parameters by name after steps that draw random numbers; what differs in them is drawn."""
    shapes = {"a": SHAPE, "b": SHAPE, "c": (7,), "d": (7,)}
    named = {name: parameters(shape, dtype=torch.bfloat16)[0] for name, shape in shapes.items()}
    options = COMMON | {"selection": "sampled", "foreach": False}
    optimizer = DCTAdamW(groups(named), **options, stochastic_rounding=True)
    for step in range(3):
        for parameter in named.values():
            parameter.grad = tensor(*parameter.shape, seed=step, dtype=torch.bfloat16)
        optimizer.step()
    return named


def test_random_draws_go_with_the_name_and_not_with_the_place():
    base = run_of(lambda named: named.items())
    others = [
        run_of(lambda named: reversed(named.items())),
        run_of(lambda named: [{"params": [pair]} for pair in named.items()]),
        run_of(lambda named: [(f"_orig_mod.{name}", own) for name, own in named.items()]),
    ]
    for other in others:
        assert_same_bits(other.values(), base.values())
    assert not torch.equal(base["a"], base["b"])
    assert not torch.equal(base["c"], base["d"])


def test_a_replaced_parameter_is_freed_with_its_plan():
    for given in (SHAPE, (5,)):
        first, second = parameters(given, given)
        optimizer = DCTAdamW([first], **COMMON)
        train(optimizer, [first], 2)
        alive = weakref.ref(first)
        optimizer.state[second] = optimizer.state.pop(first)
        optimizer.param_groups[0]["params"][0] = second
        del first
        gc.collect()
        assert alive() is None
        train(optimizer, [second], 1)
        assert optimizer.state[second]["step"] == 3


@pytest.mark.parametrize("optimizer_type", OPTIMIZERS)
@pytest.mark.parametrize(("shape", "grown"), [(SHAPE, (29, 10)), ((5,), (6,))])
def test_a_parameter_whose_shape_changed_is_refused(optimizer_type, shape, grown):
    first, second = parameters((8, 12), shape)
    optimizer = optimizer_type([("first", first), ("second", second)], **COMMON)
    train(optimizer, [first, second], 2)
    second.grad = None
    second.data = torch.zeros(grown)
    first.grad, second.grad = torch.ones(8, 12), torch.ones(grown)
    with (
        unchanged(optimizer),
        pytest.raises(ValueError, match=r"must fit the model.* of second is"),
    ):
        optimizer.step()


def test_parameters_without_names_warn_once_of_a_vocabulary():
    model = torch.nn.Sequential(
        torch.nn.Embedding(8192, 32), torch.nn.Linear(32, 32), torch.nn.Linear(32, 8192)
    )
    with pytest.warns(UserWarning, match="have no names, and 2 of them.*for_model") as seen:
        DCTAdamW(model.parameters(), rank=3)
    assert len(seen) == 1
    assert seen[0].filename == __file__
    # Who names parameters, or makes them AdamW's, knows them: a warning would be an error.
    DCTAdamW(model.named_parameters(), rank=3)
    DCTAdamW([{"params": list(model.parameters()), "algorithm": "adamw"}], rank=3)


def test_plain_construction_logs_what_steps_whom(caplog):
    given = parameters((24, 10), (30, 12), (5,))
    with caplog.at_level(logging.INFO, logger="lowrank_torch"):
        DCTAdamW(given, rank=3)
    (record,) = caplog.records
    assert record.name == "lowrank_torch"
    line = "DCTAdamW: dct_adamw 2 (600 numbers), adamw 1 (5 numbers); state 0.0 MB, AdamW's 0.0 MB"
    assert record.getMessage() == line
    caplog.clear()
    DCTAdamW(copies(given), rank=3)
    assert not caplog.records
