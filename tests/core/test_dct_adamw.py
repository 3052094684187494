"""DCT-AdamW's step: the same run on every library, and the run that a slow float64 oracle gives."""

import io
import itertools
from functools import cache

import numpy as np
import oracles
import pytest
from helpers import (
    ROUNDING,
    assert_close,
    assert_identical,
    dtype_name,
    from_numpy,
    library_of,
    normal,
    to_numpy,
    untouched,
)

import lowrank_core as lc

BYTES = {"float64": 8, "float32": 4, "int32": 4, "bfloat16": 2, "float16": 2}
RESIDUALS = ("discard", "error_feedback")
CORRECTIONS = ("step", "column")


@cache
def gradients(steps, *shape):
    """Noise under an envelope that wanders over the coefficients, so that columns come and go."""
    noise = normal(steps, *shape)
    time = np.arange(steps)[:, None]
    place = np.arange(shape[-1])[None, :]
    envelope = 1 + np.cos(place * 1.7 + time * 0.09) ** 2
    envelope = envelope.reshape(steps, *[1] * (len(shape) - 1), shape[-1])
    turned = oracles.idct(noise * envelope) + 0.1 * normal(*shape, seed=1)
    # Numbers that both float32 and float64 hold, so that every run is given the same.
    return turned.astype(np.float32).astype(np.float64)


def arrays_of(state):
    """The arrays of a state by name, without the step count."""
    return {
        name: value
        for name, value in state._asdict().items()
        if name != "step" and value is not None
    }


def ways_to_step(xp, config):
    """Each way to run a step: as it is, and in JAX also compiled."""

    def step(gradient, state):
        update, state = lc.dct_adamw_step(gradient, state, config)
        return lc.materialize(update), update.indices, state

    if library_of(xp) != "jax":
        return [step]
    import jax

    return [step, jax.jit(step)]


def run(step, state, sequence, xp, dtype):
    """Directions, chosen columns and the state after the last step."""
    directions, columns = [], []
    for gradient in sequence:
        direction, indices, state = step(from_numpy(gradient, xp, dtype), state)
        directions.append(direction)
        columns.append(to_numpy(indices))
    return directions, columns, state


LONG_RUNS = [
    {"rank": 5},
    {
        "rank": 4,
        "betas": (0.8, 0.95),
        "eps": 1e-3,
        "score": "l1",
        "side": "left",
        "refresh_every": 3,
        "residual": "error_feedback",
        "bias_correction": "column",
    },
]


@cache
def numpy_run(index, dtype):
    options = LONG_RUNS[index]
    config = lc.DCTAdamWConfig(**options)
    state = lc.dct_adamw_init((20, 12), config, xp=np, dtype=getattr(np, dtype))
    (step,) = ways_to_step(np, config)
    return run(step, state, gradients(50, 20, 12), np, dtype)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("index", range(len(LONG_RUNS)))
def test_fifty_steps_are_the_same_everywhere(xp, index, dtype):
    options, sequence = LONG_RUNS[index], gradients(50, 20, 12)
    expected, columns, margin = oracles.dct_adamw(list(sequence), **options)
    assert margin > 1e-5, "the data must not leave the choice to rounding"
    assert len({tuple(choice) for choice in columns}) > 5, "the data must make columns change"
    numpy_directions, numpy_columns, _ = numpy_run(index, dtype)
    config = lc.DCTAdamWConfig(**options)
    for step in ways_to_step(xp, config):
        state = lc.dct_adamw_init((20, 12), config, xp=xp, dtype=getattr(xp, dtype))
        found, chosen, _ = run(step, state, sequence, xp, dtype)
        np.testing.assert_array_equal(chosen, columns)
        np.testing.assert_array_equal(chosen, numpy_columns)
        # What the parameter has moved by. A single direction is ill-conditioned where a coefficient is near
        # zero, which float64 shows to be rounding and nothing else.
        moved = wanted = others = 0.0
        for t, direction in enumerate(found):
            moved, wanted = moved + direction, wanted + expected[t]
            others = others + to_numpy(numpy_directions[t])
            assert_close(moved, wanted, xp=xp, dtype=dtype, kind="trajectory")
            assert_close(moved, others, xp=xp, dtype=dtype, kind="trajectory")
            if dtype == "float64":
                assert_close(direction, expected[t], xp=xp, dtype=dtype, kind="trajectory")


@pytest.mark.parametrize(
    ("residual", "correction", "side", "score", "refresh_every"),
    [*itertools.product(RESIDUALS, CORRECTIONS, ("left", "right"), ("l1", "l2"), (1, 3))],
)
def test_every_combination_of_options_does_as_the_oracle(
    xp, residual, correction, side, score, refresh_every
):
    options = {
        "rank": 3,
        "betas": (0.9, 0.99),
        "residual": residual,
        "bias_correction": correction,
        "side": side,
        "score": score,
        "refresh_every": refresh_every,
    }
    sequence = gradients(7, 8, 6)
    expected, columns, margin = oracles.dct_adamw(list(sequence), **options)
    assert margin > 1e-9
    config = lc.DCTAdamWConfig(**options)
    step = ways_to_step(xp, config)[-1]
    state = lc.dct_adamw_init((8, 6), config, xp=xp, dtype=xp.float64)
    found, chosen, _ = run(step, state, sequence, xp, "float64")
    np.testing.assert_array_equal(chosen, columns)
    for t, direction in enumerate(found):
        assert_close(direction, expected[t], xp=xp, dtype="float64", kind="trajectory")


@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (6, 6), (2, 3, 4, 7)])
def test_auto_side_transforms_the_shorter_dimension(shape):
    config = lc.DCTAdamWConfig(rank=2)
    state = lc.dct_adamw_init(shape, config, xp=np)
    update, _ = lc.dct_adamw_step(normal(*shape).astype(np.float32), state, config)
    assert update.axis == (-1 if shape[-1] <= shape[-2] else -2)
    assert update.size == min(shape[-2:])
    assert lc.materialize(update).shape == shape


@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("correction", CORRECTIONS)
def test_a_stack_is_its_matrices_one_by_one(xp, residual, correction):
    config = lc.DCTAdamWConfig(
        rank=3, refresh_every=2, residual=residual, bias_correction=correction
    )
    sequence = gradients(5, 2, 2, 6, 5)
    expected, columns, _ = oracles.dct_adamw(
        list(sequence), rank=3, refresh_every=2, residual=residual, bias_correction=correction
    )
    step = ways_to_step(xp, config)[-1]
    state = lc.dct_adamw_init((2, 2, 6, 5), config, xp=xp, dtype=xp.float64)
    together, chosen, final = run(step, state, sequence, xp, "float64")
    np.testing.assert_array_equal(chosen, columns)
    for t, direction in enumerate(together):
        assert_close(direction, expected[t], xp=xp, dtype="float64", kind="trajectory")
    for place in np.ndindex(2, 2):
        state = lc.dct_adamw_init((6, 5), config, xp=xp, dtype=xp.float64)
        alone, _, last = run(step, state, [g[place] for g in sequence], xp, "float64")
        for t, direction in enumerate(alone):
            stacked = to_numpy(together[t])[place]
            assert_close(direction, stacked, xp=xp, dtype="float64", kind="trajectory")
        for name, array in arrays_of(last).items():
            stacked = to_numpy(arrays_of(final)[name])[place]
            np.testing.assert_allclose(to_numpy(array), stacked, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("correction", CORRECTIONS)
def test_state_is_as_large_as_said(xp, residual, correction, side):
    config = lc.DCTAdamWConfig(rank=3, side=side, residual=residual, bias_correction=correction)
    for shape in ((8, 5), (2, 5, 8)):
        batch = int(np.prod(shape[:-2]))
        across = shape[-2] if side == "right" else shape[-1]
        # Two moments of the low-rank coefficients and the chosen columns, and what options ask for.
        numbers = batch * (2 * across * 3 + 3)
        numbers += batch * 3 if correction == "column" else 0
        numbers += int(np.prod(shape)) if residual == "error_feedback" else 0
        state = lc.dct_adamw_init(shape, config, xp=xp)
        gradient = from_numpy(normal(*shape), xp, "float32")
        step = ways_to_step(xp, config)[-1]
        for _ in range(2):
            arrays = arrays_of(state).values()
            assert sum(int(np.prod(array.shape)) for array in arrays) == numbers
            held = sum(int(np.prod(a.shape)) * BYTES[dtype_name(a)] for a in arrays)
            assert held == lc.state_bytes(shape, config) == 4 * numbers
            _, _, state = step(gradient, state)


def test_state_bytes_of_float64_and_narrow_moments():
    for name, moment_bytes in (("float64", 8), ("float32", 4), ("bfloat16", 2), ("float16", 2)):
        expected = 2 * 6 * 2 * moment_bytes + 2 * 4
        config = lc.DCTAdamWConfig(rank=2, state_dtype=name)
        assert lc.state_bytes((6, 4), config) == expected
        default = lc.DCTAdamWConfig(rank=2)
        assert lc.state_bytes((6, 4), default, dtype=name) == expected


@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_step_writes_to_nothing_it_is_given(xp, dtype, residual, correction):
    config = lc.DCTAdamWConfig(
        rank=3, refresh_every=2, residual=residual, bias_correction=correction
    )
    state = lc.dct_adamw_init((6, 5), config, xp=xp, dtype=getattr(xp, dtype))
    for _ in range(3):
        gradient = from_numpy(normal(6, 5), xp, dtype)
        count = int(state.step)
        with untouched(gradient, *arrays_of(state).values()):
            update, after = lc.dct_adamw_step(gradient, state, config)
            lc.materialize(update)
        assert (int(state.step), int(after.step)) == (count, count + 1)
        state = after


@pytest.mark.parametrize(
    ("xp", "dtype"),
    [("torch", "bfloat16"), ("torch", "float16"), ("jax", "bfloat16"), ("jax", "float16")],
    indirect=["xp"],
)
def test_half_precision_gradients_have_float32_state_and_updates(xp, dtype):
    config = lc.DCTAdamWConfig(rank=3, residual="error_feedback")
    state = lc.dct_adamw_init((8, 6), config, xp=xp, dtype=getattr(xp, dtype))
    kinds = {name: dtype_name(array) for name, array in arrays_of(state).items()}
    assert set(kinds.values()) == {"int32", "float32"}
    sequence = [from_numpy(g, xp, dtype) for g in gradients(4, 8, 6)]
    exact = [to_numpy(g).astype(np.float64) for g in sequence]
    expected, columns, _ = oracles.dct_adamw(exact, rank=3, residual="error_feedback")
    for t, gradient in enumerate(sequence):
        update, state = lc.dct_adamw_step(gradient, state, config)
        np.testing.assert_array_equal(to_numpy(update.indices), columns[t])
        full = lc.materialize(update)
        assert_close(full, expected[t], xp=xp, dtype="float32", kind="trajectory")
    assert kinds == {name: dtype_name(array) for name, array in arrays_of(state).items()}


NARROW = pytest.mark.parametrize(
    ("xp", "dtype"),
    [("torch", "bfloat16"), ("torch", "float16"), ("jax", "bfloat16"), ("jax", "float16")],
    indirect=["xp"],
)


@NARROW
def test_narrow_moments_are_neighbours_of_float32_ones(xp, dtype):
    narrow, wide = lc.DCTAdamWConfig(rank=8, state_dtype=dtype), lc.DCTAdamWConfig(rank=8)
    gradient = from_numpy(normal(64, 16), xp, "float32")
    moments = {}
    for name, config in (("narrow", narrow), ("wide", wide)):
        state = lc.dct_adamw_init((64, 16), config, xp=xp)
        _, moments[name] = lc.dct_adamw_step(gradient, state, config)
    for name in ("first_moment", "second_moment"):
        found = getattr(moments["narrow"], name)
        assert dtype_name(found) == dtype
        exact = to_numpy(getattr(moments["wide"], name)).astype(np.float64)
        found = to_numpy(found).astype(np.float64)
        if name == "second_moment" and dtype == "float16":
            exact = np.sqrt(exact)  # what is kept is the root
        # One of the two numbers that enclose the exact one; below float16's normal range they are 2^-24 apart.
        spacing = 2 * ROUNDING[dtype] * np.abs(exact) + (2.0**-24 if dtype == "float16" else 0.0)
        assert np.all(np.abs(found - exact) <= spacing)
        # Up and down alike: rounding must not drift.
        up = np.mean(found > exact)
        assert 0.3 < up < 0.7


@NARROW
def test_narrow_moments_decay(xp, dtype):
    # Rounded to the nearest, a bfloat16 number times 0.999 is itself again, for ever.
    config = lc.DCTAdamWConfig(rank=8, betas=(0.0, 0.999), state_dtype=dtype, refresh_every=10**6)
    step = ways_to_step(xp, config)[-1]
    state = lc.dct_adamw_init((32, 16), config, xp=xp)
    # Large enough for the second moment of float16 to be far from its smallest numbers.
    _, _, state = step(from_numpy(30 * normal(32, 16), xp, "float32"), state)
    power = 2 if dtype == "float16" else 1  # float16 keeps the root
    before = (to_numpy(state.second_moment).astype(np.float64) ** power).sum()
    zero = xp.zeros((32, 16), dtype=xp.float32)
    for _ in range(200):
        _, _, state = step(zero, state)
    after = (to_numpy(state.second_moment).astype(np.float64) ** power).sum()
    # 256 independent walks; their sum strays from the mean by about a tenth of the bound.
    assert abs(after / before - 0.999**200) < 0.05


def through_a_file(state, xp):
    """A state saved and loaded the way its library's users do it."""
    stream = io.BytesIO()
    if library_of(xp) == "torch":
        xp.save(state._asdict(), stream)
        stream.seek(0)
        return type(state)(**xp.load(stream, weights_only=True))
    np.savez(stream, **{name: to_numpy(array) for name, array in arrays_of(state).items()})
    stream.seek(0)
    with np.load(stream) as loaded:
        arrays = {name: from_numpy(loaded[name], xp) for name in loaded.files}
    return state._replace(**arrays)


@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("correction", CORRECTIONS)
def test_a_resumed_run_gives_the_same_bits(xp, residual, correction):
    config = lc.DCTAdamWConfig(
        rank=3, refresh_every=4, residual=residual, bias_correction=correction
    )
    sequence = gradients(9, 8, 6)
    step = ways_to_step(xp, config)[-1]
    state = lc.dct_adamw_init((8, 6), config, xp=xp)
    whole, _, final = run(step, state, sequence, xp, "float32")
    for stop in (1, 6):
        _, _, middle = run(step, state, sequence[:stop], xp, "float32")
        resumed, _, last = run(step, through_a_file(middle, xp), sequence[stop:], xp, "float32")
        for expected, found in zip(whole[stop:], resumed, strict=True):
            assert_identical(found, expected)
        for name, array in arrays_of(last).items():
            assert_identical(array, arrays_of(final)[name])


def test_refresh_overrides_the_schedule(xp):
    config = lc.DCTAdamWConfig(rank=2, refresh_every=10)
    often = lc.DCTAdamWConfig(rank=2, refresh_every=1)
    sequence = [from_numpy(g, xp) for g in gradients(3, 6, 5)]
    state = lc.dct_adamw_init((6, 5), config, xp=xp, dtype=xp.float64)
    # Told not to choose, even the first step keeps the columns that the state came with.
    kept, _ = lc.dct_adamw_step(sequence[0], state, config, refresh=False)
    assert_identical(kept.indices, state.indices)
    by_schedule = told = state
    for gradient in sequence:
        wanted, by_schedule = lc.dct_adamw_step(gradient, by_schedule, often)
        found, told = lc.dct_adamw_step(gradient, told, config, refresh=True)
        assert_identical(found.indices, wanted.indices)
        assert_identical(found.factor, wanted.factor)


def test_columns_are_chosen_at_the_first_step_and_at_multiples(xp):
    config = lc.DCTAdamWConfig(rank=1, refresh_every=3)
    state = lc.dct_adamw_init((4, 9), config, xp=xp, dtype=xp.float64)
    chosen = []
    for t in range(1, 8):
        # Rows of the transform: at step t all the energy lies in row t % 4.
        gradient = np.zeros((4, 9))
        gradient[t % 4] = 1.0
        gradient = from_numpy(oracles.idct(gradient, -2), xp)
        update, state = lc.dct_adamw_step(gradient, state, config)
        chosen.append(int(to_numpy(update.indices)[0]))
    assert chosen == [1, 1, 3, 3, 3, 2, 2]


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_a_newcomer_moves_by_what_its_bias_correction_gives(xp, correction):
    config = lc.DCTAdamWConfig(
        rank=1, betas=(0.9, 0.99), eps=0.0, bias_correction=correction, side="right"
    )
    state = lc.dct_adamw_init((3, 4), config, xp=xp, dtype=xp.float64)
    basis = oracles.dct_basis(4)
    for t, column in enumerate((2, 2, 2, 1), start=1):
        gradient = from_numpy(np.outer([3.0, -1.0, 2.0], basis[:, column]), xp)
        update, state = lc.dct_adamw_step(gradient, state, config)
        np.testing.assert_array_equal(to_numpy(update.indices), [column])
        newcomer = t == 4 and correction == "step"
        # m = (1 - b1) a and v = (1 - b2) a^2, divided by 1 - b1^4 and 1 - b2^4.
        size = 0.1 / (1 - 0.9**4) / np.sqrt(0.01 / (1 - 0.99**4)) if newcomer else 1.0
        expected = size * np.array([[1.0], [-1.0], [1.0]])
        assert_close(update.factor, expected, xp=xp, dtype="float64")


@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("correction", CORRECTIONS)
def test_zero_gradients_move_nothing(xp, residual, correction):
    config = lc.DCTAdamWConfig(rank=2, residual=residual, bias_correction=correction)
    state = lc.dct_adamw_init((5, 4), config, xp=xp)
    zero = xp.zeros((5, 4), dtype=xp.float32)
    for _ in range(3):
        update, state = lc.dct_adamw_step(zero, state, config)
        np.testing.assert_array_equal(to_numpy(lc.materialize(update)), np.zeros((5, 4)))
        np.testing.assert_array_equal(to_numpy(update.indices), [0, 1])


@pytest.mark.parametrize("method", ["matmul", "fft"])
def test_a_nan_stays_in_its_row_and_does_not_steer_the_choice(xp, method):
    config = lc.DCTAdamWConfig(rank=2, side="right", method=method)
    gradient = normal(6, 5)
    gradient[3, 1] = np.nan
    state = lc.dct_adamw_init((6, 5), config, xp=xp, dtype=xp.float64)
    update, after = lc.dct_adamw_step(from_numpy(gradient, xp), state, config)
    # Every score is NaN, so the choice falls to the lowest indices.
    np.testing.assert_array_equal(to_numpy(update.indices), [0, 1])
    for array in (lc.materialize(update, method=method), after.first_moment, after.second_moment):
        broken = np.isnan(to_numpy(array)).any(axis=-1)
        np.testing.assert_array_equal(broken, np.arange(6) == 3)


def test_an_infinity_is_not_hidden(xp):
    config = lc.DCTAdamWConfig(rank=2, side="right")
    gradient = normal(6, 5)
    gradient[3, 1] = np.inf
    state = lc.dct_adamw_init((6, 5), config, xp=xp, dtype=xp.float64)
    # NumPy says so in a warning, as of any arithmetic with infinities.
    with np.errstate(invalid="ignore"):
        update, _ = lc.dct_adamw_step(from_numpy(gradient, xp), state, config)
        full = to_numpy(lc.materialize(update))
    assert not np.isfinite(full[3]).any()
    assert np.isfinite(np.delete(full, 3, axis=0)).all()


def test_moments_move_with_their_columns(xp):
    # The published code left moments in place when the columns under them changed.
    config = lc.DCTAdamWConfig(rank=2, side="right", betas=(0.5, 0.5))
    state = lc.dct_adamw_init((2, 5), config, xp=xp, dtype=xp.float64)
    for columns in ([1, 4], [0, 4]):
        coefficients = np.zeros((2, 5))
        coefficients[:, columns] = [[1.0, 3.0], [2.0, 5.0]]
        gradient = from_numpy(oracles.idct(coefficients), xp)
        _, state = lc.dct_adamw_step(gradient, state, config)
        np.testing.assert_array_equal(to_numpy(state.indices), columns)
    expected = np.array([[0.5, 2.25], [1.0, 3.75]])
    assert_close(state.first_moment, expected, xp=xp, dtype="float64")
    expected = np.array([[0.5, 6.75], [2.0, 18.75]])
    assert_close(state.second_moment, expected, xp=xp, dtype="float64")


@pytest.mark.parametrize("betas", [(0.0, 0.0), (0.0, 0.9), (0.9, 0.0)])
@pytest.mark.parametrize("correction", CORRECTIONS)
def test_means_without_memory(xp, betas, correction):
    sequence = gradients(4, 6, 5)
    expected, _, _ = oracles.dct_adamw(
        list(sequence), rank=2, betas=betas, bias_correction=correction
    )
    config = lc.DCTAdamWConfig(rank=2, betas=betas, bias_correction=correction)
    state = lc.dct_adamw_init((6, 5), config, xp=xp, dtype=xp.float64)
    found, _, _ = run(ways_to_step(xp, config)[-1], state, sequence, xp, "float64")
    for t, direction in enumerate(found):
        assert_close(direction, expected[t], xp=xp, dtype="float64", kind="trajectory")


@pytest.mark.parametrize("method", ["matmul", "fft"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_method_is_a_matter_of_speed_alone(xp, method, side):
    options = {"rank": 100, "side": side, "residual": "error_feedback", "refresh_every": 2}
    sequence = gradients(3, 140, 140)
    expected, columns, margin = oracles.dct_adamw(list(sequence), **options)
    assert margin > 1e-6
    config = lc.DCTAdamWConfig(method=method, **options)
    state = lc.dct_adamw_init((140, 140), config, xp=xp, dtype=xp.float64)
    step = ways_to_step(xp, config)[0]
    found, chosen, _ = run(step, state, sequence, xp, "float64")
    np.testing.assert_array_equal(chosen, columns)
    for t, direction in enumerate(found):
        assert_close(direction, expected[t], xp=xp, dtype="float64", kind="trajectory")


def test_a_fraction_is_a_share_of_the_transformed_dimension():
    for fraction, side, rank in ((0.25, "right", 3), (0.25, "left", 5), (0.01, "right", 1)):
        config = lc.DCTAdamWConfig(rank=fraction, side=side)
        assert lc.dct_adamw_init((20, 12), config, xp=np).indices.shape == (rank,)


NAN = float("nan")
INFINITY = float("inf")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"rank": 0}, ValueError, ["rank must be a positive integer or a fraction", "0"]),
        ({"rank": -1}, ValueError, ["rank must be", "-1"]),
        ({"rank": 1.5}, ValueError, ["rank must be", "1.5"]),
        ({"rank": 0.0}, ValueError, ["rank must be", "0.0"]),
        ({"rank": NAN}, ValueError, ["rank must be", "nan"]),
        ({"rank": "4"}, TypeError, ["rank must be", "'4'"]),
        ({"rank": True}, TypeError, ["rank must be", "True"]),
        ({"betas": (1.0, 0.9)}, ValueError, ["betas[0]", "less than 1", "1.0"]),
        ({"betas": (0.9, 1.0)}, ValueError, ["betas[1]", "less than 1", "1.0"]),
        ({"betas": (-0.1, 0.9)}, ValueError, ["betas[0]", "at least 0", "-0.1"]),
        ({"betas": (0.9, NAN)}, ValueError, ["betas[1]", "nan"]),
        ({"betas": (0.9, None)}, TypeError, ["betas[1]", "None"]),
        ({"betas": 0.9}, ValueError, ["betas must be a pair", "0.9"]),
        ({"betas": (0.9,)}, ValueError, ["betas must be a pair", "(0.9,)"]),
        ({"eps": -1e-8}, ValueError, ["eps must be at least 0", "-1e-08"]),
        ({"eps": NAN}, ValueError, ["eps", "nan"]),
        ({"eps": INFINITY}, ValueError, ["eps", "finite", "inf"]),
        ({"eps": "tiny"}, TypeError, ["eps must be a number", "'tiny'"]),
        ({"basis": "fourier"}, ValueError, ["basis must be one of", "'dct'", "'fourier'"]),
        ({"score": "l0"}, ValueError, ["score must be one of 'l1', 'l2'", "'l0'"]),
        ({"refresh_every": 0}, ValueError, ["refresh_every must be at least 1", "0"]),
        ({"refresh_every": 2.0}, TypeError, ["refresh_every must be an integer", "2.0"]),
        ({"side": "top"}, ValueError, ["side must be one of 'auto', 'left', 'right'", "'top'"]),
        ({"method": "svd"}, ValueError, ["method must be one of", "'matmul'", "'svd'"]),
        ({"residual": "keep"}, ValueError, ["residual must be one of", "'discard'", "'keep'"]),
        ({"bias_correction": "no"}, ValueError, ["bias_correction must be", "'step'", "'no'"]),
        ({"state_dtype": "int8"}, ValueError, ["state_dtype must be", "'float32'", "'int8'"]),
    ],
)
def test_a_bad_option_is_named(options, error, words):
    with pytest.raises(error) as caught:
        lc.DCTAdamWConfig(**{"rank": 2, **options})
    for word in words:
        assert word in str(caught.value)


def test_a_config_does_not_change():
    config = lc.DCTAdamWConfig(rank=2)
    with pytest.raises(AttributeError):
        config.rank = 3
    assert config == lc.DCTAdamWConfig(rank=2)
    assert hash(config) == hash(lc.DCTAdamWConfig(rank=2))


@pytest.mark.parametrize(
    ("shape", "options", "words"),
    [
        ((8, 5), {"rank": 6}, ["rank must not exceed", "5", "(8, 5)", "6"]),
        ((8, 5), {"rank": 9, "side": "left"}, ["rank must not exceed", "8", "9"]),
        ((8,), {"rank": 1}, ["at least two dimensions", "(8,)"]),
        ((), {"rank": 1}, ["at least two dimensions", "()"]),
        ((8, 0), {"rank": 1}, ["transformed dimension of at least 1", "(8, 0)"]),
    ],
)
def test_a_shape_that_does_not_fit_is_named(shape, options, words):
    config = lc.DCTAdamWConfig(**options)
    for call in (
        lambda: lc.dct_adamw_init(shape, config, xp=np),
        lambda: lc.state_bytes(shape, config),
    ):
        with pytest.raises(ValueError, match="must") as caught:
            call()
        for word in words:
            assert word in str(caught.value)


def test_a_dtype_that_the_library_lacks_is_named():
    config = lc.DCTAdamWConfig(rank=2, state_dtype="bfloat16")
    with pytest.raises(ValueError, match=r"state_dtype.*numpy.*bfloat16"):
        lc.dct_adamw_init((4, 3), config, xp=np)


@pytest.mark.parametrize(
    ("made_with", "stepped_with", "shape", "words"),
    [
        ({}, {}, (7, 5), ["(7, 5)", "moment", "(8, 2)", "(7, 2)"]),
        ({}, {"rank": 3}, (8, 5), ["moment", "(8, 2)", "(8, 3)"]),
        ({}, {"side": "left"}, (8, 5), ["moment", "(8, 2)", "(2, 5)"]),
        ({}, {"residual": "error_feedback"}, (8, 5), ["feedback", "absent", "(8, 5)"]),
        ({"residual": "error_feedback"}, {}, (8, 5), ["feedback", "absent", "(8, 5)"]),
        ({}, {"bias_correction": "column"}, (8, 5), ["ages", "absent", "(2,)"]),
        ({"bias_correction": "column"}, {}, (8, 5), ["ages", "absent", "(2,)"]),
        ({}, {}, (3, 8, 5), ["moment", "(8, 2)", "(3, 8, 2)"]),
    ],
)
def test_a_state_made_for_something_else_is_refused(xp, made_with, stepped_with, shape, words):
    state = lc.dct_adamw_init((8, 5), lc.DCTAdamWConfig(**{"rank": 2, **made_with}), xp=xp)
    config = lc.DCTAdamWConfig(**{"rank": 2, **stepped_with})
    with pytest.raises(ValueError, match="state must fit") as caught:
        lc.dct_adamw_step(xp.ones(shape, dtype=xp.float32), state, config)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "dtype", "error", "words"),
    [
        ((8, 5), "int32", TypeError, ["gradient must be of a real", "int32"]),
        ((8, 5), "complex64", TypeError, ["gradient must be of a real", "complex64"]),
        ((5,), "float32", ValueError, ["gradient must have at least two", "(5,)"]),
    ],
)
def test_a_bad_gradient_is_named(xp, shape, dtype, error, words):
    config = lc.DCTAdamWConfig(rank=2)
    state = lc.dct_adamw_init((8, 5), config, xp=xp)
    with pytest.raises(error) as caught:
        lc.dct_adamw_step(xp.ones(shape, dtype=getattr(xp, dtype)), state, config)
    for word in words:
        assert word in str(caught.value)
