"""Options as programs that read signatures see them: typed, in Lightning's command line, the real one."""

import inspect

import pytest
import torch
from lowrank_torch import DCTAdamW, Trion
from model_libraries import import_torchvision
from torch import nn

# Warnings of these packages about themselves are not ours to mend.
pytestmark = [pytest.mark.usefixtures("torch"), pytest.mark.filterwarnings("ignore")]

SETTINGS = {
    "lr": 0.02,
    "betas": [0.8, 0.95],
    "rank": 8,
    "refresh_every": 4,
    "residual": "discard",
    "score_decay": 0.9,
    "split_sizes": [64, 64],
    "foreach": False,
}


@pytest.mark.parametrize("optimizer", [DCTAdamW, Trion])
def test_every_option_is_in_the_signature_with_its_type_and_default(optimizer):
    shown = inspect.signature(optimizer).parameters
    (group,) = optimizer([nn.Parameter(torch.ones(8, 8))], rank=2).param_groups
    beside = {"process_group", "preset"} if optimizer is DCTAdamW else {"process_group"}
    assert set(shown) == {*beside, *group}
    del group["params"]
    for name, default in group.items():
        assert shown[name].annotation is not inspect.Parameter.empty, name
        if name != "rank":
            assert shown[name].default == default, name


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
