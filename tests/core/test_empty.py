"""Columns are chosen by what a gradient has, not by zeros and rounding: no run is bound to columns it never chose."""

import numpy as np
import pytest
from helpers import assert_close, from_numpy, normal, to_numpy
from hypothesis import given
from hypothesis import strategies as st

import lowrank_core as lc
from lowrank_core.subspace.empty import held_columns, is_rounding, rank_last

SHAPE, RANK = (7, 12), 3
FIXED = ["dct", "haar", "legendre", "random:3", "identity"]
STORED = ["svd", "power"]


def run(config, gradients, xp, dtype="float64"):
    """The directions of steps on ``gradients``, and the states after them."""
    shape = np.shape(gradients[0])
    state = lc.dct_adamw_init(shape, config, xp=xp, dtype=dtype)
    found = []
    for gradient in gradients:
        update, state = lc.dct_adamw_step(from_numpy(gradient, xp, dtype), state, config)
        found.append((to_numpy(lc.materialize(update)), state))
    return found


def same(found, expected):
    np.testing.assert_array_equal(to_numpy(found), to_numpy(expected))


def of_low_rank(*lead, rank=RANK, seed=0):
    """A gradient in a space of ``rank`` dimensions, so that this many columns or vectors can hold much of it."""
    rows, size = SHAPE
    return normal(*lead, rows, rank, seed=seed) @ normal(rank, size, seed=seed + 1)


@pytest.mark.parametrize("basis", [*FIXED, *STORED])
@pytest.mark.parametrize("zeros", [1, 4])
def test_the_first_choice_waits_for_a_gradient(xp, basis, zeros):
    config = lc.DCTAdamWConfig(
        rank=RANK, basis=basis, refresh_every=50, residual="discard", side="right"
    )
    gradient = of_low_rank()
    late = run(config, [np.zeros(SHAPE)] * zeros + [gradient] * 3, xp)
    (prompt, state), *_ = run(config, [gradient], xp)
    assert all(not full.any() for full, _ in late[:zeros])
    after = late[zeros][1]
    if basis in FIXED:
        same(after.indices, state.indices)
    else:
        first, second = (to_numpy(s.vectors) for s in (after, state))
        np.testing.assert_allclose(first @ first.T, second @ second.T, atol=1e-9)
    # It is Adam's step after as many zeros, along the prompt one.
    cosine = (
        (late[zeros][0] * prompt).sum() / np.linalg.norm(late[zeros][0]) / np.linalg.norm(prompt)
    )
    assert cosine > 1 - 1e-9
    # And is made once.
    later = late[-1][1]
    kept = "vectors" if basis in STORED else "indices"
    same(getattr(later, kept), getattr(after, kept))


@pytest.mark.parametrize("basis", [*FIXED[:1], *STORED])
@pytest.mark.parametrize(
    "options", [{}, {"selection": "sampled"}, {"hysteresis": 0.5}, {"score": "l1"}], ids=str
)
def test_zeros_leave_columns_and_let_moments_decay(xp, basis, options):
    if basis in STORED and options:
        pytest.skip("no columns to choose from")
    config = lc.DCTAdamWConfig(rank=RANK, basis=basis, residual="discard", side="right", **options)
    (_, before), (full, after) = run(config, [normal(*SHAPE), np.zeros(SHAPE)], xp)
    kept = "vectors" if basis in STORED else "indices"
    same(getattr(after, kept), getattr(before, kept))
    assert_close(after.first_moment, 0.9 * to_numpy(before.first_moment), xp=xp, dtype="float64")
    assert_close(
        after.second_moment, 0.999 * to_numpy(before.second_moment), xp=xp, dtype="float64"
    )
    assert np.linalg.norm(full) > 0


@pytest.mark.parametrize("basis", ["dct", "svd"])
@pytest.mark.parametrize("refresh_every", [1, 3])
def test_each_matrix_of_a_stack_is_chosen_for_by_itself(xp, basis, refresh_every):
    config = lc.DCTAdamWConfig(
        rank=RANK, basis=basis, refresh_every=refresh_every, residual="discard", side="right"
    )
    gradients = [np.stack([of_low_rank(seed=t), of_low_rank(seed=t + 50)]) for t in range(7)]
    for t in (0, 1, 4, 5):
        gradients[t][1] = 0
    stacked = run(config, gradients, xp)
    for place in range(2):
        alone = run(config, [gradient[place] for gradient in gradients], xp)
        for (full, _), (own, _) in zip(stacked, alone, strict=True):
            np.testing.assert_allclose(full[place], own, atol=1e-9)


@pytest.mark.parametrize("options", [{"score_decay": 0.9}, {"bias_correction": "gentle"}], ids=str)
def test_a_choice_for_one_matrix_counts_no_gradient_of_another(xp, options):
    """Running energies are counted where columns are chosen, which for its neighbour is not now."""
    config = lc.DCTAdamWConfig(
        rank=RANK, refresh_every=3, residual="discard", side="right", **options
    )
    given = [normal(2, *SHAPE, seed=10 + step) for step in range(7)]
    given[0][1] = 0.0
    stacked = run(config, given, xp)
    for place in range(2):
        alone = run(config, [pair[place] for pair in given], xp)
        for (both, all_), (one, own) in zip(stacked, alone, strict=True):
            np.testing.assert_allclose(both[place], one, atol=1e-9)
            energies = to_numpy(all_.energy)[place], to_numpy(own.energy)
            np.testing.assert_allclose(*energies, atol=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("basis", ["dct", "svd", "power"])
@pytest.mark.parametrize("residual", ["discard", "sign", "normalized", "scaled"])
@pytest.mark.parametrize("refresh_every", [1, 3])
def test_rounding_is_not_stepped_in_full(xp, dtype, basis, residual, refresh_every):
    if basis in STORED and residual in ("sign", "normalized"):
        pytest.skip("their residual is the sign of rounding, or there is none")
    config = lc.DCTAdamWConfig(
        rank=RANK, basis=basis, refresh_every=refresh_every, residual=residual, side="right"
    )
    rows = normal(10, *SHAPE[:1], 1)
    for full, _ in run(config, list(rows * np.ones((1, 1, SHAPE[1]))), xp, dtype):
        spread = np.abs(full - full.mean(axis=1, keepdims=True)).max()
        assert spread <= 1e-3 * np.abs(full).max()


def test_moments_outlast_a_gradient_that_says_little(xp):
    config = lc.DCTAdamWConfig(rank=RANK, residual="discard", side="right")
    gradients = [normal(*SHAPE), np.ones(SHAPE)]
    (_, before), (_, after) = run(config, gradients, xp)
    old, new = to_numpy(before.indices), to_numpy(after.indices) % SHAPE[1]
    # The constant column came in; all places but one are held by columns that were.
    assert 0 in new
    assert len(set(new) & set(old)) >= RANK - 1
    assert (to_numpy(after.second_moment) > 0).any(axis=0).all()


@given(
    norms=st.lists(st.sampled_from([0.0, 1e-20, 1e-9, 0.5, 2.0]), min_size=6, max_size=6),
    held=st.sets(st.integers(0, 5), min_size=2, max_size=2),
)
def test_rounding_ranks_last_and_what_is_held_before_what_is_not(norms, held):
    scores, ops = np.array(norms), lc.ops_for_namespace(np)
    rounding = is_rounding(scores, ops)
    assert rounding.tolist() == [x <= max(norms) * 16 * np.finfo(float).eps for x in norms]
    indices = np.array(sorted(held), dtype=np.int32)
    found = held_columns(indices, scores.shape[-1], ops)
    assert set(np.flatnonzero(found)) == held
    order = np.argsort(-rank_last(scores, rounding, found, ops), kind="stable")
    ranks = [(bool(rounding[j]), rounding[j] and j not in held) for j in order]
    assert ranks == sorted(ranks)


def test_what_is_undecided_is_not_stepped_on_coefficients_alone(xp):
    config = lc.DCTAdamWConfig(rank=RANK, refresh_every=9, residual="discard", side="right")
    ((_, state),) = run(config, [np.zeros(SHAPE)], xp)
    gradient = from_numpy(normal(*SHAPE), xp, "float64")
    with pytest.raises(ValueError, match="whole gradient"):
        lc.dct_adamw_project(gradient, state, config)
