"""Laws that hold at the edge of float32 and int32: of numbers that are nearly none or too large, and of counts."""

import math

import numpy as np
import pytest
from helpers import from_numpy, normal, to_numpy
from hypothesis import given
from hypothesis import strategies as st

import lowrank_core as lc

#: What functions that square their argument are right for.
EXPONENTS = st.integers(-30, 30)
#: From the least number to what a transform of a few dozen of them leaves finite.
GRADIENTS = st.integers(-45, 36)

RULES = {
    "dct": (lc.dct_adamw_init, lc.dct_adamw_step, lc.DCTAdamWConfig(rank=4)),
    **{
        basis: (lc.dct_adamw_init, lc.dct_adamw_step, lc.DCTAdamWConfig(rank=4, basis=basis))
        for basis in ("svd", "power")
    },
    **{
        f"{residual} {options}": (
            lc.dct_adamw_init,
            lc.dct_adamw_step,
            lc.DCTAdamWConfig(rank=4, residual=residual, **options),
        )
        for residual, options in (
            ("error_feedback", {}),
            ("error_feedback", {"feedback_bits": 8}),
            ("scaled", {}),
            ("normalized", {}),
        )
    },
    "trion": (lc.trion_init, lc.trion_step, lc.TrionConfig(rank=4)),
    "trion l1": (lc.trion_init, lc.trion_step, lc.TrionConfig(rank=4, score="l1")),
    "whole trion": (lc.trion_init, lc.trion_step, lc.TrionConfig(rank=16)),
    "trion in codes": (
        lc.trion_init,
        lc.trion_step,
        lc.TrionConfig(rank=4, momentum_bits=8, row_decay=0.9),
    ),
}


def times(x, exponent):
    with np.errstate(all="ignore"):
        return (x * 10.0**exponent).astype(np.float32)


@pytest.mark.parametrize("form", ["direct", "gram"])
@given(EXPONENTS, st.integers(0, 5))
def test_orthogonalize_is_of_degree_zero(xp, form, exponent, seed):
    x = normal(12, 8, seed=seed)
    one, other = (
        to_numpy(lc.orthogonalize(from_numpy(times(x, e), xp), form=form)) for e in (0, exponent)
    )
    np.testing.assert_allclose(other, one, atol=2e-4)


@pytest.mark.parametrize("norm", ["l1", "l2"])
@given(EXPONENTS, st.integers(0, 5))
def test_column_scores_are_of_degree_one(xp, norm, exponent, seed):
    x = times(normal(12, 8, seed=seed), exponent)
    found = to_numpy(lc.column_scores(from_numpy(x, xp), norm=norm)).astype(np.float64)
    wide = x.astype(np.float64)
    wanted = np.abs(wide).sum(0) if norm == "l1" else np.sqrt((wide * wide).sum(0))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize("bits", [8, 4])
@given(st.floats(width=32, allow_nan=False, allow_infinity=False), st.integers(-44, 38))
def test_codes_are_right_within_half_a_scale(xp, bits, first, exponent):
    x = np.append(times(np.linspace(-3, 3, 9), exponent), np.float32(first))
    x = np.clip(x, -3.4e38, 3.4e38).astype(np.float32)[None]
    if xp.__name__ == "jax.numpy":
        x = np.where(np.abs(x) < 1e-35, np.float32(0), x)  # which it takes denormals for
    with np.errstate(over="ignore"):  # of a span, which is noticed
        found = to_numpy(lc.dequantize(lc.quantize(from_numpy(x, xp), bits))).astype(np.float64)
    wide = x.astype(np.float64)
    span = wide.max() - wide.min()
    levels = 2**bits - 1
    # A scale is rounded up by one of the least numbers; rounding of the ends besides.
    allowed = 0.5 * span / levels + levels * 3e-45 + 4e-7 * np.abs(wide).max()
    assert np.abs(found - wide).max() <= allowed


@pytest.mark.parametrize("name", RULES)
@given(GRADIENTS, st.integers(0, 3))
def test_steps_stay_finite_and_go_on(name, exponent, seed):
    init, step, config = RULES[name]
    state = init((24, 16), config, xp=np)
    with np.errstate(all="ignore"):
        for number in range(4):
            own = exponent if number < 2 else 0
            gradient = times(normal(24, 16, seed=10 * seed + number), own)
            update, state = step(gradient, state, config)
            assert np.isfinite(lc.materialize(update)).all()


@given(st.integers(-36, 36))
def test_trion_follows_gradients_of_any_size(exponent):
    # Beyond 1e19 and below 1e-19 float32 does not hold the squares.
    config = lc.TrionConfig(rank=16)
    gradient = normal(24, 16, seed=1).astype(np.float32)
    with np.errstate(all="ignore"):
        one, other = (
            lc.materialize(
                lc.trion_step(times(gradient, e), lc.trion_init((24, 16), config, xp=np), config)[0]
            )
            for e in (0, exponent)
        )
    np.testing.assert_allclose(other, one, atol=2e-4)


@pytest.mark.parametrize(
    "options",
    [{"selection": "sampled"}, {"state_dtype": "float16"}, {"bias_correction": "gentle"}],
    ids=str,
)
@given(st.sampled_from([2**31 - 2, 2**32 - 1, 2**40]))
def test_counts_have_no_end(options, count):
    config = lc.DCTAdamWConfig(rank=4, **options)
    state = lc.dct_adamw_init((12, 8), config, xp=np)._replace(step=count)
    if state.ages is not None:
        state = state._replace(ages=np.full_like(state.ages, 2**30))
    for number in range(3):
        update, state = lc.dct_adamw_step(
            normal(12, 8, seed=number).astype(np.float32), state, config
        )
        assert np.isfinite(lc.materialize(update)).all()
    assert state.step == count + 3
    assert math.isfinite(float(state.second_moment.sum()))


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (2, 1, 1)])
@pytest.mark.parametrize("name", ["dct", "trion"])
def test_matrices_of_one_entry_or_row_are_stepped(xp, name, shape):
    kind = lc.TrionConfig if name == "trion" else lc.DCTAdamWConfig
    init, step, _ = RULES[name]
    config = kind(rank=1)
    gradient = from_numpy(normal(*shape), xp)
    update, state = step(gradient, init(shape, config, xp=xp), config)
    assert np.isfinite(to_numpy(lc.materialize(update))).all()
    assert state.step == 1
