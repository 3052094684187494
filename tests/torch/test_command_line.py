"""Options as programs that read signatures see them: typed, in Lightning's command line, the real one."""

import inspect

import pytest
import torch
from lowrank_torch import DCTAdamW, Trion, matrix_groups
from model_libraries import import_torchvision
from torch import nn

import lowrank_core as lc

# Warnings of these packages about themselves are not ours to mend.
pytestmark = [pytest.mark.usefixtures("torch"), pytest.mark.filterwarnings("ignore")]

SETTINGS = {
    "lr": 0.02,
    "betas": [0.8, 0.95],
    "rank": 8,
    "refresh_every": 4,
    "score_decay": 0.9,
    "split_sizes": [64, 64],
    "foreach": False,
}


@pytest.mark.parametrize("optimizer", [DCTAdamW, Trion])
def test_every_option_is_in_the_signature_with_its_type_and_default(optimizer):
    shown = inspect.signature(optimizer).parameters
    (group,) = optimizer([nn.Parameter(torch.ones(8, 8))]).param_groups
    assert set(shown) == {"process_group", "preset", *group}
    del group["params"]
    presets = lc.PRESETS if optimizer is DCTAdamW else lc.TRION_PRESETS
    said = {name for options in presets.values() for name in options}
    for name, default in group.items():
        assert shown[name].annotation is not inspect.Parameter.empty, name
        assert shown[name].default == ("preset" if name in said else default), name


@pytest.mark.parametrize(
    ("optimizer", "preset"),
    [*((DCTAdamW, name) for name in (None, *lc.PRESETS)), (Trion, None), (Trion, "best")],
)
def test_defaults_that_are_given_one_by_one_change_nothing(optimizer, preset):
    """Programs that read signatures give every default as if it had been asked for."""
    weight = nn.Parameter(torch.ones(8, 8))
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(optimizer).parameters.items()
        if name not in ("params", "preset")
    }
    (given,) = optimizer([weight], preset=preset, **defaults).param_groups
    (made,) = optimizer([weight], preset=preset).param_groups
    assert given == made


@pytest.mark.parametrize("optimizer", [DCTAdamW, Trion])
def test_for_model_shows_the_same_and_what_groups_are_made_by(optimizer):
    shown = inspect.signature(optimizer.for_model).parameters
    made = inspect.signature(optimizer).parameters
    groups = inspect.signature(matrix_groups).parameters
    assert next(iter(shown)) == "model"
    assert set(shown) == {*groups, *made} - {"params"}
    assert all(shown[name].default == made[name].default for name in {*shown} & {*made})


def test_an_optimizer_prints_a_line():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    made = DCTAdamW.for_model(model, lr=0.01, rank=8, other={"lr": 0.001})
    assert repr(made) == (
        "DCTAdamW(matrix: 2 parameters lr=0.01 rank=8, vector: 2 parameters lr=0.001)"
    )
    bare = Trion([nn.Parameter(torch.ones(8, 8))])
    assert repr(bare) == "Trion(trion: 1 parameters lr=0.01 rank=0.25)"


def test_a_dtype_is_kept_by_its_name_in_groups():
    parameter = nn.Parameter(torch.ones(8, 8))
    (group,) = DCTAdamW([parameter], rank=2, preset=None, state_dtype=torch.bfloat16).param_groups
    assert group["state_dtype"] == "bfloat16"


def command_line(settings):
    """Lightning's command line with these settings of the optimizer, given as to a program."""
    import_torchvision()
    cli = pytest.importorskip("lightning.pytorch.cli")
    pytest.importorskip("jsonargparse")

    class Module(cli.LightningModule):
        def __init__(self):
            super().__init__()
            self.up = nn.Linear(64, 128)

        def training_step(self, x, _):
            return self.up(x).square().mean()

    loader = torch.utils.data.DataLoader([torch.randn(4, 64) for _ in range(4)], batch_size=None)
    chosen = {"class_path": "lowrank_torch.DCTAdamW", "init_args": settings}
    quiet = dict.fromkeys(
        ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False
    )
    arguments = {"optimizer": chosen, "trainer": {"max_steps": 3, "accelerator": "cpu", **quiet}}
    made = cli.LightningCLI(Module, run=False, args=arguments, save_config_callback=None)
    made.trainer.fit(made.model, loader)
    return made.trainer.optimizers[0]


def test_lightnings_command_line_makes_it_by_class_path():
    optimizer = command_line(SETTINGS)
    assert type(optimizer) is DCTAdamW
    (group,) = optimizer.param_groups
    found = {name: group[name] for name in SETTINGS}
    assert found == {**SETTINGS, "betas": (0.8, 0.95)}
    # What nobody set is the preset's.
    assert group.items() >= {"second_moment": "factored", "update_scale": 2.0}.items()
    weight, bias = group["params"]
    assert optimizer.state[weight]["step"] == optimizer.state[bias]["step"] == 3
    assert optimizer.state[weight]["first_moment.1"].shape == (64, 8)


@pytest.mark.parametrize(
    "wrong", [{"refresh_every": "often"}, {"rnk": 8}, {"foreach": 3}, {"num_heads": "two"}]
)
def test_the_command_line_refuses_what_is_no_option_or_of_another_type(wrong, capsys):
    (name,) = wrong
    with pytest.raises(SystemExit):
        command_line(SETTINGS | wrong)
    assert name in capsys.readouterr().err
