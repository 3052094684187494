"""Gradients to step on, and the way to hold a run of the library to the slow oracle's."""

from functools import cache

import numpy as np
import oracles
import oracles_family
from helpers import assert_close, from_numpy, library_of, normal, to_numpy

import lowrank_core as lc
from lowrank_core.rules.dct_adamw_config import SEED_COUNT
from lowrank_core.rules.residuals import DEFAULT_SCALE, GROWTH_LIMIT


@cache
def gradients(steps, *shape):
    """Noise under an envelope that wanders over the coefficients along both axes, so that columns come and go."""
    time = np.arange(steps)[:, None]
    noise = normal(steps, *shape)
    for axis in (-1, -2):
        place = np.arange(shape[axis])[None, :]
        envelope = 0.3 + np.cos(place * 1.7 + time * 0.4) ** 2
        lengths = [1] * len(shape)
        lengths[axis] = shape[axis]
        noise = noise * envelope.reshape(steps, *lengths)
    return oracles.idct(oracles.idct(noise, -1), -2)


def compiled(function, xp):
    """``function`` under ``jax.jit`` in JAX, whose single operations take longer to compile; else itself."""
    if library_of(xp) != "jax":
        return function
    import jax

    return jax.jit(function)


def steps(config, sequence, xp, dtype="float64", **init):
    """The materialized update, the update itself and the state after each step of DCT-AdamW or Trion."""
    trion = isinstance(config, lc.TrionConfig)
    start, rule = (
        (lc.trion_init, lc.trion_step) if trion else (lc.dct_adamw_init, lc.dct_adamw_step)
    )

    def step(gradient, state):
        update, state = rule(gradient, state, config)
        return lc.materialize(update), update, state

    step = compiled(step, xp)
    state = start(sequence[0].shape, config, xp=xp, dtype=getattr(xp, dtype), **init)
    for gradient in sequence:
        full, update, state = step(from_numpy(gradient, xp, dtype), state)
        yield full, update, state


def oracle_of(config, shape, **options):
    """The oracle with the same options, and the library's own numbers where an option leaves them to it."""
    names = ("rank", "betas", "eps", "basis", "score", "refresh_every", "residual")
    names += ("feedback_bits", "selection", "score_decay", "hysteresis", "bias_correction", "seed")
    scale = config.residual_scale
    return oracles_family.LowRankAdam(
        **{name: getattr(config, name) for name in names},
        side="right" if config.layout(shape).axis == -1 else "left",
        residual_scale=DEFAULT_SCALE.get(config.residual, 1.0) if scale is None else scale,
        growth=GROWTH_LIMIT,
        seed_count=SEED_COUNT,
        **options,
    )


def assert_follows_oracle(config, sequence, xp, changes=1):
    """Assert that every step chooses and moves as the oracle does; returns the oracle and the last state."""
    oracle = oracle_of(config, sequence[0].shape)
    choices = set()
    state = None
    for gradient, (full, _, state) in zip(sequence, steps(config, sequence, xp), strict=True):
        expected = oracle.step(gradient)
        np.testing.assert_array_equal(to_numpy(state.indices), oracle.columns)
        assert_close(full, expected, xp=xp, dtype="float64", kind="trajectory")
        choices.add(tuple(oracle.columns))
    assert oracle.margin > 1e-9, "the data must not leave the choice to rounding"
    assert len(choices) > changes, "the data must make columns change"
    return oracle, state
