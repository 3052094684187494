"""Scores, the choice by them, and moments carried from one choice to the next."""

import numpy as np
import oracles
import pytest
from helpers import (
    assert_close,
    assert_identical,
    dtype_name,
    from_numpy,
    library_of,
    normal,
    to_numpy,
    untouched,
)
from hypothesis import given
from hypothesis import strategies as st
from strategies import Case, cases, choice

import lowrank_core as lc


def expected_scores(matrix, axis, norm):
    across = -2 if axis == -1 else -1
    if norm == "l1":
        return np.abs(matrix).sum(axis=across)
    return np.sqrt((matrix**2).sum(axis=across))


@given(case=cases())
@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_scores_are_norms_of_columns(xp, norm, case):
    array = from_numpy(case.matrix, xp)
    with untouched(array):
        found = lc.column_scores(array, axis=case.axis, norm=norm)
    expected = expected_scores(case.matrix, case.axis, norm)
    assert_close(found, expected, xp=xp, dtype="float64")


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize(
    ("xp", "dtype"),
    [
        ("torch", "bfloat16"),
        ("torch", "float16"),
        ("jax", "bfloat16"),
        ("numpy", "float16"),
        ("array_api_strict", "float32"),
    ],
    indirect=["xp"],
)
def test_scores_of_narrow_numbers_are_summed_in_float32(xp, dtype, norm):
    # The sum of squares lies beyond what float16 holds, and a bfloat16 sum would stop growing at 256.
    array = from_numpy(300 + normal(4000, 3), xp, dtype)
    expected = expected_scores(to_numpy(array).astype(np.float64), -1, norm)
    assert_close(lc.column_scores(array, norm=norm), expected, xp=xp, dtype="float32")


scores_with_ties = st.lists(
    st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0, 1e300, float("inf"), float("nan")]),
    min_size=6,
    max_size=6,
)


@given(rows=st.lists(scores_with_ties, min_size=2, max_size=2), rank=st.integers(1, 6))
def test_choice_is_ascending_and_ties_go_to_the_lower_index(xp, rows, rank):
    scores = from_numpy(np.array(rows), xp)
    with untouched(scores):
        found = lc.select_columns(scores, rank)
    expected = np.stack([oracles.best_columns(np.array(row), rank) for row in rows])
    assert library_of(found) == library_of(xp)
    assert dtype_name(found) == "int32"
    assert tuple(found.shape) == (2, rank)
    np.testing.assert_array_equal(to_numpy(found), expected)


@pytest.mark.parametrize("rank", [1, 7, 63, 199, 200])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_choice_out_of_many(xp, rank, dtype):
    # Few distinct values in a long vector: libraries' sorts switch algorithm with length.
    scores = np.random.default_rng(rank).integers(0, 5, 200).astype(np.float64)
    found = lc.select_columns(from_numpy(scores, xp, dtype), rank)
    np.testing.assert_array_equal(to_numpy(found), oracles.best_columns(scores, rank))


def test_all_equal_scores_choose_the_first_columns(xp):
    for value in (0.0, 1.0, np.inf, np.nan):
        found = lc.select_columns(from_numpy(np.full(9, value), xp), 4)
        np.testing.assert_array_equal(to_numpy(found), np.arange(4))


def test_nan_ranks_below_zero(xp):
    scores = from_numpy(np.array([np.nan, 0.0, np.nan, 0.0, 2.0]), xp)
    np.testing.assert_array_equal(to_numpy(lc.select_columns(scores, 3)), [1, 3, 4])


@given(case=cases(), seed=st.integers(0, 1000))
@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_permuting_rows_leaves_the_choice_alone(xp, norm, case, seed):
    # Integers are summed exactly in any order, so not even a tie may turn.
    matrix = np.round(case.matrix * 4)
    across = -2 if case.axis == -1 else -1
    order = np.random.default_rng(seed).permutation(matrix.shape[across])
    choices = [
        lc.select_columns(
            lc.column_scores(from_numpy(one, xp), axis=case.axis, norm=norm), case.rank
        )
        for one in (matrix, np.take(matrix, order, axis=across))
    ]
    assert_identical(*choices)


@given(case=cases(), seed=st.integers(0, 1000))
def test_carrying_is_the_product_with_the_change_of_basis(xp, case, seed):
    previous, current = choice(case, seed), choice(case, seed + 1)
    moments = np.take_along_axis(
        case.matrix,
        previous[..., None, :] if case.axis == -1 else previous[..., :, None],
        case.axis,
    )
    basis = oracles.dct_basis(case.size)
    # R = Q_prev^T Q_current, matrix by matrix.
    rotation = np.stack(
        [
            basis[:, p].T @ basis[:, c]
            for p, c in zip(
                previous.reshape(-1, case.rank), current.reshape(-1, case.rank), strict=True
            )
        ]
    ).reshape(*case.batch, case.rank, case.rank)
    expected = moments @ rotation if case.axis == -1 else np.swapaxes(rotation, -1, -2) @ moments
    # The product leaves rounding dust where the truth is zero.
    expected = np.where(np.abs(expected) < 1e-11 * np.abs(moments).max(), 0.0, expected)
    arrays = [from_numpy(moments, xp)] + [
        from_numpy(indices, xp, "int32") for indices in (previous, current)
    ]
    with untouched(*arrays):
        found = lc.carry_columns(*arrays, axis=case.axis)
    assert_close(found, expected, xp=xp, dtype="float64")


@pytest.mark.parametrize("axis", [-1, -2])
def test_a_column_that_stays_keeps_its_bits_and_a_newcomer_starts_at_zero(xp, axis):
    moments = normal(3, 4) if axis == -1 else normal(4, 3)
    found = lc.carry_columns(
        from_numpy(moments, xp, "float32"),
        from_numpy(np.array([1, 4, 6, 7]), xp, "int32"),
        from_numpy(np.array([0, 4, 7, 8]), xp, "int32"),
        axis=axis,
    )
    columns = np.moveaxis(moments.astype(np.float32), axis, 0)
    zero = np.zeros(3, dtype=np.float32)
    expected = np.moveaxis(np.stack([zero, columns[1], columns[3], zero]), 0, axis)
    assert dtype_name(found) == "float32"
    np.testing.assert_array_equal(to_numpy(found), expected)


def test_what_a_leaving_column_held_does_not_spread(xp):
    moments = from_numpy(np.array([[np.inf, np.nan, 3.0]]), xp)
    previous = from_numpy(np.array([0, 1, 2]), xp, "int32")
    current = from_numpy(np.array([2, 3, 4]), xp, "int32")
    found = lc.carry_columns(moments, previous, current)
    np.testing.assert_array_equal(to_numpy(found), [[3.0, 0.0, 0.0]])


def test_an_unchanged_choice_changes_nothing(xp):
    case = Case(normal(2, 5, 8), -1, 8)
    moments = from_numpy(case.matrix, xp)
    indices = from_numpy(choice(case), xp, "int32")
    assert_identical(lc.carry_columns(moments, indices, indices), moments)


@pytest.mark.compiles_nothing
@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda x: lc.column_scores(x, norm="l3"),
            ValueError,
            ["norm must be one of 'l1', 'l2'", "'l3'"],
        ),
        (lambda x: lc.column_scores(x, axis=0.0), TypeError, ["axis must be an integer", "0.0"]),
        (
            lambda x: lc.column_scores(x[None, ...], axis=0),
            ValueError,
            ["axis must be one of", "0"],
        ),
        (lambda x: lc.select_columns([3.0], 1), TypeError, ["array", "list"]),
        (
            lambda x: lc.column_scores(x[0, :]),
            ValueError,
            ["coefficients must have at least two dimensions", "(4,)"],
        ),
        (lambda x: lc.select_columns(x, 0), ValueError, ["rank must be at least 1", "0"]),
        (lambda x: lc.select_columns(x, -2), ValueError, ["rank must be at least 1", "-2"]),
        (lambda x: lc.select_columns(x, 5), ValueError, ["rank must not exceed", "4", "5"]),
        (lambda x: lc.select_columns(x, 2.0), TypeError, ["rank must be an integer", "2.0"]),
        (lambda x: lc.select_columns(x, True), TypeError, ["rank must be an integer", "True"]),
        (
            lambda x: lc.carry_columns(x, x, x, axis=2),
            ValueError,
            ["axis must be", "2"],
        ),
    ],
)
def test_bad_input_is_named(xp, call, error, words):
    with pytest.raises(error) as caught:
        call(xp.ones((3, 4), dtype=xp.float32))
    for word in words:
        assert word in str(caught.value)


def test_scores_of_integers_are_refused(xp):
    with pytest.raises(TypeError, match=r"coefficients must be of a real floating-point.*int32"):
        lc.column_scores(xp.ones((3, 4), dtype=xp.int32))
