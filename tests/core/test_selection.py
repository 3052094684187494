"""How columns are chosen: greedy or drawn, by this gradient or a running mean; and how newcomers start."""

import itertools

import numpy as np
import oracles_family
import pytest
from family_cases import assert_follows_oracle, gradients, oracle_of, steps
from helpers import assert_close, assert_identical, from_numpy, normal, to_numpy

import lowrank_core as lc
from lowrank_core.rules.dct_adamw_config import SEED_COUNT

CORRECTIONS = ("step", "column", "gentle")


def identity(**options):
    """The plainest basis, whose coefficients are the gradient's own columns."""
    return lc.DCTAdamWConfig(**{"rank": 1, "basis": "identity", "side": "right", **options})


def chosen(config, sequence, xp, dtype="float64", **init):
    return [
        to_numpy(state.indices).tolist()
        for _, _, state in steps(config, sequence, xp, dtype, **init)
    ]


# -- sampled columns ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"score": "l2"},
        {"score": "l1", "refresh_every": 3, "side": "left", "seed": 5},
        {"score_decay": 0.7, "hysteresis": 0.3, "bias_correction": "gentle"},
    ],
)
def test_draws_are_those_of_the_oracle(xp, options):
    config = lc.DCTAdamWConfig(rank=3, selection="sampled", **options)
    assert_follows_oracle(config, gradients(10, 9, 7), xp, changes=2)


def test_draws_are_the_same_in_float32(xp):
    config = lc.DCTAdamWConfig(rank=4, selection="sampled", seed=3)
    sequence = gradients(12, 11, 10)
    oracle = oracle_of(config, (11, 10))
    expected = []
    for gradient in sequence:
        oracle.step(gradient)
        expected.append(oracle.columns)
    assert oracle.margin > 1e-4
    assert chosen(config, sequence, xp, "float32") == expected


def test_every_matrix_of_a_stack_draws_for_itself(xp):
    config = identity(rank=2, selection="sampled", seed=11)
    sequence = [np.broadcast_to(normal(4, 6), (2, 3, 4, 6)).copy()] * 2
    found = chosen(config, sequence, xp, stream=9)
    for entry, place in enumerate(np.ndindex(2, 3)):
        oracle = oracle_of(config, (4, 6), stream=9, entry=entry)
        for t, gradient in enumerate(sequence):
            oracle.step(gradient[place])
            assert found[t][place[0]][place[1]] == oracle.columns
    assert len({str(columns) for row in found[0] for columns in row}) > 1


def test_columns_are_drawn_without_replacement(xp):
    config = identity(rank=5, selection="sampled")
    for columns in chosen(config, [normal(3, 40, 6)] * 2, xp):
        for row in columns:
            assert len(set(row)) == 5
            assert row == sorted(row)


def test_odds_are_by_score(xp):
    # Forty thousand matrices, one draw each, are forty thousand independent draws.
    count, scores = 40_000, np.array([4.0, 1.0, 0.5, 2.5, 0.0])
    odds = scores / scores.sum()
    gradient = np.broadcast_to(scores, (count, 1, 5)).copy()
    (columns,) = chosen(identity(selection="sampled"), [gradient], xp, "float32")
    share = np.bincount(np.ravel(columns), minlength=5) / count
    # Five standard deviations.
    np.testing.assert_array_less(np.abs(share - odds), 5 * np.sqrt(odds / count) + 1e-12)
    # Two without replacement: the second is drawn from what the first left.
    (columns,) = chosen(identity(rank=2, selection="sampled"), [gradient], xp, "float32")
    wanted = np.zeros(5)
    for i, j in itertools.permutations(range(5), 2):
        pair = odds[i] * odds[j] / (1 - odds[i])
        wanted[[i, j]] += pair
    share = np.bincount(np.ravel(columns), minlength=5) / count
    np.testing.assert_array_less(np.abs(share - wanted), 5 * np.sqrt(wanted / count) + 1e-12)


def test_a_column_without_energy_is_drawn_last(xp):
    gradient = np.zeros((50, 2, 6))
    gradient[:, :, [1, 4]] = 1e-12
    (columns,) = chosen(identity(rank=2, selection="sampled"), [gradient], xp, "float32")
    assert columns == [[1, 4]] * 50
    (columns,) = chosen(identity(rank=3, selection="sampled"), [gradient], xp, "float32")
    assert all({1, 4} < set(row) for row in columns)


@pytest.mark.parametrize("bad", [np.nan, 0.0])
def test_drawing_goes_on_where_there_are_no_scores(xp, bad):
    gradient = np.full((4, 6), bad)
    found = chosen(identity(rank=3, selection="sampled"), [gradient, normal(4, 6)], xp, "float32")
    assert all(len(set(columns)) == 3 for columns in found)


def test_seeds_streams_and_steps_draw_differently(xp):
    gradient = np.ones((3, 40))
    draws = {}
    for seed, stream in ((0, 0), (0, 1), (1, 0), (0, 0)):
        config = identity(rank=10, selection="sampled", seed=seed)
        found = chosen(config, [gradient] * 2, xp, stream=stream)
        assert found[0] != found[1]
        if (seed, stream) in draws:
            assert draws[seed, stream] == found
        draws[seed, stream] = found
    assert len({str(found) for found in draws.values()}) == 3


def test_draws_go_on_where_a_state_was_kept(xp):
    config = lc.DCTAdamWConfig(rank=3, selection="sampled", refresh_every=2)
    sequence = gradients(8, 7, 6)
    whole = list(steps(config, sequence, xp))
    state = whole[2][2]
    # Through NumPy and back: whatever the state was saved as, the rest of the run is the same.
    arrays = {
        name: from_numpy(to_numpy(value), xp)
        for name, value in state._asdict().items()
        if value is not None and name != "step"
    }
    state = state._replace(**arrays)
    for gradient, (full, _, _) in zip(sequence[3:], whole[3:], strict=True):
        update, state = lc.dct_adamw_step(from_numpy(gradient, xp), state, config)
        assert_close(
            lc.materialize(update), to_numpy(full), xp=xp, dtype="float64", kind="trajectory"
        )


def test_parameters_of_one_model_draw_for_themselves(torch):
    import lowrank_torch

    parameters = [torch.nn.Parameter(torch.ones(5, 40)) for _ in range(2)]
    options = {"rank": 10, "basis": "identity", "side": "right", "selection": "sampled"}
    optimizer = lowrank_torch.DCTAdamW(parameters, **options)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    first, second = (optimizer.state[parameter]["indices"].tolist() for parameter in parameters)
    assert first != second


# -- inertia -----------------------------------------------------------------------------------


def test_a_challenger_must_be_better_by_the_fraction(xp):
    rows = [[10.0, 9.0, 1.0], [10.0, 10.9, 1.0], [10.0, 11.1, 1.0], [10.2, 11.1, 1.0]]
    sequence = [np.array([row]) for row in rows]
    assert chosen(identity(hysteresis=0.1), sequence, xp) == [[0], [0], [1], [1]]
    assert chosen(identity(hysteresis=0.0), sequence, xp) == [[0], [1], [1], [1]]
    assert chosen(identity(hysteresis=0.2), sequence, xp) == [[0], [0], [0], [0]]


def test_the_first_choice_favours_nobody(xp):
    # A state begins with the first columns, which nobody has chosen.
    gradient = np.array([[1.0, 1.0, 3.0, 2.0]])
    assert chosen(identity(rank=2, hysteresis=9.0), [gradient], xp) == [[2, 3]]


@pytest.mark.parametrize("score", ["l1", "l2"])
def test_hysteresis_does_as_the_oracle(xp, score):
    config = lc.DCTAdamWConfig(rank=3, hysteresis=0.4, score=score)
    sequence = gradients(10, 9, 7)
    assert_follows_oracle(config, sequence, xp)
    free = chosen(lc.DCTAdamWConfig(rank=3, score=score), sequence, xp)
    inert = chosen(config, sequence, xp)
    assert inert != free


# -- running energy ----------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"refresh_every": 3, "side": "left"},
        {"refresh_every": 3, "residual": "normalized"},
        {"refresh_every": 2, "residual": "error_feedback", "bias_correction": "gentle"},
    ],
)
def test_the_energy_is_a_running_mean(xp, options, decay):
    config = lc.DCTAdamWConfig(rank=3, score_decay=decay, **options)
    sequence = gradients(9, 9, 7)
    oracle, state = assert_follows_oracle(config, sequence, xp)
    seen = len(oracle.mean_squares)
    assert_close(
        state.energy, oracle.energy() * (1 - decay**seen), xp=xp, dtype="float64", kind="trajectory"
    )


def test_a_running_mean_outlives_one_loud_gradient(xp):
    steady, loud = np.array([[3.0, 1.0]]), np.array([[3.0, 4.0]])
    sequence = [steady] * 5 + [loud] + [steady]
    assert chosen(identity(score_decay=0.9), sequence, xp) == [[0]] * 7
    assert chosen(identity(), sequence, xp)[5] == [1]


def test_the_norm_decides(xp):
    # One large entry against many small ones.
    gradient = np.array([[3.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    assert chosen(identity(score="l1"), [gradient], xp) == [[1]]
    assert chosen(identity(score="l2"), [gradient], xp) == [[0]]


# -- newcomers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize(("side", "refresh_every"), [("right", 1), ("left", 3)])
def test_newcomers_start_as_the_oracle_says(xp, correction, side, refresh_every):
    config = lc.DCTAdamWConfig(
        rank=3,
        betas=(0.9, 0.99),
        bias_correction=correction,
        side=side,
        refresh_every=refresh_every,
    )
    oracle, state = assert_follows_oracle(config, gradients(12, 9, 7), xp)
    if correction == "step":
        assert state.ages is None
    else:
        ages = [oracle.ages[column] for column in oracle.columns]
        np.testing.assert_array_equal(to_numpy(state.ages), ages)


def first_moves(correction, xp, betas=(0.9, 0.95)):
    """How far a settled column and one that has just come in move, after a hundred steps of one column's reign."""
    config = identity(betas=betas, bias_correction=correction)
    sequence = [np.array([[2.0, 1.0]])] * 100 + [np.array([[2.0, 2.5]])]
    *_, (settled, _, _), (newcomer, _, state) = steps(config, sequence, xp)
    assert to_numpy(state.indices).tolist() == [1]
    return float(settled[0, 0]), float(newcomer[0, 1])


@pytest.mark.parametrize("xp", ["numpy", "torch"], indirect=True)
def test_newcomers_first_step_by_correction(xp):
    beta1, beta2 = 0.9, 0.95
    for correction in CORRECTIONS:
        settled, newcomer = first_moves(correction, xp)
        # A constant gradient: one unit, once corrections have faded.
        assert abs(settled - 1) < 0.01
        if correction == "step":
            weights = (1 - beta1**101, 1 - beta2**101)
            wanted = (1 - beta1) / weights[0] / np.sqrt((1 - beta2) / weights[1])
        elif correction == "column":
            wanted = 1.0
        else:
            # The energy of the column: a hundred ones and one 2.5 squared, decaying.
            ages = beta2 ** np.arange(101)[::-1]
            energy = ages @ np.array([1.0] * 100 + [6.25]) / ages.sum()
            second = beta2 * energy * (1 - beta2**SEED_COUNT) + (1 - beta2) * 6.25
            second /= 1 - beta2 ** (SEED_COUNT + 1)
            wanted = 0.1 * 2.5 / np.sqrt(second)
            assert wanted < 0.25
        np.testing.assert_allclose(newcomer, wanted, rtol=1e-6)


def test_all_columns_of_the_first_step_fade_in_alike(xp):
    # The columns that a state begins with are no more settled than others.
    gradient = np.array([[2.0, 1.0, 2.0, 1.0]])
    config = identity(rank=2, betas=(0.9, 0.99), bias_correction="gentle")
    ((full, _, state),) = steps(config, [gradient], xp)
    assert to_numpy(state.indices).tolist() == [0, 2]
    full = to_numpy(full)
    np.testing.assert_allclose(full[0, [0, 2]], 0.1, rtol=1e-6)


# -- the numbers behind the draws --------------------------------------------------------------


def test_keys_are_the_same_everywhere(xp):
    config = identity(selection="sampled", seed=2**31 + 5)
    state = lc.dct_adamw_init((2, 3, 4, 5), config, xp=xp, stream=17)
    expected = [oracles_family.make_key(config.seed, 17, entry) for entry in range(6)]
    signed = (np.array(expected) + 2**31) % 2**32 - 2**31
    assert_identical(state.key, from_numpy(signed.reshape(2, 3), xp, "int32"))
    assert len(set(expected)) == 6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"selection": "best"}, ["selection must be one of 'top', 'sampled'", "'best'"]),
        ({"hysteresis": -0.1}, ["hysteresis must be at least 0", "-0.1"]),
        ({"score_decay": 1.0}, ["score_decay must be at least 0 and less than 1", "1.0"]),
        ({"score_decay": 0.9, "score": "l1"}, ["score_decay must be None", "'l1'", "0.9"]),
        ({"seed": -1}, ["seed must be at least 0", "-1"]),
    ],
)
def test_a_bad_option_is_named(options, words):
    with pytest.raises(ValueError, match="must be") as caught:
        lc.DCTAdamWConfig(rank=2, **options)
    for word in words:
        assert word in str(caught.value)
