"""A step in passes over rows is the step there is."""

import numpy as np
import pytest
from helpers import assert_close, assert_identical, from_numpy, normal, to_numpy

import lowrank_core as lc
from lowrank_core.ops.passes import PassedRows
from lowrank_core.ops.rows import RowMoments, RowWrite
from lowrank_core.rules.dct_adamw_columns import columns_due
from lowrank_core.rules.dct_adamw_rows import dct_adamw_rows, fits_rows
from lowrank_core.rules.reductions import run
from lowrank_core.rules.rule import bind
from lowrank_core.rules.trion_rows import fits_rows as trion_fits
from lowrank_core.rules.trion_rows import trion_rows

LR, DECAY = 0.05, 0.1
FACTORED = {"second_moment": "factored", "betas": (0.9, 0.999)}
OPTIONS = [
    {"residual": "discard"},
    {"residual": "sign"},
    {"residual": "sign", "refresh_every": 3, "score": "l1", "residual_scale": 0.4},
    {"residual": "normalized", "score_decay": 0.9, "hysteresis": 0.2, "update_scale": 0.5},
    {"residual": "normalized", "refresh_every": 2, "selection": "sampled"},
    {"residual": "bounded", "score_decay": 0.9, **FACTORED},
    {"residual": "discard", "refresh_every": 2, **FACTORED},
    {"residual": "sign", "rank": 9},
]


def two_passes(parameter, gradient, state, config):
    """One step in two passes, in plain steps."""
    ops = lc.ops_for(gradient)
    matrix = bind(config, tuple(gradient.shape), ops, ops.device_of(gradient))
    assert fits_rows(matrix)

    def as_rows(x):
        return x if x is None or config.side == "right" else ops.xp.matrix_transpose(x)

    due = columns_due(state, matrix)
    if due is not True and not bool(ops.xp.any(due)):
        due = False
    rows = PassedRows([as_rows(gradient)], [as_rows(parameter)], [None], ops)
    job, after = run(dct_adamw_rows(rows, state, matrix, due))
    names = ("first_moment", "second_moment", "row_energy")
    moments = RowMoments(*(as_rows(getattr(state, name)) for name in names))
    ((parameter, moments),) = rows.step([moments], job, [RowWrite(LR, DECAY)])
    kept = zip(names, map(as_rows, moments), strict=True)
    return as_rows(parameter), after._replace(**dict(kept))


def gradient_at(step, shape, xp):
    """Gradients whose columns differ, in part nothing but zeros, and at first none at all."""
    values = normal(*shape, seed=step) * np.linspace(0.1, 2, shape[-1])
    if step == 0:
        values = values * 0
    if step == 2:
        values[..., 1, :, :] = np.cos(np.pi * 3 * (np.arange(shape[-1]) + 0.5) / shape[-1])
    return from_numpy(values, xp, "float32")


@pytest.mark.parametrize("xp", ["numpy", "torch"], indirect=True)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("side", "shape"), [("right", (2, 5, 9)), ("left", (2, 9, 5))])
def test_two_passes_are_the_step(xp, options, side, shape):
    config = lc.DCTAdamWConfig(**{"rank": 3, "side": side, **options})
    state = lc.dct_adamw_init(shape, config, xp=xp)
    parameter = from_numpy(normal(*shape, seed=99), xp, "float32")
    other, same = parameter, state
    for step in range(6):
        gradient = gradient_at(step, (2, 5, 9), xp)
        if side == "left":
            gradient = lc.ops_for(gradient).xp.matrix_transpose(gradient)
        update, state = lc.dct_adamw_step(gradient, state, config)
        parameter = parameter * (1 - LR * DECAY) - lc.materialize(update) * LR
        other, same = two_passes(other, gradient, same, config)
        assert_identical(same.indices, state.indices)
        assert_close(other, to_numpy(parameter), xp=xp, dtype="float32", kind="trajectory")
    for name in ("first_moment", "second_moment", "row_energy", "energy"):
        kept = getattr(state, name)
        assert (kept is None) == (getattr(same, name) is None)
        if kept is not None:
            found = getattr(same, name)
            assert_close(found, to_numpy(kept), xp=xp, dtype="float32", kind="trajectory")


@pytest.mark.parametrize(
    "options",
    [
        {"basis": "hartley"},
        {"basis": "svd"},
        {"residual": "scaled"},
        {"residual": "error_feedback"},
        {"bias_correction": "column"},
        {"state_dtype": "float16"},
    ],
    ids=str,
)
def test_what_does_not_fit_two_passes(options):
    ops = lc.ops_for_namespace(np)
    given = {"rank": 3, "side": "right", "residual": "discard"}
    assert fits_rows(bind(lc.DCTAdamWConfig(**given), (5, 9), ops, None))
    config = lc.DCTAdamWConfig(**{**given, **options})
    assert not fits_rows(bind(config, (5, 9), ops, None))


TRION_OPTIONS = [
    {},
    {"score": "l1", "momentum": 0.9, "scale": "rms"},
    # Rows fewer than columns chosen; and as many, where orthonormalisation is direct.
    {"rank": 8, "row_decay": 0.9},
    {"rank": 5, "coefficients": "polar_express"},
]


@pytest.mark.parametrize("xp", ["numpy", "torch"], indirect=True)
@pytest.mark.parametrize("options", TRION_OPTIONS, ids=str)
@pytest.mark.parametrize(("side", "tiny"), [("right", False), ("right", True), ("left", False)])
def test_three_passes_are_the_step_of_trion(xp, options, side, tiny):
    config = lc.TrionConfig(**{"rank": 3, "side": side, **options})
    shape, ops = (2, 5, 9) if side == "right" else (2, 9, 5), lc.ops_for_namespace(xp)

    def as_rows(x):
        return x if side == "right" else ops.xp.matrix_transpose(x)

    state = lc.trion_init(shape, config, xp=xp)
    parameter = from_numpy(normal(*shape, seed=99), xp, "float32")
    other, momentum = as_rows(parameter), as_rows(state.momentum)
    matrix = bind(config, shape, ops, ops.device_of(parameter))
    assert trion_fits(matrix)
    for step in range(4):
        gradient = as_rows(gradient_at(step + 1, (2, 5, 9), xp) * (1e-18 if tiny else 1.0))
        before = state._replace(momentum=None)
        update, state = lc.trion_step(gradient, state, config)
        parameter = parameter * (1 - LR * DECAY) - lc.materialize(update) * LR
        # Each matrix of the stack as one of several.
        parts = [as_rows(gradient)[place, ...] for place in range(2)]
        wholes, momenta = ([x[place, ...] for place in range(2)] for x in (other, momentum))
        rows = PassedRows(parts, wholes, momenta, ops)
        job, after = run(trion_rows(rows, before, matrix))
        assert after.step == state.step
        assert after.momentum is None
        assert_identical(job.indices, update.indices)
        pairs = rows.lift(job, [RowWrite(LR, DECAY)] * 2)
        other, momentum = (xp.stack(own) for own in zip(*pairs, strict=True))
        wanted = to_numpy(as_rows(parameter))
        assert_close(other, wanted, xp=xp, dtype="float32", kind="trajectory")
    wanted = to_numpy(as_rows(state.momentum))
    assert_close(momentum, wanted, xp=xp, dtype="float32", kind="trajectory")


@pytest.mark.parametrize(
    "options",
    [
        {"basis": "hartley"},
        # Nothing is transformed.
        {"rank": 9},
        {"momentum_bits": 8},
        {"state_dtype": "float16"},
    ],
    ids=str,
)
def test_what_does_not_fit_three_passes(options):
    ops = lc.ops_for_namespace(np)
    given = {"rank": 3, "side": "right"}
    for kept in (None, "float32", "bfloat16"):
        assert trion_fits(bind(lc.TrionConfig(**given, state_dtype=kept), (5, 9), ops, None))
    assert not trion_fits(bind(lc.TrionConfig(**{**given, **options}), (5, 9), ops, None))
