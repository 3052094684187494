"""Steps on projected gradients: what the step on the whole gradient gives, between refreshes and only there."""

import numpy as np
import pytest
from helpers import assert_close, assert_identical, from_numpy, normal, untouched

import lowrank_core as lc

CASES = {
    "right": ((9, 6), {}),
    "left": ((6, 9), {}),
    "stack": ((2, 9, 6), {"bias_correction": "column"}),
    "gentle": ((9, 6), {"bias_correction": "gentle"}),
    "sampled": ((9, 6), {"selection": "sampled"}),
    "narrow": ((9, 6), {"state_dtype": "float16"}),
    "svd": ((9, 6), {"basis": "svd"}),
    "fft": ((40, 36), {"rank": 20, "method": "fft"}),
}


def after(steps, shape, config, xp, dtype="float32"):
    """The state after some steps on whole gradients."""
    state = lc.dct_adamw_init(shape, config, xp=xp, dtype=getattr(xp, dtype))
    for step in range(steps):
        gradient = from_numpy(normal(*shape, seed=step), xp, dtype)
        _, state = lc.dct_adamw_step(gradient, state, config)
    return state


@pytest.mark.parametrize("name", CASES)
def test_is_the_step_on_the_whole_gradient(xp, name):
    shape, options = CASES[name]
    config = lc.DCTAdamWConfig(**{"rank": 3, "refresh_every": 10, "residual": "discard", **options})
    if config.state_dtype and not hasattr(xp, config.state_dtype):
        config = lc.DCTAdamWConfig(rank=3, refresh_every=10, residual="discard")
    state = after(2, shape, config, xp)
    gradient = from_numpy(normal(*shape, seed=7), xp, "float32")
    whole, expected = lc.dct_adamw_step(gradient, state, config)
    with untouched(gradient, state.first_moment, state.second_moment):
        low_rank = lc.dct_adamw_project(gradient, state, config)
        update, found = lc.dct_adamw_step_projected(low_rank, state, config, shape=shape)
    assert_identical(lc.materialize(update), lc.materialize(whole))
    for field, value in expected._asdict().items():
        if field == "step":
            assert int(getattr(found, field)) == int(value)
        elif value is not None:
            assert_identical(getattr(found, field), value)


def test_coefficients_of_a_sum_are_the_sum_of_coefficients(xp):
    config = lc.DCTAdamWConfig(rank=4, refresh_every=5, residual="discard")
    state = after(1, (12, 8), config, xp, "float64")
    parts = [from_numpy(normal(12, 8, seed=seed), xp, "float64") for seed in (1, 2, 3)]
    accumulated = sum(lc.dct_adamw_project(part, state, config) for part in parts)
    whole = lc.dct_adamw_project(parts[0] + parts[1] + parts[2], state, config)
    assert_close(accumulated, np.asarray(whole), xp=xp, dtype="float64")


@pytest.mark.parametrize(
    ("options", "steps", "message"),
    [
        (
            {"refresh_every": 1},
            1,
            "need residual='discard', refresh_every > 1 .*, got .*refresh_every=1",
        ),
        ({"refresh_every": 4, "residual": "sign"}, 1, "got residual='sign'"),
        ({"refresh_every": 4}, 3, "step 4 does with refresh_every=4"),
        ({"refresh_every": 4}, 0, "step 1 does"),
    ],
)
def test_refuses_a_step_that_needs_the_whole_gradient(options, steps, message):
    config = lc.DCTAdamWConfig(**{"rank": 3, "residual": "discard", **options})
    state = after(steps, (9, 6), config, np)
    with pytest.raises(ValueError, match=message):
        lc.dct_adamw_project(normal(9, 6), state, config)
    with pytest.raises(ValueError, match=message):
        lc.dct_adamw_step_projected(normal(9, 3), state, config, shape=(9, 6))


def test_refuses_coefficients_of_another_shape():
    config = lc.DCTAdamWConfig(rank=3, refresh_every=4, residual="discard")
    state = after(1, (9, 6), config, np)
    with pytest.raises(ValueError, match=r"low_rank must be of shape \(9, 3\) .*got \(9, 6\)"):
        lc.dct_adamw_step_projected(normal(9, 6), state, config, shape=(9, 6))
    with pytest.raises(ValueError, match="state must fit the gradient"):
        lc.dct_adamw_step_projected(normal(9, 3), state, config, shape=(8, 6))
