"""A survey of a whole matrix and a step of each of its blocks are the step of the matrix, on every library."""

import dataclasses
from itertools import pairwise

import pytest
from helpers import assert_close, assert_identical, dtype_name, from_numpy, normal, to_numpy

import lowrank_core as lc

STEPS = 3
DCT_ADAMW = [
    {"residual": "discard"},
    {"residual": "sign"},
    {"residual": "normalized"},
    {"residual": "error_feedback"},
    {"residual": "error_feedback", "feedback_bits": 4, "refresh_every": 2},
    {"bias_correction": "gentle", "hysteresis": 0.1},
    {"selection": "sampled", "method": "matmul", "score": "l1"},
    {"basis": "haar", "refresh_every": 2},
]
TRION = [{}, {"momentum_bits": 8}, {"basis": "haar", "method": "matmul"}]
#: Shape, and where the dimension that is not transformed is cut.
SHAPES = [((9, 8), (0, 4, 9)), ((8, 600), (0, 256, 512, 600)), ((2, 9, 8), (0, 1, 8, 9))]


def across(shape):
    return -2 if shape[-1] <= shape[-2] else -1


def cut(x, dim, start, stop):
    return x[..., start:stop, :] if dim == -2 else x[..., start:stop]


def cuts(config, shape, start, stop):
    """For each array of state that a block has a part of, the part's dimension, start and end."""
    dim = across(shape)
    # What a block is shorter along is not what the matrix is.
    config = dataclasses.replace(config, side="right" if dim == -2 else "left")

    def shapes(length):
        given = list(shape)
        given[dim] = length
        return {name: spec.shape for name, spec in config.state_spec(tuple(given)).items()}

    whole, before, after = shapes(shape[dim]), shapes(max(start, 1)), shapes(stop)
    return {
        name: (dim, before[name][dim] if start else 0, after[name][dim])
        for name, own in whole.items()
        if len(own) == len(shape) and own != shapes(1)[name]
    }


def same(found, wanted, xp):
    kind = dtype_name(wanted)
    if kind.startswith("float"):
        assert_close(found, to_numpy(wanted), xp=xp, dtype=kind, kind="trajectory")
    else:
        assert_identical(found, wanted)


def step_by_blocks(survey, step, gradient, state, config, places, xp):
    """The update and the state that the blocks between ``places`` have together."""
    shape = tuple(gradient.shape)
    dim, seen = across(shape), survey(gradient, state, config)
    updates, states = [], []
    for start, stop in pairwise(places):
        parts = cuts(config, shape, start, stop)
        own = {name: cut(getattr(state, name), *part) for name, part in parts.items()}
        block = seen.across(slice(start, stop))
        update, new = step(
            cut(gradient, dim, start, stop), state._replace(**own), config, survey=block
        )
        updates.append(lc.materialize(update))
        states.append(new)
    joined = {
        name: xp.concat([getattr(new, name) for new in states], axis=dim)
        for name in cuts(config, shape, 0, shape[dim])
    }
    return xp.concat(updates, axis=dim), states[0]._replace(**joined)


def assert_same_run(xp, init, survey, step, config, shape, places):
    # A namespace of the standard has `concat`, which some libraries lack under this name.
    standard = lc.ops_for_namespace(xp).xp
    first = second = init(shape, config, xp=xp, dtype=xp.float64)
    for number in range(STEPS):
        gradient = from_numpy(normal(*shape, seed=number), xp, "float64")
        update, first = step(gradient, first, config)
        found, second = step_by_blocks(survey, step, gradient, second, config, places, standard)
        same(found, lc.materialize(update), xp)
        for name, wanted in first._asdict().items():
            value = getattr(second, name)
            if wanted is None or name == "step":
                assert value is wanted is None or int(value) == int(wanted)
            else:
                same(value, wanted, xp)


@pytest.mark.parametrize(("shape", "places"), SHAPES, ids=str)
@pytest.mark.parametrize("options", DCT_ADAMW, ids=str)
def test_blocks_of_dct_adamw_are_the_whole(xp, options, shape, places):
    config = lc.DCTAdamWConfig(rank=3, **options)
    step, survey = lc.dct_adamw_step, lc.dct_adamw_survey
    assert_same_run(xp, lc.dct_adamw_init, survey, step, config, shape, places)


@pytest.mark.parametrize(("shape", "places"), SHAPES, ids=str)
@pytest.mark.parametrize("options", TRION, ids=str)
def test_blocks_of_trion_are_the_whole(xp, options, shape, places):
    config = lc.TrionConfig(rank=3, **options)
    assert_same_run(xp, lc.trion_init, lc.trion_survey, lc.trion_step, config, shape, places)


@pytest.mark.parametrize("options", [{"basis": "svd"}, {"residual": "scaled"}], ids=str)
def test_what_needs_the_whole_at_the_end_is_refused(xp, options):
    config = lc.DCTAdamWConfig(rank=3, **options)
    state = lc.dct_adamw_init((9, 8), config, xp=xp)
    gradient = from_numpy(normal(9, 8), xp, "float32")
    with pytest.raises(ValueError, match="config must be of a rule that treats rows alone, got"):
        lc.dct_adamw_survey(gradient, state, config)


def test_codes_tell_where_blocks_may_begin():
    coded = lc.DCTAdamWConfig(rank=3, residual="error_feedback", feedback_bits=8)
    assert (coded.grain(-1), coded.grain(-2)) == (1, 256)
    assert lc.DCTAdamWConfig(rank=3).grain(-2) == 1
    assert lc.DCTAdamWConfig(rank=3, residual="scaled").grain(-1) is None
    assert lc.TrionConfig(rank=3, momentum_bits=4).grain(-2) == 256
    assert lc.TrionConfig(rank=3).grain(-1) == 1
