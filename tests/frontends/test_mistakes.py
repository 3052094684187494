"""The likeliest mistakes are answered with what to do."""

import copy
import re
import warnings

import pytest
import torch
from lowrank_torch import DCTAdamW, Trion, matrix_groups
from torch_helpers import parameters, set_gradients

from lowrank_core.option_names import FOREIGN, IN_GROUPS

pytestmark = pytest.mark.usefixtures("torch")


def model():
    return torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.Linear(128, 64))


@pytest.mark.parametrize(
    ("option", "answer"),
    [
        (
            "reffresh_every",
            "DCTAdamW has no option 'reffresh_every'; did you mean 'refresh_every'?",
        ),
        ("weight_decy", "DCTAdamW has no option 'weight_decy'; did you mean 'weight_decay'?"),
        ("update_proj_gap", "one of GaLore, APOLLO and Fira: use 'refresh_every'"),
        ("proj_type", "one of GaLore, APOLLO and Fira: use 'side'"),
        ("amsgrad", "one of AdamW: leave it out"),
        ("nesterov", "one of Muon: leave it out"),
        ("ns_steps", "one of Muon: Trion calls it 'steps'"),
        ("rank_fraction", "one of Dion: 'rank' takes fractions"),
        ("use_ef", "one of the paper's code: use residual='error_feedback'"),
        ("learning_rate", "one of Optax: use 'lr'"),
        ("b1", "one of Optax: use betas="),
    ],
)
def test_unknown_option_is_answered_with_the_right_one(option, answer):
    with pytest.raises(TypeError, match=re.escape(answer)):
        DCTAdamW.for_model(model(), rank=4, **{option: 1})


def test_no_option_that_is_known_is_called_foreign():
    for optimizer, known in ((DCTAdamW, {"lr", "betas"}), (Trion, {"lr", "momentum"})):
        defaults = optimizer(parameters((12, 8)), rank=4, lr=0.01).defaults
        assert known <= defaults.keys()
        allowed = {"lr", "betas", "momentum", "scale", "differentiable"}
        assert not FOREIGN.keys() & defaults.keys() - allowed


@pytest.mark.parametrize("option", IN_GROUPS)
def test_option_of_others_in_a_group_is_not_passed_over(option):
    with pytest.raises(TypeError, match=f"a parameter group has no option '{option}', which is"):
        DCTAdamW([{"params": parameters((12, 8)), option: 1}], rank=4)


def test_model_in_the_place_of_parameters():
    with pytest.raises(TypeError, match=r"got a model \(Sequential\): use DCTAdamW\.for_model\("):
        DCTAdamW(model(), rank=4)


def test_parameters_in_the_place_of_a_model():
    with pytest.raises(
        TypeError, match=r"torch\.nn\.Module, got generator; Trion\(params, \.\.\.\)"
    ):
        Trion.for_model(model().parameters(), rank=4)


def test_generator_that_was_used_up():
    given = model().parameters()
    list(given)
    with pytest.raises(ValueError, match="a generator was used up"):
        DCTAdamW(given, rank=4)


def test_model_whose_parameters_are_all_frozen():
    with pytest.raises(ValueError, match="requires a gradient: all are frozen"):
        DCTAdamW.for_model(model().requires_grad_(False), rank=4)


def test_rank_above_every_width_warns_that_nothing_is_saved():
    with pytest.warns(
        UserWarning, match=r"nothing is saved: rank 512 .*0\.weight of shape \(128, 64\)"
    ):
        DCTAdamW.for_model(model(), rank=512)


def test_rank_above_some_widths_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DCTAdamW(parameters((600, 520), (64, 64)), rank=512)
        DCTAdamW(parameters((64,)), rank=512)
        Trion(parameters((64, 64)), rank=512)


@pytest.mark.parametrize(("dtype", "rate"), [(torch.bfloat16, 1e-5), (torch.float16, 1e-6)])
def test_narrow_weights_at_a_small_rate_warn_once(dtype, rate):
    narrow = model().to(dtype)
    with pytest.warns(UserWarning, match="most updates are .*stochastic_rounding=True") as caught:
        DCTAdamW(matrix_groups(narrow), lr=rate, rank=4)
    assert len(caught) == 1
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


def stepped(optimizer, given):
    set_gradients(given, 0)
    optimizer.step()
    return optimizer.state_dict()


def test_checkpoint_of_adamw_is_named():
    given = parameters((12, 8))
    saved = stepped(torch.optim.AdamW(given), given)
    with pytest.raises(
        ValueError, match=r"of torch\.optim\.AdamW, and this is dct_adamw.*weights alone"
    ):
        DCTAdamW(given, rank=4).load_state_dict(saved)


def test_checkpoint_of_another_algorithm_is_named():
    given = parameters((12, 8))
    saved = copy.deepcopy(stepped(Trion(given, rank=4), given))
    with pytest.raises(ValueError, match="checkpoint is of trion, and this is dct_adamw"):
        DCTAdamW(given, rank=4).load_state_dict(saved)


def test_checkpoint_of_another_rank_names_both():
    given = parameters((12, 8))
    saved = stepped(DCTAdamW(given, rank=4), given)
    with pytest.raises(ValueError, match=r"rank=6 in group 0, got 4"):
        DCTAdamW(given, rank=6).load_state_dict(saved)
