"""An update that holds NaN or infinity: stepped on, a step skipped as a whole, or an error, as the option says."""

import jax
import lowrank_jax
import optax
import pytest
from helpers import assert_close
from jax import numpy as jnp
from jax_helpers import OPTIMIZERS, assert_same_bits, gradients, make, train, tree

pytestmark = pytest.mark.usefixtures("optax")


def poisoned(params, value):
    given = gradients(params, 0)
    given["layer"]["bias"] = given["layer"]["bias"].at[3].set(value)
    return given


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_step_is_skipped_as_a_whole_and_counted(name, value, compiled):
    params = tree()
    # Counts of schedules stand still too.
    rate = optax.linear_schedule(0.1, 0.0, 10)
    optimizer = make(name, nonfinite="skip", learning_rate=rate, weight_decay=0.1)
    update = jax.jit(optimizer.update) if compiled else optimizer.update
    state = optimizer.init(params)
    updates, after = update(poisoned(params, value), state, params)
    assert_same_bits(updates, jax.tree.map(jnp.zeros_like, params))
    assert_same_bits(after.inner_state, state.inner_state)
    assert int(after.total_notfinite) == 1
    # A step on finite numbers is that of the plain optimizer.
    plain = make(name, learning_rate=rate, weight_decay=0.1)
    found, _ = update(gradients(params, 0), after, params)
    step = jax.jit(plain.update) if compiled else plain.update
    wanted, _ = step(gradients(params, 0), plain.init(params), params)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert_close(one, other, xp=jnp, dtype="float32", kind="trajectory")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_raise_names_the_leaf_and_is_refused_where_nobody_can_raise(name):
    params = tree()
    optimizer = make(name, nonfinite="raise")
    state = optimizer.init(params)
    optimizer.update(gradients(params, 0), state, params)
    with pytest.raises(ValueError, match="update of 'layer/bias' must be finite"):
        optimizer.update(poisoned(params, jnp.nan), state, params)
    with pytest.raises(ValueError, match=r"nonfinite must be .* traced.*optax.apply_if_finite"):
        jax.jit(optimizer.update)(gradients(params, 0), state, params)


def test_other_choices_are_refused():
    with pytest.raises(ValueError, match=r"nonfinite must be one of .*, got 'ignore'"):
        make("trion", nonfinite="ignore")


def test_state_of_a_skipping_run_is_saved_and_loaded(tmp_path):
    params = tree()
    optimizer = make("dct_adamw", nonfinite="skip")
    _, state = train(optimizer, params, 2)
    lowrank_jax.save_state(tmp_path / "file", optimizer, state, params)
    loaded = lowrank_jax.load_state(tmp_path / "file", optimizer, optimizer.init(params), params)
    assert_same_bits(loaded.inner_state, state.inner_state)
