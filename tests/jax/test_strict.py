"""JAX's strict settings, and arguments that are wrong: run as `optax.adamw` does, or say which argument and why."""

import jax
import numpy as np
import optax
import pytest
from helpers import assert_close
from jax import numpy as jnp
from jax_helpers import AXES, OPTIMIZERS, RANK, SCALERS, assert_moved, gradients, make, train, tree

pytestmark = pytest.mark.usefixtures("optax")

VARIANTS = [
    ("dct_adamw", {}),
    ("dct_adamw", {"preset": None, "method": "fft", "refresh_every": 2}),
    ("dct_adamw", {"preset": None, "residual": "error_feedback", "feedback_bits": 8}),
    ("dct_adamw", {"preset": None, "residual": "normalized", "bias_correction": "gentle"}),
    ("dct_adamw", {"preset": None, "residual": "scaled", "selection": "sampled"}),
    ("dct_adamw", {"preset": None, "basis": "svd"}),
    ("dct_adamw", {"preset": None, "basis": "power"}),
    ("dct_adamw", {"preset": None, "basis": "hartley"}),
    ("trion", {}),
    ("trion", {"momentum_bits": 8, "method": "fft", "row_decay": 0.9}),
]
VARIANT_IDS = ["-".join([name, *map(str, options.values())]) for name, options in VARIANTS]


def sized(rows, columns):
    """A tree of one kernel and one bias."""
    return tree(shapes={"layer": {"kernel": (rows, columns), "bias": (columns,)}})


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=VARIANT_IDS)
def test_implicit_rank_promotion_may_be_refused(name, options):
    params = tree()
    wanted, _ = train(make(name, **options), params, 2)
    with jax.numpy_rank_promotion("raise"):
        optimizer = make(name, **options)
        found, _ = train(optimizer, params, 2)
        # And operation by operation.
        optimizer.update(gradients(params, 0), optimizer.init(params), params)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert_close(one, other, xp=jnp, dtype="float32", kind="trajectory")


@pytest.mark.parametrize(("index", "name", "options"), [(i, *v) for i, v in enumerate(VARIANTS)])
def test_a_transfer_guard_lets_compiled_steps_run(index, name, options):
    # Sizes of its own for each case: constants that another one has made would not be made under the guard.
    params = sized(34 + 2 * index, 60)
    optimizer = make(name, matrix_axes={"layer": AXES["layer"]}, **options)
    given = gradients(params, 0)
    with jax.transfer_guard("disallow"):
        state = jax.jit(optimizer.init)(params)
        update = jax.jit(optimizer.update)
        for _ in range(2):
            updates, state = update(given, state, params)
    assert_moved(updates, jax.tree.map(jnp.zeros_like, updates))


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=VARIANT_IDS)
def test_no_nan_is_made_on_the_way(name, options):
    params = tree()
    optimizer = make(name, **options)
    state = optimizer.init(params)
    zero = jax.tree.map(jnp.zeros_like, params)
    with jax.debug_nans(True):
        for given in (zero, gradients(params, 0), zero):
            updates, state = jax.jit(optimizer.update)(given, state, params)
    assert all(bool(jnp.isfinite(u).all()) for u in jax.tree.leaves(updates))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_nothing_traced_is_left_behind(name):
    params = sized(36, 58)
    optimizer = make(name, matrix_axes={"layer": AXES["layer"]})
    with jax.checking_leaks():
        jax.jit(optimizer.update)(gradients(params, 0), optimizer.init(params), params)


@pytest.mark.parametrize("where", ["layer", "embed"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_complex_leaves_are_refused(name, where):
    params = tree()
    leaf = {"layer": "kernel", "embed": "embedding"}[where]
    optimizer = make(name)
    state = optimizer.init(params)
    params[where][leaf] = params[where][leaf].astype("complex64")
    message = f"must hold real numbers, got complex64 for '{where}/{leaf}'"
    with pytest.raises(TypeError, match=f"params {message}"):
        optimizer.init(params)
    with pytest.raises(TypeError, match=f"updates {message}"):
        jax.jit(optimizer.update)(params, state, tree())


def test_complex_leaves_can_be_split():
    optimizer = make("dct_adamw", matrix_axes=AXES["layer"]["kernel"])
    split = optax.contrib.split_real_and_imaginary(optimizer)
    params = {"w": tree()["layer"]["kernel"].astype("complex64")}
    updates, _ = split.update(params, split.init(params), params)
    assert updates["w"].dtype == jnp.complex64


NAN = float("nan")
BAD_NUMBERS = [
    ("b1", 1.0, ValueError),
    ("b1", -0.1, ValueError),
    ("b1", "0.9", TypeError),
    ("b1", (0.9, 0.99), TypeError),
    ("b1", np.array([0.9, 0.99]), ValueError),
    ("b2", 1.5, ValueError),
    ("b2", None, TypeError),
    ("eps", NAN, ValueError),
    ("eps", np.array(NAN), ValueError),
    ("eps", -1e-8, ValueError),
    ("eps", True, TypeError),
]
BAD_RATES = [
    ("learning_rate", -1.0, ValueError),
    ("learning_rate", NAN, ValueError),
    ("learning_rate", float("inf"), ValueError),
    ("learning_rate", "1e-3", TypeError),
    ("learning_rate", None, TypeError),
    ("weight_decay", -1.0, ValueError),
    ("weight_decay", np.float32("nan"), ValueError),
    ("weight_decay", jnp.zeros(3), ValueError),
    ("mask", "kernel", TypeError),
    ("mask", 0.5, TypeError),
    ("mask", {"layer": 1, "embed": False}, TypeError),
]


@pytest.mark.compiles_nothing
@pytest.mark.parametrize("name", OPTIMIZERS | SCALERS)
@pytest.mark.parametrize(("option", "value", "error"), BAD_NUMBERS)
def test_bad_numbers_are_refused_when_an_optimizer_is_made(name, option, value, error):
    rates = {"learning_rate": 0.1} if name in OPTIMIZERS else {}
    with pytest.raises(error, match=f"{option} must be"):
        (OPTIMIZERS | SCALERS)[name](rank=RANK, **rates, **{option: value})


@pytest.mark.compiles_nothing
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(("option", "value", "error"), BAD_RATES)
def test_bad_rates_are_refused_when_an_optimizer_is_made(name, option, value, error):
    with pytest.raises(error, match=f"{option} must be"):
        OPTIMIZERS[name](**{"rank": RANK, "learning_rate": 0.1, option: value})


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_numbers_may_be_arrays_and_rates_schedules(name):
    params = tree()
    options = {"b1": np.float32(0.8), "b2": np.array(0.95), "weight_decay": jnp.asarray(0.1)}
    found, _ = train(make(name, learning_rate=lambda count: 0.05, **options), params, 2)
    plain = {"b1": 0.8, "b2": 0.95, "weight_decay": 0.1}
    wanted, _ = train(make(name, learning_rate=0.05, **plain), params, 2)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert_close(one, other, xp=jnp, dtype="float32", kind="trajectory")


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("static", [(), ("matrix_axes",)], ids=["none", "axes"])
def test_injection_says_what_to_name(name, static):
    factory = optax.inject_hyperparams(OPTIMIZERS[name], static_args=static)
    with pytest.raises(TypeError, match=r"static_args=lowrank_jax\.static_options"):
        factory(learning_rate=1e-3, rank=8).init(tree())
