"""Steps of the PyTorch optimizer are the core's steps: on matrices, convolutions and stacks, whatever their layout."""

import oracles
import pytest
import torch
from helpers import assert_close, to_numpy
from lowrank_torch import DCTAdamW
from torch_helpers import assert_same_bits, copies, parameters, set_gradients, tensor, train

import lowrank_core as lc

pytestmark = pytest.mark.usefixtures("torch")

STEPS = 8
# A decay that large tells a decay of the value before the step from one of the value after it.
RATE, DECAY = 0.05, 0.5
OPTIONS = {"rank": 3, "betas": (0.8, 0.95), "eps": 1e-6, "refresh_every": 3}
PLAIN = {"preset": None, **OPTIONS}


def by_hand(parameter, matrix_shape, steps=STEPS, **options):
    """``W <- W - lr wd W - lr u`` with ``u`` from the core, on ``W`` reshaped to a stack of matrices."""
    preset = lc.PRESETS["factored"] if options.pop("preset", None) else {}
    config = lc.DCTAdamWConfig(**{**preset, **OPTIONS, **options})
    value = parameter.detach().clone().reshape(matrix_shape)
    state = lc.dct_adamw_init(matrix_shape, config, xp=torch, dtype=value.dtype)
    for step in range(steps):
        holder = torch.nn.Parameter(parameter.detach().clone())
        set_gradients([holder], step)
        gradient = holder.grad.reshape(matrix_shape)
        update, state = lc.dct_adamw_step(gradient, state, config)
        value = value - RATE * DECAY * value - RATE * lc.materialize(update)
    return value.reshape(parameter.shape), state


def check(parameter, matrix_shape, dtype, *, batch_dims=0, **options):
    expected, core = by_hand(parameter, matrix_shape, **options)
    optimizer = DCTAdamW(
        [parameter],
        lr=RATE,
        weight_decay=DECAY,
        batch_dims=batch_dims,
        **PLAIN | options,
    )
    train(optimizer, [parameter], STEPS)
    assert_close(parameter.detach(), expected, xp=torch, dtype=dtype, kind="trajectory")
    state = optimizer.state[parameter]
    assert state["step"] == core.step == STEPS
    assert_same_bits([state["indices"]], [core.indices])
    assert state.keys() == {name for name, value in core._asdict().items() if value is not None}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("side", ["auto", "left", "right"])
@pytest.mark.parametrize("shape", [(24, 10), (10, 24), (16, 16)], ids=["tall", "wide", "square"])
@pytest.mark.parametrize("preset", [None, "factored"])
def test_matrix_follows_the_core(preset, shape, side, dtype):
    (parameter,) = parameters(shape, dtype=getattr(torch, dtype))
    check(parameter, shape, dtype, side=side, preset=preset)


def test_the_preset_is_the_default():
    own, other = parameters((24, 10)), parameters((24, 10))
    for given, options in ((own, {}), (other, {"preset": "factored"})):
        train(DCTAdamW(given, lr=RATE, rank=3, **options), given, STEPS)
    assert_same_bits(own, other)
    assert DCTAdamW(own, rank=3).param_groups[0].items() >= lc.PRESETS["factored"].items()


@pytest.mark.parametrize("residual", ["discard", "error_feedback"])
@pytest.mark.parametrize("bias_correction", ["step", "column"])
def test_options_reach_the_core(residual, bias_correction):
    (parameter,) = parameters((24, 10), dtype=torch.float64)
    check(
        parameter,
        (24, 10),
        "float64",
        residual=residual,
        bias_correction=bias_correction,
        score="l1",
        method="fft",
    )


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("shape", "batch_dims", "matrices"),
    [
        ((6, 4, 3, 3), 0, (6, 36)),
        ((8, 4, 5), 0, (8, 20)),
        ((3, 12, 8), 1, (3, 12, 8)),
        ((2, 3, 8, 6), 2, (2, 3, 8, 6)),
        ((2, 6, 4, 3), 1, (2, 6, 12)),
    ],
    ids=["conv2d", "conv1d", "experts", "stacked experts", "stacked convolutions"],
)
def test_more_dimensions_are_flattened_or_stacked(shape, batch_dims, matrices, side):
    (parameter,) = parameters(shape, dtype=torch.float64)
    check(parameter, matrices, "float64", batch_dims=batch_dims, side=side)


def test_memory_format_changes_speed_alone():
    (plain,) = parameters((6, 4, 3, 3))
    (channels_last,) = copies([plain])
    channels_last.data = channels_last.data.to(memory_format=torch.channels_last)
    assert not channels_last.is_contiguous()
    for parameter in (plain, channels_last):
        train(DCTAdamW([parameter], lr=RATE, weight_decay=DECAY, **OPTIONS), [parameter], STEPS)
    assert channels_last.is_contiguous(memory_format=torch.channels_last)
    assert_close(channels_last.detach(), plain.detach(), xp=torch, dtype="float32")
    assert not torch.equal(plain, parameters((6, 4, 3, 3))[0])


def test_transposed_parameter_and_expanded_gradient():
    plain, strided = parameters((24, 10), (24, 10))
    strided.data = plain.data.t().contiguous().t()
    assert not strided.is_contiguous()
    for parameter in (plain, strided):
        optimizer = DCTAdamW([parameter], lr=RATE, weight_decay=DECAY, **OPTIONS)
        for step in range(3):
            row = tensor(10, seed=step)
            parameter.grad = row.expand(24, 10)
            if parameter is plain:
                parameter.grad = parameter.grad.contiguous()
            optimizer.step()
    assert_close(strided.detach(), plain.detach(), xp=torch, dtype="float32")


@pytest.mark.parametrize("side", ["left", "right"])
def test_large_update_is_added_block_by_block(side):
    shape = (700, 600)  # more numbers than one block of the temporary holds
    (parameter,) = parameters(shape)
    expected, _ = by_hand(parameter, shape, steps=2, side=side, rank=20)
    optimizer = DCTAdamW(
        [parameter], lr=RATE, weight_decay=DECAY, **PLAIN | {"side": side, "rank": 20}
    )
    train(optimizer, [parameter], 2)
    assert_close(parameter.detach(), expected, xp=torch, dtype="float32", kind="trajectory")


def test_matrix_follows_the_independent_oracle():
    shape = (24, 10)
    (parameter,) = parameters(shape, dtype=torch.float64)
    oracle = oracles.DCTAdamW(**OPTIONS)
    value = to_numpy(parameter)
    optimizer = DCTAdamW([parameter], lr=RATE, weight_decay=DECAY, **PLAIN)
    for step in range(STEPS):
        set_gradients([parameter], step)
        value = value - RATE * DECAY * value - RATE * oracle.step(to_numpy(parameter.grad))
        optimizer.step()
        assert optimizer.state[parameter]["indices"].tolist() == sorted(oracle.columns)
    assert_close(parameter.detach(), value, xp=torch, dtype="float64", kind="trajectory")


@pytest.mark.parametrize("shape", [(24, 10), (5,)], ids=["low rank", "adamw"])
def test_maximize_goes_the_other_way(shape):
    up, down = parameters(shape, shape)
    down.data.copy_(up.data)
    climbing = DCTAdamW([up], lr=RATE, weight_decay=DECAY, maximize=True, **OPTIONS)
    falling = DCTAdamW([down], lr=RATE, weight_decay=DECAY, **OPTIONS)
    for step in range(STEPS):
        set_gradients([up], step)
        down.grad = -up.grad
        climbing.step()
        falling.step()
    assert_same_bits([up], [down])
    assert not torch.equal(up, parameters(shape)[0])
