"""bf16 and fp16 parameters: state and arithmetic in float32, one rounding a step."""

import pytest
import torch
from helpers import assert_close, to_numpy
from lowrank_torch import DCTAdamW
from torch_helpers import OPTIMIZERS, assert_same_bits, parameters, set_gradients, train

import lowrank_core as lc

pytestmark = pytest.mark.usefixtures("torch")

HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
# The decay alone is far below the spacing of bf16 numbers, so rounding it by itself would lose it.
RATE, DECAY = 0.004, 0.3


@HALVES
@pytest.mark.parametrize("side", ["left", "right"])
def test_matrix_is_rounded_once_a_step(dtype, side):
    (parameter,) = parameters((24, 16), dtype=dtype)
    config = lc.DCTAdamWConfig(rank=4, side=side, refresh_every=2)
    state = lc.dct_adamw_init((24, 16), config, xp=torch)
    value = parameter.detach().clone()
    optimizer = DCTAdamW(
        [parameter], RATE, weight_decay=DECAY, rank=4, side=side, preset=None, refresh_every=2
    )
    for step in range(10):
        set_gradients([parameter], step)
        update, state = lc.dct_adamw_step(parameter.grad.float(), state, config)
        exact = value.float() * (1 - RATE * DECAY) - RATE * lc.materialize(update)
        value = exact.to(dtype)
        optimizer.step()
        assert parameter.dtype == dtype
        assert_close(parameter.detach(), value.double(), xp=torch, dtype=str(dtype)[6:])
        # Where a number lies half-way, the last bit may fall either way; then go on from the same numbers.
        assert (parameter != value).sum() <= 2
        parameter.data.copy_(value)
        held = optimizer.state[parameter]
        assert_close(held["first_moment"], state.first_moment, xp=torch, dtype="float32")
        assert_close(held["second_moment"], state.second_moment, xp=torch, dtype="float32")
        assert_same_bits([held["indices"]], [state.indices])


@HALVES
def test_vector_is_rounded_once_a_step(dtype):
    (parameter,) = parameters((400,), dtype=dtype)
    hyper = {"lr": RATE, "weight_decay": DECAY}
    wide = torch.nn.Parameter(parameter.detach().float())
    optimizer, reference = (
        DCTAdamW([parameter], rank=4, **hyper),
        torch.optim.AdamW([wide], **hyper),
    )
    for step in range(10):
        set_gradients([parameter], step)
        wide.grad = parameter.grad.float()
        reference.step()
        optimizer.step()
        wide.data.copy_(wide.data.to(dtype))
        assert parameter.dtype == dtype
        assert_same_bits([parameter], [wide.to(dtype)])
    for name in ("exp_avg", "exp_avg_sq"):
        assert_same_bits([optimizer.state[parameter][name]], [reference.state[wide][name]])


@HALVES
@pytest.mark.parametrize("optimizer_type", OPTIMIZERS)
def test_state_is_float32(optimizer_type, dtype):
    given = parameters((24, 16), (6, 4, 3, 3), (3, 12, 8), (9,), dtype=dtype)
    optimizer = optimizer_type(given, lr=RATE, rank=3)
    train(optimizer, given, 2)
    for parameter in given:
        tensors = [v for v in optimizer.state[parameter].values() if isinstance(v, torch.Tensor)]
        assert tensors
        assert {value.dtype for value in tensors} <= {torch.float32, torch.int32}


@HALVES
def test_convolution_in_channels_last(dtype):
    plain, strided = parameters((6, 4, 3, 3), (6, 4, 3, 3), dtype=dtype)
    strided.data = plain.data.to(memory_format=torch.channels_last)
    for parameter in (plain, strided):
        train(DCTAdamW([parameter], RATE, weight_decay=DECAY, rank=3), [parameter], 3)
    assert (plain != strided).sum() <= 2
    assert_close(strided.detach(), to_numpy(plain), xp=torch, dtype=str(dtype)[6:])


def test_float64_parameters_keep_float64_state():
    given = parameters((24, 16), (9,), dtype=torch.float64)
    optimizer = DCTAdamW(given, RATE, rank=3)
    train(optimizer, given, 2)
    floating = [
        value.dtype
        for parameter in given
        for name, value in optimizer.state[parameter].items()
        if isinstance(value, torch.Tensor) and name != "step" and value.is_floating_point()
    ]
    # Of the matrix a moment and means over columns and rows, of the vector two moments.
    assert floating == [torch.float64] * 5
    assert [row.state_bytes for row in optimizer.summary()] == [
        (24 * 3 + 24 + 16) * 8 + 3 * 4,
        2 * 9 * 8,
    ]


@pytest.mark.parametrize("state_dtype", ["bfloat16", "float16", "float64"])
def test_moments_are_kept_in_the_dtype_asked_for(state_dtype):
    (parameter,) = parameters((24, 16))
    optimizer = DCTAdamW([parameter], RATE, rank=3, preset=None, state_dtype=state_dtype)
    train(optimizer, [parameter], 2)
    state = optimizer.state[parameter]
    assert (
        state["first_moment"].dtype == state["second_moment"].dtype == getattr(torch, state_dtype)
    )
    assert parameter.dtype == torch.float32


def test_narrow_state_ends_where_wide_state_does():
    x = torch.randn(256, 32, generator=torch.Generator().manual_seed(0))
    y, ends = torch.sin(2 * x), {}
    for dtype in (None, "bfloat16", "float16"):
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Linear(32, 64), torch.nn.Tanh(), torch.nn.Linear(64, 32)
        )
        optimizer = DCTAdamW(model.parameters(), lr=3e-3, rank=8, preset=None, state_dtype=dtype)
        for _ in range(200):
            loss = (model(x) - y).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        ends[dtype] = loss.item()
    assert max(ends.values()) < 1.1 * ends[None]
