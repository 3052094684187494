"""Laws of the way down to a few columns and back: what an orthogonal projection is, whatever the library."""

import numpy as np
import oracles
import pytest
from helpers import (
    assert_close,
    assert_identical,
    from_numpy,
    normal,
    to_numpy,
    tolerance,
    untouched,
)
from hypothesis import given
from hypothesis import strategies as st
from strategies import Case, cases, choice

import lowrank_core as lc

METHODS = ("auto", "matmul", "fft")
EXACT = tolerance("transform", "float64")


def vectors(case, indices):
    """The chosen basis vectors ``(..., size, rank)``."""
    return np.moveaxis(oracles.dct_basis(case.size)[:, indices], 0, -2)


def project_by_product(case, indices):
    chosen = vectors(case, indices)
    return case.matrix @ chosen if case.axis == -1 else np.swapaxes(chosen, -1, -2) @ case.matrix


def lift_by_product(low_rank, case, indices):
    chosen = vectors(case, indices)
    return low_rank @ np.swapaxes(chosen, -1, -2) if case.axis == -1 else chosen @ low_rank


def down_and_up(array, indices, axis, method="auto"):
    """The projection of ``array`` onto the chosen subspace, in its own coordinates."""
    low_rank = lc.project(array, indices, axis=axis, method=method)
    return lc.lift(low_rank, indices, array.shape[axis], axis=axis, method=method)


@given(case=cases())
@pytest.mark.parametrize("method", ["matmul", "fft"])
def test_parseval(xp, method, case):
    coefficients = lc.dct(from_numpy(case.matrix, xp), axis=case.axis, method=method)
    before = np.linalg.norm(case.matrix)
    assert abs(np.linalg.norm(to_numpy(coefficients)) - before) <= EXACT * before


@given(case=cases(), seed=st.integers(0, 1000))
@pytest.mark.parametrize("method", METHODS)
def test_project_and_lift_are_products_with_the_chosen_vectors(xp, method, case, seed):
    indices = choice(case, seed)
    arrays = from_numpy(case.matrix, xp), from_numpy(indices, xp, "int32")
    expected = project_by_product(case, indices)
    with untouched(*arrays):
        low_rank = lc.project(*arrays, axis=case.axis, method=method)
    scale = np.linalg.norm(case.matrix)
    assert np.linalg.norm(to_numpy(low_rank) - expected) <= EXACT * scale
    given_back = from_numpy(expected, xp)
    with untouched(given_back, arrays[1]):
        full = lc.lift(given_back, arrays[1], case.size, axis=case.axis, method=method)
    assert_close(full, lift_by_product(expected, case, indices), xp=xp, dtype="float64")


@given(case=cases(), seed=st.integers(0, 1000))
def test_projecting_twice_is_projecting_once(xp, case, seed):
    indices = from_numpy(choice(case, seed), xp, "int32")
    once = down_and_up(from_numpy(case.matrix, xp), indices, case.axis)
    twice = down_and_up(once, indices, case.axis)
    scale = np.linalg.norm(case.matrix)
    assert np.linalg.norm(to_numpy(twice) - to_numpy(once)) <= EXACT * scale


@given(case=cases(), seed=st.integers(0, 1000))
def test_what_is_left_is_orthogonal_to_the_projection(xp, case, seed):
    indices = from_numpy(choice(case, seed), xp, "int32")
    array = from_numpy(case.matrix, xp)
    kept = down_and_up(array, indices, case.axis)
    left = array - kept
    scale = np.linalg.norm(case.matrix)
    # On every chosen vector, and so in the inner product, and so Pythagoras holds.
    assert np.linalg.norm(to_numpy(lc.project(left, indices, axis=case.axis))) <= EXACT * scale
    energies = [np.linalg.norm(to_numpy(part)) ** 2 for part in (kept, left)]
    assert abs(sum(energies) - scale**2) <= EXACT * scale**2


@given(case=cases(), seed=st.integers(0, 1000))
def test_lifting_is_the_transpose_of_projecting(xp, case, seed):
    indices = from_numpy(choice(case, seed), xp, "int32")
    down = to_numpy(lc.project(from_numpy(case.matrix, xp), indices, axis=case.axis))
    other = np.random.default_rng(seed).standard_normal(down.shape)
    up = lc.lift(from_numpy(other, xp), indices, case.size, axis=case.axis)
    bound = EXACT * np.linalg.norm(case.matrix) * np.linalg.norm(other)
    assert abs(np.sum(down * other) - np.sum(case.matrix * to_numpy(up))) <= bound


@given(case=cases())
def test_best_columns_by_l2_leave_at_most_their_share(xp, case):
    array = from_numpy(case.matrix, xp)
    scores = lc.column_scores(lc.dct(array, axis=case.axis), axis=case.axis, norm="l2")
    indices = lc.select_columns(scores, case.rank)
    left = case.matrix - to_numpy(down_and_up(array, indices, case.axis))
    whole = (case.matrix**2).sum(axis=(-2, -1))
    share = 1 - case.rank / case.size
    assert np.all((left**2).sum(axis=(-2, -1)) <= (share + EXACT) * whole)


def test_best_column_by_l1_may_leave_more_than_its_share(xp):
    # Coefficients: one spike in column 0, a flat column 1 with less energy but the larger sum.
    coefficients = np.array([[2.5, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    array = lc.idct(from_numpy(coefficients, xp))
    left = {}
    for norm in ("l1", "l2"):
        scores = lc.column_scores(lc.dct(array), norm=norm)
        kept = down_and_up(array, lc.select_columns(scores, 1), -1)
        left[norm] = np.sum((to_numpy(array) - to_numpy(kept)) ** 2) / np.sum(coefficients**2)
    assert left["l1"] > 0.5 > left["l2"]


@given(case=cases(), seed=st.integers(0, 1000))
@pytest.mark.parametrize("method", ["matmul", "fft"])
def test_permuting_rows_permutes_the_result(xp, method, case, seed):
    across = -2 if case.axis == -1 else -1
    order = np.random.default_rng(seed).permutation(case.matrix.shape[across])
    indices = from_numpy(choice(case, seed), xp, "int32")
    found = [
        to_numpy(lc.project(from_numpy(one, xp), indices, axis=case.axis, method=method))
        for one in (case.matrix, np.take(case.matrix, order, axis=across))
    ]
    bound = EXACT * np.linalg.norm(case.matrix)
    assert np.linalg.norm(np.take(found[0], order, axis=across) - found[1]) <= bound


@pytest.mark.parametrize("axis", [-1, -2])
@pytest.mark.parametrize("rank", [1, 100, 150])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_methods_agree_where_the_choice_between_them_turns(xp, axis, rank, dtype):
    # Sizes and ranks on both sides of what "auto" decides by, one matrix and a stack.
    for shape in ((7, 150), (2, 7, 150)):
        matrix = normal(*shape) if axis == -1 else np.swapaxes(normal(*shape), -1, -2)
        case = Case(matrix, axis, rank)
        indices = choice(case)
        for method in METHODS:
            array = from_numpy(matrix, xp, dtype)
            index = from_numpy(indices, xp, "int32")
            low_rank = lc.project(array, index, axis=axis, method=method)
            assert_close(low_rank, project_by_product(case, indices), xp=xp, dtype=dtype)
            full = lc.lift(low_rank, index, 150, axis=axis, method=method)
            expected = lift_by_product(to_numpy(low_rank).astype(np.float64), case, indices)
            assert_close(full, expected, xp=xp, dtype=dtype)


@pytest.mark.parametrize("axis", [-1, -2])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("xp", "dtype"),
    [("torch", "bfloat16"), ("torch", "float16"), ("jax", "bfloat16"), ("jax", "float16")],
    indirect=["xp"],
)
def test_half_precision_is_computed_in_float32_and_rounded_once(xp, dtype, method, axis):
    array = from_numpy(normal(40, 40), xp, dtype)
    case = Case(to_numpy(array).astype(np.float64), axis, 9)
    indices = choice(case)
    index = from_numpy(indices, xp, "int32")
    low_rank = lc.project(array, index, axis=axis, method=method)
    assert_close(low_rank, project_by_product(case, indices), xp=xp, dtype=dtype)
    full = lc.lift(low_rank, index, 40, axis=axis, method=method)
    expected = lift_by_product(to_numpy(low_rank).astype(np.float64), case, indices)
    assert_close(full, expected, xp=xp, dtype=dtype)


def test_one_choice_serves_a_whole_stack_or_each_matrix_has_its_own(xp):
    case = Case(normal(3, 6, 10), -1, 4)
    own = choice(case)
    together = lc.project(from_numpy(case.matrix, xp), from_numpy(own, xp, "int32"))
    for place in range(3):
        alone = lc.project(from_numpy(case.matrix[place], xp), from_numpy(own[place], xp, "int32"))
        assert_close(together[place, :, :], to_numpy(alone), xp=xp, dtype="float64")


@pytest.mark.parametrize("axis", [-1, -2])
def test_all_columns_are_the_whole_matrix(xp, axis):
    matrix = normal(6, 6)
    indices = from_numpy(np.arange(6), xp, "int32")
    array = from_numpy(matrix, xp)
    assert_close(down_and_up(array, indices, axis), matrix, xp=xp, dtype="float64")


def test_wide_and_narrow_index_types_mean_the_same(xp):
    array, indices = from_numpy(normal(5, 8), xp), np.array([0, 3, 7])
    found = [lc.project(array, from_numpy(indices, xp, kind)) for kind in ("int32", "int64")]
    assert_identical(*found)


@pytest.mark.compiles_nothing
@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x, i: lc.project(x, i, axis=2), ValueError, ["axis must be from -2 to 1", "2"]),
        (lambda x, i: lc.lift(x, i, 9, axis=1.0), TypeError, ["axis must be an integer", "1.0"]),
        (lambda x, i: lc.project(x[None, ...], i, axis=0), ValueError, ["one of the last two"]),
        (lambda x, i: lc.project(x, [0, 1]), TypeError, ["indices must be an array", "list"]),
        (lambda x, i: lc.project(x, x[0, :]), TypeError, ["indices must be integers", "float"]),
        (lambda x, i: lc.project(x, i * 0), ValueError, ["indices must be strictly ascending"]),
        (lambda x, i: lc.project(x, i - 1), ValueError, ["indices", "from 0 to 1", "-1"]),
        (lambda x, i: lc.project(x, i + 1), ValueError, ["indices", "from 0 to 1", "2"]),
        (lambda x, i: lc.lift(x, i + 8, 9), ValueError, ["indices", "from 0 to 8", "9"]),
        (lambda x, i: lc.lift(x, i[:1], 9), ValueError, ["indices must be one for each", "(1,)"]),
        (lambda x, i: lc.project(x, i[None, None, :]), ValueError, ["indices must be of shape"]),
        (lambda x, i: lc.project(x, i, method="svd"), ValueError, ["method", "'fft'", "'svd'"]),
        (lambda x, i: lc.lift(x, i, 9, method="svd"), ValueError, ["method", "'fft'", "'svd'"]),
        (lambda x, i: lc.project(x, i, basis="sine"), ValueError, ["basis", "'dct'", "'sine'"]),
        (lambda x, i: lc.lift(x, i, 9, basis="sine"), ValueError, ["basis", "'dct'", "'sine'"]),
        (lambda x, i: lc.lift(x, i, 0), ValueError, ["size must be at least 1", "0"]),
        (lambda x, i: lc.lift(x, i, 9.0), TypeError, ["size must be an integer", "9.0"]),
        (lambda x, i: lc.project(i, i), TypeError, ["matrix must be of a real", "int32"]),
        (lambda x, i: lc.lift(i, i, 9), TypeError, ["low_rank must be of a real", "int32"]),
        (
            lambda x, i: lc.project(x[0, :], i),
            ValueError,
            ["matrix must have at least two dimensions", "(2,)"],
        ),
    ],
)
def test_bad_input_is_named(xp, call, error, words):
    matrix = from_numpy(normal(3, 2), xp)
    with pytest.raises(error) as caught:
        call(matrix, from_numpy(np.array([0, 1]), xp, "int32"))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("axis", [0, 1])
def test_axes_count_from_the_front_as_well(xp, axis):
    x, i = from_numpy(normal(6, 7), xp), from_numpy(np.array([0, 2]), xp, "int32")
    below = lc.project(x, i, axis=axis)
    assert_identical(below, lc.project(x, i, axis=axis - 2))
    size = x.shape[axis]
    assert_identical(lc.lift(below, i, size, axis=axis), lc.lift(below, i, size, axis=axis - 2))


@pytest.mark.parametrize("method", ["matmul", "fft"])
def test_an_update_goes_back_as_its_method_says(monkeypatch, method):
    config = lc.DCTAdamWConfig(rank=4, method=method, residual="discard")
    state = lc.dct_adamw_init((256, 256), config, xp=np)
    update, _ = lc.dct_adamw_step(normal(256, 256), state, config)
    calls = []
    ops = lc.ops_for(update.factor)
    original = ops.idct_columns
    monkeypatch.setattr(ops, "idct_columns", lambda *a, **k: calls.append(1) or original(*a, **k))
    lc.materialize(update)
    assert bool(calls) == (method == "fft")


def test_an_update_does_not_refer_to_the_gradient():
    config, gradient = lc.DCTAdamWConfig(rank=4), normal(24, 16)
    state = lc.dct_adamw_init((24, 16), config, xp=np, dtype=np.float64)
    update, _ = lc.dct_adamw_step(gradient, state, config)
    expected = lc.materialize(update)
    gradient[...] = 0
    np.testing.assert_array_equal(lc.materialize(update), expected)


def test_numpy_integers_and_dtypes_by_name_are_taken():
    config = lc.DCTAdamWConfig(rank=np.int64(4), refresh_every=np.int32(2))
    assert config == lc.DCTAdamWConfig(rank=4, refresh_every=2)
    assert type(config.rank) is int
    state = lc.dct_adamw_init((8, 8), config, xp=np, dtype="float64")
    assert state.first_moment.dtype == np.float64
    sizes = {
        lc.state_bytes((8, 8), config, dtype=d) for d in ("float32", np.float32, np.dtype("f4"))
    }
    assert len(sizes) == 1


@pytest.mark.parametrize(
    "array",
    [np.eye(3).view(np.matrix), np.ma.masked_array(np.eye(3), mask=False)],
    ids=["matrix", "masked"],
)
def test_arrays_of_another_arithmetic_are_refused(array):
    with pytest.raises(TypeError, match="a plain array is needed"):
        lc.dct(array)


def test_indices_of_another_library_are_refused():
    import torch

    with pytest.raises(TypeError, match=r"indices must be an array of .*numpy"):
        lc.project(np.eye(3), torch.tensor([0, 1]))
