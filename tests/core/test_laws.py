"""State holds only numbers that it can have come to, in every library."""

from itertools import pairwise

import numpy as np
import pytest
from helpers import from_numpy, normal
from hypothesis import given
from hypothesis import strategies as st

import lowrank_core as lc
from lowrank_core.rules.laws import ANY, NON_NEGATIVE, Law, check_count, check_law

OPTIONS = [
    {},
    {"refresh_every": 2, "bias_correction": "column"},
    {"residual": "error_feedback", "feedback_bits": 4},
    {"residual": "scaled", "selection": "sampled"},
    {"residual": "normalized", "score_decay": 0.9},
    {"basis": "power", "residual": "discard"},
]


def check(array, dtype, law):
    check_law("the state", array, dtype, law)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("zeros", [False, True])
def test_every_state_that_steps_lead_to_is_lawful(xp, options, zeros):
    config, shape = lc.DCTAdamWConfig(rank=3, **options), (2, 9, 7)
    state = lc.dct_adamw_init(shape, config, xp=xp)
    for t in range(4):
        for name, (_, dtype, law) in config.state_spec(shape).items():
            check(getattr(state, name), dtype, law)
        scale = 0.0 if zeros and t < 3 else 1.0
        gradient = from_numpy(scale * normal(*shape, seed=t), xp, "float32")
        _, state = lc.dct_adamw_step(gradient, state, config)


@given(numbers=st.lists(st.integers(-9, 9), min_size=1, max_size=4))
def test_columns_ascend_and_empty_places_with_them(numbers):
    size = 5
    right = all(-size <= x < size for x in numbers)
    right = right and all(a % size < b % size for a, b in pairwise(numbers))
    array = np.array([numbers], dtype=np.int32)
    if right:
        check(array, "int32", Law(columns=size))
    else:
        with pytest.raises(ValueError, match="the state must be strictly ascending from 0 to 4"):
            check(array, "int32", Law(columns=size))


@pytest.mark.compiles_nothing
@pytest.mark.parametrize(
    ("values", "given_as", "dtype", "law"),
    [
        ([1.0, float("nan")], "float32", "float32", ANY),
        ([1.0, float("inf")], "float32", "float32", ANY),
        ([-1.0, 1.0], "float32", "float32", NON_NEGATIVE),
        ([1.0, 1e300], "float64", "float32", ANY),
        ([0.0, 1.0], "float32", "int32", NON_NEGATIVE),
        ([-1, 1], "int32", "int32", NON_NEGATIVE),
        ([1, 2**40], "int64", "int32", ANY),
        ([1, 2], "int32", "float32", ANY),
    ],
    ids=str,
)
def test_other_numbers_are_refused(xp, values, given_as, dtype, law):
    with pytest.raises(ValueError, match="the state must be "):
        check(from_numpy(np.array(values), xp, given_as), dtype, law)


@pytest.mark.parametrize("bad", [-1, 1.5, float("nan"), float("inf"), "3", None, True, 2**63])
def test_counts_are_integers_of_at_least_0(bad):
    with pytest.raises(ValueError, match="the step must be an integer"):
        check_count("the step", bad)
    assert check_count("the step", 3.0) == check_count("the step", 3) == 3
