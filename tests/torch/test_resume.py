"""Stop, save, load and go on: the same bits as never stopping, whatever the options."""

import io
import subprocess
import sys

import pytest
import torch
from lowrank_torch import DCTAdamW, matrix_groups
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch_helpers import (
    OPTIMIZERS,
    VARIANTS,
    all_parameters,
    assert_same_bits,
    assert_same_state,
    choices,
    copies,
    parameters,
    train,
    unchanged,
    variant_id,
)

pytestmark = pytest.mark.usefixtures("torch")

# Tall, wide, a convolution, a vector, and last a stack of matrices: sizes that every basis exists at.
SHAPES = ((32, 16), (16, 32), (8, 4, 2, 2), (5,), (3, 16, 8))
STOP, STEPS = 4, 9


def make(given, optimizer_type=DCTAdamW, **options):
    groups = [{"params": given[:-1]}, {"params": given[-1:], "batch_dims": 1}]
    return optimizer_type(groups, lr=0.02, weight_decay=0.1, **{"rank": 3} | options)


def through_a_file(saved):
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def check_resume(make_one, dtype=torch.float32):
    straight = parameters(*SHAPES, dtype=dtype)
    optimizer = make_one(straight)
    train(optimizer, straight, STOP)
    saved = through_a_file(
        {"values": [p.detach() for p in straight], "optimizer": optimizer.state_dict()}
    )
    train(optimizer, straight, STEPS - STOP, start=STOP)
    resumed = [nn.Parameter(value) for value in saved["values"]]
    again = make_one(resumed)
    again.load_state_dict(saved["optimizer"])
    train(again, resumed, STEPS - STOP, start=STOP)
    assert_same_bits(resumed, straight)
    assert_same_state(again, optimizer)


def test_variants_cover_every_choice():
    for option in ("residual", "bias_correction", "score"):
        seen = {variant[option] for variant in VARIANTS if option in variant}
        assert seen == set(choices(option))
    assert {"discard", "error_feedback"} <= set(choices("residual"))


@pytest.mark.parametrize("refresh_every", [1, 3])
@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
def test_resumed_run_has_the_same_bits(variant, refresh_every):
    check_resume(lambda given: make(given, **{"refresh_every": refresh_every} | variant))


@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
def test_resumed_run_in_bf16_has_the_same_bits(variant):
    check_resume(lambda given: make(given, **variant), torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("optimizer_type", OPTIMIZERS)
def test_every_optimizer_resumes_with_the_same_bits(optimizer_type, dtype):
    check_resume(lambda given: make(given, optimizer_type), dtype)


@pytest.mark.parametrize("optimizer_type", OPTIMIZERS)
@pytest.mark.parametrize(
    "options",
    [{"stochastic_rounding": True}, {"split_sizes": (4, 4), "num_heads": 2}],
    ids=["stochastic rounding", "heads of fused projections"],
)
def test_options_of_the_frontend_resume(optimizer_type, options):
    def make_one(given):
        # Only the convolution has the eight rows that are split.
        groups = [{"params": given[:2] + given[3:]}, {"params": given[2:3], **options}]
        return optimizer_type(groups, lr=0.02, rank=3)

    check_resume(make_one, torch.bfloat16)


def test_parameter_with_a_late_first_gradient_resumes():
    straight = parameters(*SHAPES)
    optimizer = make(straight)
    train(optimizer, straight[1:], STOP)
    resumed = copies(straight)
    again = make(resumed)
    again.load_state_dict(through_a_file(optimizer.state_dict()))
    assert_same_state(again, optimizer)
    for one, given in ((optimizer, straight), (again, resumed)):
        train(one, given, 2, start=STOP)
    assert_same_bits(resumed, straight)


@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
def test_state_dict_holds_tensors_and_plain_values_only(variant):
    given = parameters(*SHAPES)
    optimizer = make(given, **variant)
    train(optimizer, given, 2)
    saved = optimizer.state_dict()
    assert set(saved) == {"state", "param_groups"}
    assert sorted(saved["state"]) == list(range(len(given)))
    for state in saved["state"].values():
        assert {type(value) for value in state.values()} <= {torch.Tensor, int, float}
    plain = (int, float, str, bool, type(None))
    for group in saved["param_groups"]:
        for option, value in group.items():
            items = value if isinstance(value, list | tuple) else [value]
            assert all(type(item) in plain for item in items), option


def test_loaded_state_shares_no_memory_with_what_was_loaded():
    given = parameters(*SHAPES)
    optimizer = make(given)
    train(optimizer, given, 2)
    saved = through_a_file(optimizer.state_dict())
    other = make(copies(given))
    other.load_state_dict(saved)
    train(other, all_parameters(other), 3)
    other.load_state_dict(saved)
    assert_same_state(other, optimizer)


IN_A_NEW_PROCESS = """
import sys, torch
from torch import nn
from lowrank_torch import DCTAdamW, matrix_groups

torch.set_num_threads(int(sys.argv[2]))
saved = torch.load(sys.argv[1], weights_only=True)
model = nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 24), nn.LayerNorm(24), nn.Linear(24, 11))
model.load_state_dict(saved["model"])
optimizer = DCTAdamW(matrix_groups(model, min_size=1), lr=0.02, **saved["options"])
scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
optimizer.load_state_dict(saved["optimizer"])
scheduler.load_state_dict(saved["scheduler"])
for batch in saved["batches"]:
    optimizer.zero_grad()
    model(batch).square().mean().backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    scheduler.step()
torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, sys.argv[1])
"""


FEEDBACK = {"preset": None, "rank": 3, "refresh_every": 3, "residual": "error_feedback"}


def small_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 24), nn.LayerNorm(24), nn.Linear(24, 11))


def test_trainer_resumes_in_a_new_process(tmp_path):
    model = small_model()
    optimizer = DCTAdamW(matrix_groups(model, min_size=1), lr=0.02, **FEEDBACK)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
    batches = torch.randint(11, (8, 6))
    path = tmp_path / "checkpoint.pt"
    for step, batch in enumerate(batches):
        if step == 4:
            torch.save(
                {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "scheduler": scheduler.state_dict(),
                    "batches": batches[step:],
                    "options": FEEDBACK,
                },
                path,
            )
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
    subprocess.run(
        [sys.executable, "-c", IN_A_NEW_PROCESS, str(path), str(torch.get_num_threads())],
        check=True,
        cwd=tmp_path,
    )
    resumed = torch.load(path, weights_only=True)
    assert_same_bits(resumed["model"].values(), model.state_dict().values())
    again = DCTAdamW(matrix_groups(model, min_size=1), **FEEDBACK)
    again.load_state_dict(resumed["optimizer"])
    assert_same_state(again, optimizer)


@pytest.mark.parametrize("flatten", [False, True])
def test_distributed_checkpoint_round_trip(flatten):
    options = StateDictOptions(flatten_optimizer_state_dict=flatten)
    model, twin = small_model(), small_model()
    made = [
        DCTAdamW(
            matrix_groups(m, min_size=1),
            lr=0.02,
            rank=3,
            preset=None,
            refresh_every=3,
            bias_correction="column",
        )
        for m in (model, twin)
    ]
    train(made[0], model.parameters(), STOP)
    twin.load_state_dict(model.state_dict())
    saved = through_a_file(get_optimizer_state_dict(model, made[0], options=options))
    set_optimizer_state_dict(twin, made[1], saved, options=options)
    assert_same_state(made[1], made[0])
    for optimizer, trained in zip(made, (model, twin), strict=True):
        train(optimizer, trained.parameters(), STEPS, start=STOP)
    assert_same_bits(twin.parameters(), model.parameters())


def test_distributed_checkpoint_of_a_fresh_optimizer_moves_no_parameter():
    model = small_model()
    optimizer = DCTAdamW(matrix_groups(model, min_size=1), lr=0.02, rank=3, weight_decay=0.5)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    saved = get_optimizer_state_dict(model, optimizer)
    assert len(saved["state"]) == len(before)
    assert_same_bits(model.parameters(), before)
    assert {group["lr"] for group in optimizer.param_groups} == {0.02}
    with unchanged(optimizer):
        get_optimizer_state_dict(model, optimizer)
    train(optimizer, model.parameters(), 3)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_distributed_checkpoint_of_a_fresh_optimizer_spends_no_choice_of_columns():
    models = small_model(), small_model()
    made = [
        DCTAdamW(matrix_groups(m, min_size=1), lr=0.02, rank=3, preset=None, refresh_every=50)
        for m in models
    ]
    # Asked of an optimizer without state, it does a step with zero gradients and a rate of zero to have some.
    get_optimizer_state_dict(models[0], made[0])
    for model, optimizer in zip(models, made, strict=True):
        train(optimizer, model.parameters(), 3)
    saved, straight = (optimizer.state_dict()["state"][0] for optimizer in made)
    assert saved["step"] == straight["step"] == 3
    assert_same_bits([saved["indices"]], [straight["indices"]])
    assert_same_bits([models[0][1].weight], [models[1][1].weight])
