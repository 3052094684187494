"""Narrow numbers: rounding at random, second moments that decay, parameters that move by less than they can hold."""

import numpy as np
import pytest
from family_cases import compiled
from helpers import assert_identical, dtype_name, from_numpy, library_of, normal, to_numpy

import lowrank_core as lc
from lowrank_core.numerics.rounding import round_stochastically

NARROW = [("torch", "bfloat16"), ("torch", "float16"), ("jax", "bfloat16"), ("jax", "float16")]
on_every_narrow_dtype = pytest.mark.parametrize(
    ("xp", "dtype"), [*NARROW, ("numpy", "float16")], indirect=["xp"]
)
# Explicit digits of a number, without the leading one.
DIGITS = {"bfloat16": 7, "float16": 10}


def rounded(values, xp, dtype, key=1):
    """``values`` rounded at random, as float64."""
    x = from_numpy(values, xp, "float32")
    keys = from_numpy([key], xp, "int32")
    found = compiled(
        lambda x, keys: round_stochastically(x, getattr(xp, dtype), keys, lc.ops_for(x)), xp
    )(x, keys)
    assert dtype_name(found) == dtype
    assert tuple(found.shape) == np.shape(values)
    return to_numpy(found).astype(np.float64)


def neighbours(values, dtype):
    """The numbers of a narrow dtype next below and above (both the number itself where it is one)."""
    exact = np.asarray(values, dtype=np.float32).astype(np.float64)
    unit = 2.0 ** (np.floor(np.log2(np.abs(exact))) - DIGITS[dtype])
    return np.floor(exact / unit) * unit, np.ceil(exact / unit) * unit


@on_every_narrow_dtype
def test_a_number_becomes_one_of_its_neighbours(xp, dtype):
    # Within the normal numbers of float16.
    rng = np.random.default_rng(0)
    values = (
        rng.choice([-1, 1], 2000) * rng.uniform(1, 2, 2000) * 2.0 ** rng.integers(-14, 15, 2000)
    )
    found = rounded(values, xp, dtype)
    below, above = neighbours(values, dtype)
    assert ((found == below) | (found == above)).all()
    assert (found == below).any()
    assert (found == above).any()


@on_every_narrow_dtype
def test_rounding_is_right_on_average(xp, dtype):
    count = 40_000
    for value in (1.0 + 2.0**-14, -3.0002, 0.1, 700.3, -0.00123):
        below, above = neighbours(value, dtype)
        exact = float(np.float32(value))
        odds = (exact - below) / (above - below)
        share = (rounded(np.full(count, value), xp, dtype) == above).mean()
        # Five standard deviations.
        assert abs(share - odds) <= 5 * np.sqrt(odds * (1 - odds) / count) + 1e-12


@on_every_narrow_dtype
def test_what_can_be_held_exactly_stays(xp, dtype):
    # Every mantissa, in every other binade of normal numbers; the powers of two are where units change.
    mantissas = 1 + np.arange(2 ** DIGITS[dtype]) / 2 ** DIGITS[dtype]
    values = np.concatenate([mantissas * 2.0**e for e in range(-14, 15, 2)])
    values = np.concatenate([values, -values, [0.0, np.inf, -np.inf]])
    for key in (1, 2):
        # NumPy says of infinities what it says of any arithmetic with them.
        with np.errstate(invalid="ignore"):
            found = rounded(values, xp, dtype, key)
        np.testing.assert_array_equal(found, values)


@on_every_narrow_dtype
def test_what_is_not_finite_stays(xp, dtype):
    largest = float(np.finfo(np.float32).max)
    with np.errstate(over="ignore", invalid="ignore"):
        found = rounded([np.nan, np.inf, -np.inf, largest, -largest], xp, dtype)
    assert np.isnan(found[0])
    np.testing.assert_array_equal(found[1:], [np.inf, -np.inf, np.inf, -np.inf])


@on_every_narrow_dtype
def test_small_numbers_are_rounded_finely_enough(xp, dtype):
    # Below the normal numbers the unit is the smallest there is.
    unit = 2.0**-24 if dtype == "float16" else 2.0**-120
    values = unit * np.array([0.0, 0.25, -0.25, 1.0, 2.5, -7.75])
    found = rounded(values, xp, dtype)
    assert (np.abs(found - values) <= unit).all()
    assert (found[[0, 3]] == values[[0, 3]]).all()


@on_every_narrow_dtype
def test_the_key_decides(xp, dtype):
    values = normal(500)
    first, again, other = (rounded(values, xp, dtype, key) for key in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.2


def test_libraries_round_alike(torch, jnp):
    values = normal(3, 400)
    for dtype in DIGITS:
        expected = rounded(values, torch, dtype, key=-9)
        np.testing.assert_array_equal(rounded(values, jnp, dtype, key=-9), expected)
    np.testing.assert_array_equal(rounded(values, np, "float16", key=-9), expected)


# -- state -------------------------------------------------------------------------------------


def step_of(config):
    return lambda gradient, state: lc.dct_adamw_step(gradient, state, config)[1]


@pytest.mark.parametrize(("xp", "dtype"), [NARROW[0], NARROW[2]], indirect=["xp"])
def test_a_narrow_second_moment_decays(xp, dtype):
    # A thousandth of a bfloat16 is less than half its last digit: rounded to nearest, it would stay for ever.
    config = lc.DCTAdamWConfig(rank=8, side="right", betas=(0.9, 0.999), state_dtype=dtype)
    state = lc.dct_adamw_init((64, 8), config, xp=xp)
    step = compiled(step_of(config), xp)
    state = step(from_numpy(normal(64, 8), xp, "float32"), state)
    start = to_numpy(state.second_moment).astype(np.float64)
    nothing = from_numpy(np.zeros((64, 8)), xp, "float32")
    for _ in range(300):
        state = step(nothing, state)
    share = to_numpy(state.second_moment).astype(np.float64).sum() / start.sum()
    assert dtype_name(state.second_moment) == dtype
    assert abs(share / 0.999**300 - 1) < 0.02


@pytest.mark.parametrize(("xp", "dtype"), NARROW, indirect=["xp"])
@pytest.mark.parametrize("residual", ["error_feedback", "discard"])
def test_narrow_state_stays_near_wide_state(xp, dtype, residual):
    shape, sequence = (12, 8), [normal(12, 8, seed=t) for t in range(15)]
    moments = {}
    for kind in (dtype, "float32"):
        config = lc.DCTAdamWConfig(
            rank=3, basis="identity", residual=residual, state_dtype=kind, betas=(0.9, 0.95)
        )
        state = lc.dct_adamw_init(shape, config, xp=xp)
        step = compiled(step_of(config), xp)
        for gradient in sequence:
            state = step(from_numpy(gradient * [9, 8, 7, 1, 1, 1, 1, 1], xp, "float32"), state)
        moments[kind] = state
    for name in ("first_moment", "second_moment", "feedback"):
        narrow, wide = (getattr(moments[kind], name) for kind in (dtype, "float32"))
        if narrow is None:
            assert wide is None
            continue
        assert dtype_name(narrow) == dtype
        found, expected = to_numpy(narrow), to_numpy(wide)
        if name == "second_moment" and dtype == "float16":
            found = found.astype(np.float64) ** 2  # kept as its root
        # Fifteen roundings, most of which have decayed.
        error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
        assert 0 < error < 8 * 2.0 ** -DIGITS[dtype]


@pytest.mark.parametrize(("xp", "dtype"), [NARROW[0], NARROW[2]], indirect=["xp"])
def test_narrow_momentum_of_trion_stays_near_wide(xp, dtype):
    momenta = []
    for kind in (dtype, None):
        config = lc.TrionConfig(rank=2, basis="identity", state_dtype=kind)
        state = lc.trion_init((12, 6), config, xp=xp)
        step = compiled(lambda g, s, config=config: lc.trion_step(g, s, config)[1], xp)
        for t in range(10):
            state = step(
                from_numpy(normal(12, 6, seed=t) * [9, 8, 1, 1, 1, 1], xp, "float32"), state
            )
        momenta.append(to_numpy(state.momentum))
    error = np.linalg.norm(momenta[0] - momenta[1]) / np.linalg.norm(momenta[1])
    assert 0 < error < 0.03


# -- parameters --------------------------------------------------------------------------------


@pytest.fixture
def optim(torch):
    import lowrank_torch

    return lowrank_torch


def train(
    torch, optimizer_type, *, dtype, stochastic, steps=200, shape=(64, 32), gradient=1.0, **options
):
    """Mean of a parameter of ones after steps of a constant gradient."""
    parameter = torch.nn.Parameter(torch.ones(shape, dtype=dtype))
    optimizer = optimizer_type(
        [{"params": [parameter], "stochastic_rounding": stochastic}], rank=4, **options
    )
    for _ in range(steps):
        parameter.grad = torch.full_like(parameter, gradient)
        optimizer.step()
    assert parameter.dtype == dtype
    return parameter.detach().float()


@pytest.mark.filterwarnings("ignore:weights are torch:UserWarning")  # as they should
@pytest.mark.parametrize("algorithm", ["low rank", "adamw"])
@pytest.mark.parametrize("name", ["DCTAdamW", "Trion"])
@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_tiny_updates_and_decay_reach_a_narrow_parameter_on_average(
    torch, optim, kind, name, algorithm
):
    optimizer_type, dtype = getattr(optim, name), getattr(torch, kind)
    # One step moves by a hundredth of what a one can change by.
    rate = 0.01 * 2.0 ** -DIGITS[kind]
    options = {"lr": rate, "weight_decay": 0.5}
    if algorithm == "adamw":
        options["shape"] = (2048,)
    else:
        # A constant matrix has one singular value: Trion's update would be smaller by its size.
        options["lr"] = rate * (32 if name == "Trion" else 1)
        options["weight_decay"] = 0.5 if name == "DCTAdamW" else 0.5 / 32
    exact = train(torch, optimizer_type, dtype=torch.float32, stochastic=False, **options)
    nearest = train(torch, optimizer_type, dtype=dtype, stochastic=False, **options)
    at_random = train(torch, optimizer_type, dtype=dtype, stochastic=True, **options)
    assert (nearest == 1).all()
    moved = 1 - exact.mean()
    assert moved > 0
    assert abs((1 - at_random.mean()) / moved - 1) < 0.1
    assert at_random.std() > 0


@pytest.mark.parametrize("name", ["DCTAdamW", "Trion"])
def test_decay_alone_reaches_a_narrow_parameter(torch, optim, name):
    options = {"lr": 1e-4, "weight_decay": 1.0, "gradient": 0.0}
    optimizer_type = getattr(optim, name)
    nearest = train(torch, optimizer_type, dtype=torch.bfloat16, stochastic=False, **options)
    at_random = train(torch, optimizer_type, dtype=torch.bfloat16, stochastic=True, **options)
    assert (nearest == 1).all()
    # Two thousand numbers, each off by half a unit at most: five standard deviations of their mean.
    assert abs(at_random.mean() - (1 - 1e-4) ** 200) < 5 * 2.0**-8 / 2048**0.5


@pytest.mark.parametrize("name", ["DCTAdamW", "Trion"])
def test_wide_parameters_are_not_rounded(torch, optim, name):
    options = {"lr": 0.01, "weight_decay": 0.1, "steps": 5, "dtype": torch.float32}
    found, expected = (
        train(torch, getattr(optim, name), stochastic=flag, **options) for flag in (True, False)
    )
    assert_identical(found, expected)


def test_parameters_and_steps_round_differently_and_runs_alike(torch, optim):
    assert library_of(torch) == "torch"

    def run():
        parameters = [torch.nn.Parameter(torch.ones(16, 8, dtype=torch.bfloat16)) for _ in range(2)]
        optimizer = optim.DCTAdamW(
            parameters, rank=4, lr=1e-3, weight_decay=0.0, stochastic_rounding=True
        )
        history = []
        for _ in range(2):
            for one in parameters:
                one.grad = torch.ones_like(one)
            optimizer.step()
            history.append([one.detach().clone() for one in parameters])
        return history

    first, second = run(), run()
    for before, after in zip(first, second, strict=True):
        for one, other in zip(before, after, strict=True):
            assert_identical(one, other)
    (one, other), (later, _) = first
    assert not torch.equal(one, other)
    assert not torch.equal((one == 1), (later == one))
