"""A state dict that does not fit is refused, naming the first difference, with nothing changed; hooks are heard."""

import copy
import dataclasses
import gc
import weakref

import pytest
import torch
from lowrank_torch import DCTAdamW
from lowrank_torch._options import LATER_OPTIONS
from torch_helpers import (
    OPTIMIZERS,
    all_parameters,
    assert_same_bits,
    assert_same_state,
    copies,
    parameters,
    train,
    unchanged,
)

from lowrank_core import DCTAdamWConfig

pytestmark = pytest.mark.usefixtures("torch")

SHAPES = ((24, 10), (12, 16), (5,))
OPTIONS = {"preset": None, "lr": 0.02, "weight_decay": 0.1, "rank": 4}


def make(given=None, **options):
    given = parameters(*SHAPES) if given is None else given
    groups = [
        {"params": [("first", given[0])]},
        {"params": [("second", given[1]), ("bias", given[2])]},
    ]
    return DCTAdamW(groups, **OPTIONS | options)


def trained(steps=2, **options):
    optimizer = make(**options)
    train(optimizer, all_parameters(optimizer), steps)
    return optimizer


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 3}, "made with rank=4 in group 0, got 3"),
        ({"rank": 0.4}, "made with rank=4 in group 0, got 0.4"),
        ({"side": "left"}, "made with side='auto' in group 0, got 'left'"),
        ({"residual": "error_feedback"}, "made with residual='sign' in group 0, got 'error_f"),
        ({"bias_correction": "column"}, "made with bias_correction='step' in group 0, got 'col"),
        ({"state_dtype": "bfloat16"}, "made with state_dtype=None in group 0, got 'bfloat16'"),
        ({"batch_dims": 1}, "made with batch_dims=0 in group 0, got 1"),
        ({"algorithm": "adamw"}, "made with algorithm='dct_adamw' in group 0, got 'adamw'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_other_options_are_refused(options, message):
    optimizer = trained()
    with unchanged(optimizer), pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(trained(3, **options).state_dict())


def test_rank_of_one_group_is_compared():
    optimizer, other = trained(), trained(3)
    saved = other.state_dict()
    saved["param_groups"][1]["rank"] = 5
    with unchanged(optimizer), pytest.raises(ValueError, match="rank=4 in group 1, got 5"):
        optimizer.load_state_dict(saved)


@pytest.mark.parametrize(
    ("mine", "saved"),
    [
        ({"split_sizes": [8, 16]}, {"split_sizes": (8, 16)}),
        (
            {"split_sizes": (8, 16), "num_heads": (2, 4)},
            {"split_sizes": [8, 16], "num_heads": [2, 4]},
        ),
        ({"state_dtype": "bfloat16"}, {"state_dtype": torch.bfloat16}),
    ],
    ids=str,
)
def test_equal_options_of_other_kinds_are_equal(mine, saved):
    made = []
    for options in (mine, saved):
        given = parameters((24, 16))
        optimizer = DCTAdamW([{"params": given, **options}], **OPTIONS)
        train(optimizer, given, 2)
        made.append(optimizer)
    for one, other in (made, made[::-1]):
        one.load_state_dict(other.state_dict())
    assert_same_state(*made)


@pytest.mark.parametrize("optimizer_type", OPTIMIZERS)
def test_state_dicts_from_before_an_option_load(optimizer_type):
    given = parameters(*SHAPES)
    # What there was before presets.
    plain = {"preset": None} if optimizer_type is DCTAdamW else {}
    optimizer = optimizer_type(given, lr=0.02, rank=4, **plain)
    train(optimizer, given, 2)
    saved = optimizer.state_dict()
    later = LATER_OPTIONS.keys() & saved["param_groups"][0].keys()
    assert "transposed" in later
    for option in later:
        del saved["param_groups"][0][option]
    other = optimizer_type(copies(given), lr=0.02, rank=4, **plain)
    other.load_state_dict(saved)
    train(other, all_parameters(other), 1)
    assert other.param_groups[0]["transposed"] is False
    assert other.param_groups[0].keys() == optimizer.param_groups[0].keys()
    assert later.isdisjoint(saved["param_groups"][0])


def named(names, optimizer_type=DCTAdamW, prefix=""):
    """An optimizer of parameters of these names, each with state that is the name's own."""
    given = {name: parameters((24, 10), seed=ord(name[0]))[0] for name in names}
    optimizer = optimizer_type([(prefix + name, p) for name, p in given.items()], lr=0.02, rank=4)
    for name, parameter in given.items():
        parameter.grad = torch.full((24, 10), float(ord(name[0])))
    optimizer.step()
    return optimizer, given


@pytest.mark.parametrize("optimizer_type", OPTIMIZERS)
@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module."])
def test_state_follows_names(optimizer_type, prefix):
    saved, theirs = named("abc", optimizer_type)
    optimizer, mine = named("cab", optimizer_type, prefix)
    optimizer.load_state_dict(saved.state_dict())
    for name, parameter in mine.items():
        assert_same_bits(
            [v for v in optimizer.state[parameter].values() if torch.is_tensor(v)],
            [v for v in saved.state[theirs[name]].values() if torch.is_tensor(v)],
        )
    assert [row.name for row in optimizer.summary()] == [prefix + name for name in "cab"]


def test_other_names_are_refused_and_no_names_go_by_place():
    saved, optimizer = named("abd")[0].state_dict(), named("abc")[0]
    message = r"parameters of group 0 by their names, got 'd' and none called 'c'"
    with unchanged(optimizer), pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved)
    del saved["param_groups"][0]["param_names"]
    optimizer.load_state_dict(saved)
    assert [row.name for row in optimizer.summary()] == ["a", "b", "c"]
    # One without names takes the state by place, and no names that may be of another order.
    unnamed = DCTAdamW(parameters(*[(24, 10)] * 3), lr=0.02, rank=4)
    unnamed.load_state_dict(optimizer.state_dict())
    assert unnamed.summary()[0].name == "parameter 0 of group 0"


@pytest.mark.parametrize("value", [float("nan"), -1.0])
def test_bad_number_in_a_state_dict_is_refused(value):
    optimizer = trained()
    saved = trained(3).state_dict()
    saved["param_groups"][1]["lr"] = value
    with unchanged(optimizer), pytest.raises(ValueError, match=f"lr must be .* got {value}"):
        optimizer.load_state_dict(saved)


def test_missing_option_is_refused():
    optimizer = trained()
    saved = trained(3).state_dict()
    del saved["param_groups"][1]["eps"]
    with (
        unchanged(optimizer),
        pytest.raises(ValueError, match="every option of group 1, got none for 'eps'"),
    ):
        optimizer.load_state_dict(saved)


def test_other_model_is_refused():
    optimizer = trained()
    given = parameters((24, 10), (12, 18), (5,))
    other = make(given)
    train(other, given, 1)
    with (
        unchanged(optimizer),
        pytest.raises(ValueError, match=r"first_moment of second .* \(4, 16\) .* got \(4, 18\)"),
    ):
        optimizer.load_state_dict(other.state_dict())


def test_other_vector_is_refused():
    optimizer = trained()
    given = parameters((24, 10), (12, 16), (6,))
    other = make(given)
    train(other, given, 1)
    with (
        unchanged(optimizer),
        pytest.raises(ValueError, match=r"exp_avg of bias .* \(5,\) .* got \(6,\)"),
    ):
        optimizer.load_state_dict(other.state_dict())


def test_other_groups_are_refused():
    optimizer = trained()
    given = parameters(*SHAPES)
    one = DCTAdamW(given, **OPTIONS)
    with unchanged(optimizer), pytest.raises(ValueError, match=r"must have 2 .*groups, got 1"):
        optimizer.load_state_dict(one.state_dict())
    fewer = DCTAdamW([{"params": given[:1]}, {"params": given[1:2]}], **OPTIONS)
    with (
        unchanged(optimizer),
        pytest.raises(ValueError, match="must have 2 parameters in group 1, got 1"),
    ):
        optimizer.load_state_dict(fewer.state_dict())


def test_state_of_another_optimizer_is_refused():
    optimizer = trained()
    given = parameters(*SHAPES)
    other = torch.optim.AdamW([{"params": given[:1]}, {"params": given[1:]}])
    train(other, given, 1)
    with unchanged(optimizer), pytest.raises(ValueError, match="every option of group 0, got none"):
        optimizer.load_state_dict(other.state_dict())


@pytest.mark.parametrize("change", ["missing", "added"])
def test_state_must_have_the_same_entries(change):
    optimizer = trained()
    saved = copy.deepcopy(trained(3).state_dict())
    if change == "missing":
        del saved["state"][1]["indices"]
        message = r"indices of second is of shape \(4,\) by these, got absent"
    else:
        saved["state"][1]["velocity"] = torch.zeros(3)
        message = r"velocity of second is of shape absent by these, got \(3,\)"
    with unchanged(optimizer), pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved)


def test_numbers_come_from_the_state_dict():
    optimizer = make(lr=0.5, weight_decay=0.0, betas=(0.1, 0.2), eps=1.0)
    optimizer.load_state_dict(trained(maximize=True).state_dict())
    for group in optimizer.param_groups:
        assert (group["lr"], group["weight_decay"], group["maximize"]) == (0.02, 0.1, True)
        assert (group["betas"], group["eps"]) == ((0.9, 0.999), 1e-8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("optimizer_type", OPTIMIZERS)
def test_every_tensor_keeps_its_dtype(optimizer_type, dtype):
    given = parameters(*SHAPES, dtype=dtype)
    optimizer = optimizer_type(given, lr=0.02, rank=4)
    train(optimizer, given, 2)
    other = optimizer_type(copies(given), lr=0.02, rank=4)
    other.load_state_dict(optimizer.state_dict())
    assert_same_state(other, optimizer)
    state = other.state[all_parameters(other)[0]]
    found = {value.dtype for value in state.values() if torch.is_tensor(value)}
    assert found - {torch.int32} == {torch.float64 if dtype == torch.float64 else torch.float32}


def test_hooks_before_loading_may_mend_a_state_dict():
    optimizer, other = trained(), trained(3)
    legacy = {"version": 0, "wrapped": other.state_dict()}
    order = []

    def unwrap(opt, given):
        assert opt is optimizer
        order.append("mine")
        return given["wrapped"]

    def look(opt, given):
        order.append(sorted(given))

    optimizer.register_load_state_dict_pre_hook(unwrap)
    optimizer.register_load_state_dict_pre_hook(look)
    optimizer.load_state_dict(legacy)
    assert order == ["mine", ["param_groups", "state"]]
    assert_same_state(optimizer, other)


def test_hooks_after_loading_see_the_state_as_it_was_saved():
    given = parameters(*SHAPES, dtype=torch.bfloat16)
    other = make(given)
    train(other, given, 2)
    optimizer = make(copies(given))
    seen = []

    def look(opt):
        state = opt.state[all_parameters(opt)[0]]
        seen.append((state["indices"].dtype, state["first_moment"].dtype))

    optimizer.register_load_state_dict_post_hook(look)
    optimizer.load_state_dict(other.state_dict())
    assert seen == [(torch.int32, torch.float32)]
    optimizer.load_state_dict(other.state_dict())
    assert len(seen) == 2


def test_hooks_around_saving_are_called():
    optimizer = trained()
    seen = []
    optimizer.register_state_dict_pre_hook(lambda opt: seen.append(opt is optimizer))

    def annotate(opt, saved):
        return {**saved, "note": 1}

    optimizer.register_state_dict_post_hook(annotate)
    assert optimizer.state_dict()["note"] == 1
    assert seen == [True]


def test_load_after_a_refused_one():
    optimizer, other = trained(), trained(3)
    with pytest.raises(ValueError, match="rank"):
        optimizer.load_state_dict(trained(rank=3).state_dict())
    optimizer.load_state_dict(other.state_dict())
    assert_same_state(optimizer, other)


def test_what_was_loaded_is_let_go():
    optimizer = trained()
    saved = copy.deepcopy(trained(3).state_dict())
    alive = [
        weakref.ref(value)
        for s in saved["state"].values()
        for value in s.values()
        if torch.is_tensor(value)
    ]
    assert len(alive) == 9
    optimizer.load_state_dict(saved)
    del saved
    gc.collect()
    # PyTorch itself keeps the step count of AdamW, which it does not cast.
    assert [found for ref in alive if (found := ref()) is not None and found.ndim] == []


#: Another value for every option of DCT-AdamW.
OTHERS = {
    "rank": 3, "betas": (0.8, 0.9), "eps": 1e-4, "basis": "hartley", "score": "l1", "refresh_every": 3,
    "side": "left", "method": "fft", "residual": "discard", "residual_scale": 0.5, "feedback_bits": 4,
    "selection": "sampled", "score_decay": 0.8, "hysteresis": 0.2, "bias_correction": "column",
    "update_scale": 2.0, "second_moment": "factored", "moment_bits": 8, "state_dtype": "bfloat16", "seed": 1,
}  # fmt: skip


def test_there_is_another_value_for_every_option():
    assert OTHERS.keys() == {field.name for field in dataclasses.fields(DCTAdamWConfig)}


@pytest.mark.parametrize("option", OTHERS)
def test_a_state_dict_and_a_file_go_on_under_the_same_other_options(option, tmp_path):
    base = {"residual": "error_feedback", "feedback_bits": 8, "score_decay": 0.9}
    if option == "score":
        base = {"residual": "error_feedback"}
    if option == "residual":
        base = {"score_decay": 0.9}
    if option == "residual_scale":
        base = {"residual": "sign", "score_decay": 0.9}
    if option == "moment_bits":
        base = {"second_moment": "factored", "score_decay": 0.9}
    before = trained(**base)
    before.save_state(tmp_path / "state")
    taken = []
    for load in (
        lambda after: after.load_state_dict(before.state_dict()),
        lambda after: after.load_state(tmp_path / "state"),
    ):
        after = trained(3, **base | {option: OTHERS[option]})
        try:
            load(after)
        except ValueError as error:
            taken.append(option in str(error))
        else:
            taken.append("goes on")
    assert taken[0] == taken[1]
    assert taken[0] is True or taken[0] == "goes on"


@pytest.mark.parametrize(
    ("options", "place", "entry", "value", "message"),
    [
        ({}, 0, "second_moment", -1.0, "second_moment of parameter 0 .* at least 0, got .* -1"),
        ({}, 0, "first_moment", float("nan"), "first_moment of parameter 0 .* finite"),
        ({}, 0, "indices", 12, "indices of parameter 0 .* ascending from 0 to 9"),
        ({}, 0, "indices", torch.tensor([0.0, 1.0, 2.0, 3.0]), "must be int32, got .*float32"),
        ({}, 0, "first_moment", torch.zeros(24, 4, dtype=torch.complex64), "must be float32, got"),
        ({}, 0, "first_moment", torch.empty(24, 4, device="meta"), "a tensor with numbers"),
        ({}, 0, "step", -5, "step of parameter 0 .* integer of at least 0, got -5"),
        ({}, 2, "step", torch.tensor(1.5), "step of .* integer of at least 0, got 1.5"),
        ({}, 2, "exp_avg_sq", -1.0, "exp_avg_sq of .* at least 0"),
        ({"residual": "scaled"}, 0, "residual_norm", 2.5, "must be a tensor, got float"),
        ({"bias_correction": "column"}, 0, "ages", -1, "ages of .* at least 0"),
    ],
    ids=str,
)
def test_numbers_that_state_cannot_have_are_refused(options, place, entry, value, message):
    optimizer = trained(**options)
    saved = copy.deepcopy(trained(3, **options).state_dict())
    state = saved["state"][place]
    if torch.is_tensor(value) or entry in ("step", "residual_norm"):
        state[entry] = value
    else:
        state[entry].fill_(value)
    message = message.replace("parameter 0", "(parameter 0|first)")
    with unchanged(optimizer), pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved)
    train(optimizer, all_parameters(optimizer), 1)


def test_an_error_after_loading_puts_everything_back():
    optimizer = trained()

    def fail(_):
        raise RuntimeError("no")

    handle = optimizer.register_load_state_dict_post_hook(fail)
    with unchanged(optimizer), pytest.raises(RuntimeError, match="no"):
        optimizer.load_state_dict(trained(3).state_dict())
    handle.remove()
    train(optimizer, all_parameters(optimizer), 1)


@pytest.mark.parametrize("optimizer_type", OPTIMIZERS)
@pytest.mark.parametrize(
    ("first", "then"),
    [
        (torch.float32, torch.float64),
        (torch.float64, torch.float32),
        (torch.bfloat16, torch.float64),
        (torch.float64, torch.bfloat16),
    ],
    ids=str,
)
def test_a_run_goes_on_in_another_precision(optimizer_type, first, then):
    given = parameters(*SHAPES, dtype=first)
    optimizer = optimizer_type(given, lr=0.02, rank=4)
    train(optimizer, given, 2)
    others = [torch.nn.Parameter(p.detach().to(then)) for p in given]
    other = optimizer_type(others, lr=0.02, rank=4)
    other.load_state_dict(optimizer.state_dict())
    fresh = optimizer_type(
        [torch.nn.Parameter(p.detach().clone()) for p in others], lr=0.02, rank=4
    )
    train(fresh, all_parameters(fresh), 1)
    train(other, others, 1)
    for p, q in zip(others, all_parameters(fresh), strict=True):
        kinds = [
            {k: v.dtype for k, v in o.state[x].items() if torch.is_tensor(v)}
            for o, x in ((other, p), (fresh, q))
        ]
        assert kinds[0] == kinds[1]
        assert torch.isfinite(p).all()
