"""The likeliest mistakes are answered with what to do: a table of them, and when nothing is to be said.

Of two more the tests stand with what they are about: parameters that look like a vocabulary (`test_groups.py` and
`test_roles.py` in `tests/torch`), and a framework that is not installed (`tests/repo/test_packaging.py`).
"""

import copy
import re
import warnings

import lowrank_jax
import pytest
import torch
from lowrank_torch import DCTAdamW, Trion, matrix_groups
from torch_helpers import parameters, set_gradients

from lowrank_core.option_names import FOREIGN, IN_GROUPS

pytestmark = [pytest.mark.usefixtures("optax", "torch"), pytest.mark.compiles_nothing]


def model():
    return torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.Linear(128, 64))


def with_option(option):
    DCTAdamW.for_model(model(), rank=4, **{option: 1})


def with_option_in_jax(option):
    lowrank_jax.dct_adamw(0.01, rank=4, **{option: 1})


def with_option_in_a_group(option):
    DCTAdamW([{"params": parameters((12, 8)), option: 1}], rank=4)


def model_for_parameters():
    DCTAdamW(model(), rank=4)


def parameters_for_a_model():
    Trion.for_model(model().parameters(), rank=4)


def generator_twice():
    given = model().parameters()
    list(given)
    DCTAdamW(given, rank=4)


def no_parameters():
    DCTAdamW([], rank=4)


def all_frozen():
    DCTAdamW.for_model(model().requires_grad_(False), rank=4)


def rank_above_every_width():
    DCTAdamW.for_model(model(), rank=512)


def narrow_weights(dtype, rate):
    DCTAdamW(matrix_groups(model().to(dtype)), lr=rate, rank=4)


def override(pattern, role):
    matrix_groups(model(), overrides={pattern: role})


def checkpoint_of(saving):
    given = parameters((12, 8))
    saved = saving(given)
    set_gradients(given, 0)
    saved.step()
    DCTAdamW(given, rank=6).load_state_dict(saved.state_dict())


#: What is done, with what, and what is said: of an error or a warning a piece of the text.
MISTAKES = [
    (
        *(with_option, "reffresh_every", TypeError),
        "DCTAdamW has no option 'reffresh_every'; did you mean 'refresh_every'?",
    ),
    (with_option, "weight_decy", TypeError, "did you mean 'weight_decay'?"),
    (with_option, "update_proj_gap", TypeError, "of GaLore, APOLLO and Fira: use 'refresh_every'"),
    (with_option, "proj_type", TypeError, "one of GaLore, APOLLO and Fira: use 'side'"),
    (with_option, "amsgrad", TypeError, "one of AdamW: leave it out"),
    (with_option, "nesterov", TypeError, "one of Muon: leave it out"),
    (with_option, "ns_steps", TypeError, "one of Muon: Trion calls it 'steps'"),
    (with_option, "rank_fraction", TypeError, "one of Dion: 'rank' takes fractions"),
    (with_option, "use_ef", TypeError, "the paper's code: use residual='error_feedback'"),
    (with_option, "learning_rate", TypeError, "one of Optax: use 'lr'"),
    (with_option, "b1", TypeError, "one of Optax: use betas="),
    (with_option_in_jax, "refresh_evry", TypeError, "did you mean 'refresh_every'?"),
    (with_option_in_jax, "lr", TypeError, "one of PyTorch: use 'learning_rate'"),
    (with_option_in_jax, "betas", TypeError, "one of PyTorch: use 'b1' and 'b2'"),
    (with_option_in_jax, "capturable", TypeError, "one of PyTorch: leave it out: under jax.jit"),
    *(
        (with_option_in_a_group, option, TypeError, f"group has no option '{option}', which is one")
        for option in IN_GROUPS
    ),
    (
        *(model_for_parameters, (), TypeError),
        "got a model (Sequential): use DCTAdamW.for_model(",
    ),
    (
        *(parameters_for_a_model, (), TypeError),
        "torch.nn.Module, got generator; Trion(params, ...)",
    ),
    (generator_twice, (), ValueError, "a generator was used up"),
    (no_parameters, (), ValueError, "empty parameter list"),
    (all_frozen, (), ValueError, "requires a gradient: all are frozen"),
    (rank_above_every_width, (), UserWarning, "such as rank=0.25 fits all"),
    (rank_above_every_width, (), UserWarning, "matrices, the first of which is 0.weight of shape"),
    (narrow_weights, (torch.bfloat16, 1e-5), UserWarning, "set stochastic_rounding=True"),
    (narrow_weights, (torch.float16, 1e-6), UserWarning, "set stochastic_rounding=True"),
    (
        override,
        ("blocks.*", "table"),
        ValueError,
        "match parameters of the model, got ['blocks.*']",
    ),
    (override, ("0.weight", "big"), ValueError, "overrides['0.weight'] must be one of"),
    (checkpoint_of, torch.optim.AdamW, ValueError, "of torch.optim.AdamW, and this is dct_adamw"),
    (checkpoint_of, torch.optim.AdamW, ValueError, "Load the weights alone"),
    (
        *(checkpoint_of, lambda given: Trion(given, rank=6), ValueError),
        "checkpoint is of trion, and this is dct_adamw",
    ),
    (checkpoint_of, lambda given: DCTAdamW(given, rank=4), ValueError, "rank=6 in group 0, got 4"),
]


@pytest.mark.parametrize(("do", "given", "kind", "answer"), MISTAKES)
def test_mistake_is_answered_with_what_to_do(do, given, kind, answer):
    expected = pytest.warns if issubclass(kind, Warning) else pytest.raises
    with expected(kind, match=re.escape(answer)) as said:
        do(*(given if isinstance(given, tuple) else (given,)))
    if issubclass(kind, Warning):
        assert len(said) == 1


def test_no_option_that_is_known_is_called_foreign():
    for optimizer, known in ((DCTAdamW, {"lr", "betas"}), (Trion, {"lr", "momentum"})):
        defaults = optimizer(parameters((12, 8)), rank=4, lr=0.01).defaults
        assert known <= defaults.keys()
        allowed = {"lr", "betas", "momentum", "scale", "differentiable", "capturable"}
        assert not FOREIGN.keys() & defaults.keys() - allowed


def test_rank_above_some_widths_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DCTAdamW(parameters((600, 520), (64, 64)), rank=512)
        DCTAdamW(parameters((64,)), rank=512)
        Trion(parameters((64, 64)), rank=512)


@pytest.mark.parametrize(("dtype", "rate"), [(torch.bfloat16, 1e-5), (torch.float16, 1e-6)])
def test_narrow_weights_that_can_follow_are_silent(dtype, rate):
    narrow = model().to(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DCTAdamW(matrix_groups(narrow), lr=rate, rank=4, stochastic_rounding=True)
        DCTAdamW(matrix_groups(narrow), lr=1e-3, rank=4)
        DCTAdamW(matrix_groups(model()), lr=rate, rank=4)


def test_the_warning_of_lost_updates_is_true():
    torch.manual_seed(0)
    weight = torch.nn.Parameter((0.02 * torch.randn(256, 256)).bfloat16())
    before = weight.detach().clone()
    with pytest.warns(UserWarning, match="rounded away"):
        optimizer = DCTAdamW([weight], lr=1e-5, weight_decay=0, rank=64)
    set_gradients([weight], 0)
    optimizer.step()
    assert (weight != before).float().mean() < 0.2


def in_torch(**options):
    DCTAdamW(parameters((12, 8)), rank=4, **options)


def in_a_group(preset="factored", **options):
    DCTAdamW([{"params": parameters((12, 8)), **options}], rank=4, preset=preset)


def in_a_later_group(preset="factored", **options):
    optimizer = DCTAdamW(parameters((12, 8)), rank=4, preset=preset)
    copy.deepcopy(optimizer).add_param_group({"params": parameters((12, 8)), **options})


def in_jax(**options):
    lowrank_jax.dct_adamw(0.01, rank=4, **options)


@pytest.mark.parametrize("make", [in_torch, in_a_group, in_a_later_group, in_jax])
class TestWhatAPresetDoesNotGoWith:
    @pytest.mark.parametrize("preset", ["factored", "tiny"])
    @pytest.mark.parametrize(
        ("options", "said", "blamed"),
        [
            ({"basis": "power", "residual": "sign"}, "got 'factored'", "second_moment='factored'"),
            ({"bias_correction": "column"}, "got 'column'", "second_moment='factored'"),
            ({"score": "l1"}, "with score='l1'", "score_decay=0.95"),
            ({"residual": "sign", "residual_scale": -1.0}, "residual_scale must be at least", None),
        ],
    )
    def test_is_told_from_what_was_given(self, make, preset, options, said, blamed):
        if preset == "tiny" and "basis" in options:
            options = {**options, "moment_bits": None}
        with pytest.raises(ValueError, match=re.escape(said)) as error:
            make(preset=preset, **options)
        tail = f"; {blamed} comes with preset='{preset}', which preset=None, the plain rule, leaves"
        assert (tail in str(error.value)) is (blamed is not None)
        assert blamed or "preset" not in str(error.value)

    @pytest.mark.parametrize(
        "options",
        [{"second_moment": "factored", "basis": "svd"}, {"residual": "bounded"}],
    )
    def test_is_not_blamed_where_there_is_none(self, make, options):
        with pytest.raises(ValueError, match="second_moment") as error:
            make(preset=None, **options)
        assert "preset" not in str(error.value)
