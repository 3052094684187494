"""Steps of the parts of a matrix, run in lockstep, are the step of the matrix, on every library."""

import dataclasses
from itertools import pairwise

import pytest
from helpers import assert_close, assert_identical, dtype_name, from_numpy, normal, to_numpy

import lowrank_core as lc
from lowrank_core.rules.known import DCT_ADAMW, TRION
from lowrank_core.rules.reductions import Sum, run, run_parts
from lowrank_core.rules.rule import bind

STEPS = 3
DCT_ADAMW_OPTIONS = [
    {"residual": "discard"},
    {"residual": "sign"},
    {"residual": "normalized"},
    {"residual": "scaled"},
    {"residual": "error_feedback"},
    {"residual": "error_feedback", "feedback_bits": 4, "refresh_every": 2},
    {"bias_correction": "gentle", "hysteresis": 0.1},
    {"selection": "sampled", "method": "matmul", "score": "l1"},
    {"basis": "haar", "refresh_every": 2},
]
TRION_OPTIONS = [{}, {"momentum_bits": 8, "row_decay": 0.9}, {"basis": "haar", "method": "matmul"}]
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


def step_by_parts(rule, gradient, state, config, places, xp):
    """The update and the state that the parts between ``places`` have together, stepped in lockstep."""
    shape = tuple(gradient.shape)
    dim, matrix = across(shape), bind(config, shape, lc.ops_for(gradient), None, in_parts=True)
    steps = []
    for start, stop in pairwise(places):
        parts = cuts(config, shape, start, stop)
        own = {name: cut(getattr(state, name), *part) for name, part in parts.items()}
        refresh = bool(config.refreshes(state.step + 1))
        part = cut(gradient, dim, start, stop)
        steps.append(rule.steps(part, state._replace(**own), matrix, refresh))

    def backwards(work, places):
        # In any order, says the contract.
        for place in reversed(places):
            work(place)

    updates, states = zip(*run_parts(steps, backwards), strict=True)
    joined = {
        name: xp.concat([getattr(new, name) for new in states], axis=dim)
        for name in cuts(config, shape, 0, shape[dim])
    }
    full = xp.concat([lc.materialize(update) for update in updates], axis=dim)
    return full, states[0]._replace(**joined)


def assert_same_run(xp, rule, step, config, shape, places):
    # A namespace of the standard has `concat`, which some libraries lack under this name.
    standard = lc.ops_for_namespace(xp).xp
    first = second = rule.init(shape, config, xp=xp, dtype=xp.float64)
    for number in range(STEPS):
        gradient = from_numpy(normal(*shape, seed=number), xp, "float64")
        update, first = step(gradient, first, config)
        found, second = step_by_parts(rule, gradient, second, config, places, standard)
        same(found, lc.materialize(update), xp)
        for name, wanted in first._asdict().items():
            value = getattr(second, name)
            if wanted is None or name == "step":
                assert value is wanted is None or int(value) == int(wanted)
            else:
                same(value, wanted, xp)


@pytest.mark.parametrize(("shape", "places"), SHAPES, ids=str)
@pytest.mark.parametrize("options", DCT_ADAMW_OPTIONS, ids=str)
def test_parts_of_dct_adamw_are_the_whole(xp, options, shape, places):
    config = lc.DCTAdamWConfig(rank=3, **options)
    assert_same_run(xp, DCT_ADAMW, lc.dct_adamw_step, config, shape, places)


@pytest.mark.parametrize(("shape", "places"), SHAPES, ids=str)
@pytest.mark.parametrize("options", TRION_OPTIONS, ids=str)
def test_parts_of_trion_are_the_whole(xp, options, shape, places):
    config = lc.TrionConfig(rank=3, **options)
    assert_same_run(xp, TRION, lc.trion_step, config, shape, places)


def test_run_sends_back_what_each_sum_finishes_as():
    def step():
        first = yield Sum(2, lambda total: total + 1)
        second = yield Sum(None, lambda total: (total, first))
        return second

    assert run(step()) == (None, 3)


def test_run_parts_adds_partial_sums_in_order_and_finishes_once():
    finished = []

    def finish(total):
        finished.append(total)
        return total

    def step(own):
        total = yield Sum(own, finish)
        return own, total

    def in_turn(work, places):
        for place in places:
            work(place)

    assert run_parts([step("a"), step("b"), step("c")], in_turn) == [
        ("a", "abc"),
        ("b", "abc"),
        ("c", "abc"),
    ]
    assert finished == ["abc"]


def test_run_parts_keeps_no_partial_sum_longer_than_it_must():
    class Partial:
        alive = most = 0

        def __init__(self, value):
            self.value = value
            Partial.alive += 1
            Partial.most = max(Partial.most, Partial.alive)

        def __add__(self, other):
            return Partial(self.value + other.value)

        def __del__(self):
            Partial.alive -= 1

    def step(value):
        return (yield Sum(Partial(value), lambda total: total.value))

    def in_turn(work, places):
        for place in places:
            work(place)

    assert run_parts([step(value) for value in range(20)], in_turn) == [190] * 20
    assert Partial.most <= 4


def test_part_multiple_says_where_parts_may_begin():
    coded = lc.DCTAdamWConfig(rank=3, residual="error_feedback", feedback_bits=8)
    wide, tall = (8, 600), (600, 8)

    def multiple(config, shape):
        return config.part_multiple(config.layout(shape))

    assert (multiple(coded, tall), multiple(coded, wide)) == (1, 256)
    assert multiple(lc.DCTAdamWConfig(rank=3), wide) == 1
    assert multiple(lc.DCTAdamWConfig(rank=3, residual="scaled"), tall) == 1
    assert multiple(lc.DCTAdamWConfig(rank=3, basis="svd"), tall) is None
    assert multiple(lc.TrionConfig(rank=3, momentum_bits=4), wide) == 256
    # Half as many rows as the rank at least, or Gram matrices would outweigh the parts.
    assert multiple(lc.TrionConfig(rank=3), tall) == 2
    # Orthonormalised directly, which needs the whole.
    assert multiple(lc.TrionConfig(rank=8), (9, 8)) is None
