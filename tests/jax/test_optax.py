"""Optax's conventions hold: schedules, masks, chains, partitions, injected numbers, wrappers, one trace."""

import inspect

import jax
import lowrank_jax
import optax
import pytest
from helpers import assert_close
from jax import numpy as jnp
from jax_helpers import (
    AXES,
    OPTIMIZERS,
    RANK,
    RATE,
    SCALERS,
    Counted,
    assert_moved,
    assert_same_bits,
    gradients,
    make,
    train,
    tree,
)
from lowrank_jax import dct_adamw, matrix_mask, scale_by_dct_adam, static_options, trion

import lowrank_core as lc

pytestmark = pytest.mark.usefixtures("optax")

FACTORIES = OPTIMIZERS | SCALERS


def assert_trees_close(found, wanted):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert_close(one, other, xp=jnp, dtype="float32", kind="trajectory")


def check_single_trace(optimizer, params, steps=4):
    """Train under one ``jit`` and return the parameters; the second step must find the first one's trace."""

    def step(params, state, gradient):
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    counted = Counted(step)
    state = optimizer.init(params)
    for index in range(steps):
        params, state = counted(params, state, gradients(params, index))
    counted.check_once()
    return params


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (
            "dct_adamw",
            {
                "preset": None,
                "refresh_every": 3,
                "learning_rate": optax.linear_schedule(0.1, 0.0, 9),
            },
        ),
        (
            "dct_adamw",
            {"preset": None, "residual": "scaled", "bias_correction": "gentle", "score_decay": 0.9},
        ),
        (
            "dct_adamw",
            {
                "preset": None,
                "residual": "error_feedback",
                "feedback_bits": 4,
                "selection": "sampled",
            },
        ),
        ("dct_adamw", {"preset": None, "state_dtype": "bfloat16"}),
        ("trion", {}),
        ("trion", {"momentum_bits": 8}),
    ],
    ids=["schedule", "every counter", "codes", "narrow state", "trion", "trion in codes"],
)
def test_is_traced_once(name, options):
    params = tree()
    assert_moved(check_single_trace(make(name, **options), params), params)


def test_rate_follows_its_schedule():
    params = tree()
    schedule = optax.piecewise_constant_schedule(RATE, {1: 0.0})
    found, _ = train(make("dct_adamw", learning_rate=schedule), params, 3)
    once, _ = train(make("dct_adamw"), params, 1)
    assert_same_bits(found, once)


def test_decay_follows_its_mask():
    params = tree()
    zero = jax.tree.map(jnp.zeros_like, params)
    optimizer = make("dct_adamw", weight_decay=0.5, mask=lambda p: matrix_mask(p, AXES))
    updates, _ = jax.jit(optimizer.update)(zero, optimizer.init(params), params)
    assert_close(
        updates["layer"]["kernel"], -RATE * 0.5 * params["layer"]["kernel"], xp=jnp, dtype="float32"
    )
    assert not updates["layer"]["bias"].any()
    assert not updates["embed"]["embedding"].any()


def test_chain_of_parts_is_the_whole():
    params = tree()
    parts = optax.chain(
        optax.clip_by_global_norm(1e6),
        scale_by_dct_adam(rank=RANK, matrix_axes=AXES),
        optax.add_decayed_weights(0.01),
        optax.scale_by_learning_rate(RATE),
    )
    assert_trees_close(train(parts, params, 3)[0], train(make("dct_adamw"), params, 3)[0])


def test_partition_gives_each_part_its_own():
    params = tree()
    labels = {"embed": "rest", "layer": "low", "scanned": "higher"}
    low = {"rank": 2, "matrix_axes": AXES}
    optimizer = optax.partition(
        {
            "rest": optax.sgd(0.1),
            "low": dct_adamw(RATE, **low),
            "higher": trion(RATE, **low | {"rank": 5}),
        },
        labels,
    )
    found = check_single_trace(optimizer, params)
    assert_moved(found, params)
    alone, _ = train(dct_adamw(RATE, **low), {"layer": params["layer"]}, 4)
    assert_trees_close(found["layer"], alone["layer"])


def test_a_part_without_leaves_is_none_of_our_business():
    params = {"embed": tree()["embed"]}
    optimizer = optax.partition(
        {"low": make("dct_adamw"), "rest": optax.sgd(0.1)}, {"embed": "rest"}
    )
    assert_moved(train(optimizer, params, 2)[0], params)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_injected_numbers_are_traced(name):
    params = tree()
    factory = OPTIMIZERS[name]
    decay = {"dct_adamw": {"residual": "sign", "residual_scale": 0.2}, "trion": {"momentum": 0.9}}
    numbers = {"b1": 0.8, "b2": 0.95, "eps": 1e-6, "weight_decay": 0.2}
    options = {"rank": RANK, "matrix_axes": AXES, **decay[name], **numbers}
    injected = optax.inject_hyperparams(factory, static_args=static_options(factory))(
        learning_rate=optax.constant_schedule(RATE), **options
    )
    state = injected.init(params)
    assert {"learning_rate", "b1", "b2", "eps", "weight_decay"} <= set(state.hyperparams)
    assert {"residual_scale", "momentum"} & set(state.hyperparams)
    found = check_single_trace(injected, params)
    assert_trees_close(found, train(factory(RATE, **options), params, 4)[0])


def test_injected_numbers_promote_nothing():
    kernel = tree(dtype="float64")["layer"]["kernel"]
    params = {"a": kernel, "b": kernel.astype("float32")}
    factory = optax.inject_hyperparams(dct_adamw, static_args=static_options(dct_adamw))
    # Optax holds the numbers in the widest dtype of the parameters.
    axes = AXES["layer"]["kernel"]
    optimizer = factory(learning_rate=RATE, rank=RANK, matrix_axes=axes, residual="normalized")
    found = check_single_trace(optimizer, params)
    assert_trees_close({"b": found["b"]}, {"b": found["a"].astype("float32")})


def test_an_injected_number_can_be_set_between_steps():
    params = tree()
    factory = optax.inject_hyperparams(dct_adamw, static_args=static_options(dct_adamw))
    optimizer = factory(learning_rate=RATE, rank=RANK, matrix_axes=AXES)
    update = Counted(optimizer.update)
    state = optimizer.init(params)
    first, _ = update(gradients(params, 0), state, params)
    state.hyperparams["learning_rate"] = jnp.asarray(2 * RATE, jnp.float32)
    second, _ = update(gradients(params, 0), state, params)
    update.check_once()
    assert_trees_close(jax.tree.map(lambda u: 2 * u, first), second)


def test_multi_steps_accumulates():
    params = tree()
    optimizer = optax.MultiSteps(make("dct_adamw", refresh_every=2), every_k_schedule=2)
    found = check_single_trace(optimizer, params)
    inner = make("dct_adamw", refresh_every=2)
    state, wanted, update = inner.init(params), params, jax.jit(inner.update)
    for index in (0, 2):
        pair = [gradients(params, index), gradients(params, index + 1)]
        mean = jax.tree.map(lambda a, b: (a + b) / 2, *pair)
        updates, state = update(mean, state, wanted)
        wanted = optax.apply_updates(wanted, updates)
    assert_trees_close(found, wanted)


def test_a_gradient_that_is_not_finite_is_left_out():
    params = tree()
    optimizer = optax.apply_if_finite(make("dct_adamw"), max_consecutive_errors=5)
    update = Counted(optimizer.update)
    state = optimizer.init(params)
    _, state = update(gradients(params, 0), state, params)
    broken = gradients(params, 1)
    broken["layer"]["kernel"] = broken["layer"]["kernel"].at[0, 0].set(jnp.nan)
    updates, after = update(broken, state, params)
    assert not any(u.any() for u in jax.tree.leaves(updates))
    assert_same_bits(after.inner_state, state.inner_state)
    update.check_once()


def test_steps_can_be_scanned_and_mapped():
    params = {"layer": tree()["layer"]}
    optimizer = make("dct_adamw", refresh_every=2, method="fft")
    stack = [gradients(params, index) for index in range(3)]
    stacked = jax.tree.map(lambda *g: jnp.stack(g), *stack)

    def body(carry, gradient):
        params, state = carry
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    (scanned, _), _ = jax.lax.scan(body, (params, optimizer.init(params)), stacked)
    wanted, _ = train(optimizer, params, 3)
    assert_trees_close(scanned, wanted)
    many = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), params)
    first = jax.tree.map(lambda g: g[:2], stacked)
    states = jax.vmap(optimizer.init)(many)
    updates, _ = jax.jit(jax.vmap(optimizer.update))(first, states, many)
    for index in range(2):
        own = jax.tree.map(lambda p, i=index: p[i], (first, many))
        single, _ = jax.jit(optimizer.update)(own[0], optimizer.init(own[1]), own[1])
        assert_trees_close(jax.tree.map(lambda u, i=index: u[i], updates), single)


def test_state_maps_as_parameters_do():
    params = {"a": tree()["layer"]["kernel"], "b": tree()["embed"]["embedding"]}
    optimizer = scale_by_dct_adam(rank=RANK, matrix_axes={"a": None, "b": None})
    marked = optax.tree_map_params(
        optimizer, lambda leaf: leaf.shape, optimizer.init(params), transform_non_params=lambda _: 0
    )
    assert marked.adam.mu == marked.adam.nu == {"a": (8, 12), "b": (14, 8)}
    assert marked.adam.count == 0
    nothing = {"a": optax.MaskedNode(), "b": optax.MaskedNode()}
    assert marked.matrices.indices == marked.matrices.first_moment == nothing


@pytest.mark.parametrize("name", FACTORIES)
def test_every_option_of_the_core_is_in_the_signature(name):
    kind = lc.TrionConfig if "trion" in name else lc.DCTAdamWConfig
    shown = inspect.signature(FACTORIES[name]).parameters
    fields = set(inspect.signature(kind).parameters) - {"betas"}
    assert fields <= set(shown)
    assert {"b1", "b2", "matrix_axes"} <= set(shown)
    presets = lc.TRION_PRESETS if "trion" in name else lc.PRESETS
    said = {option for options in presets.values() for option in options}
    for field in fields - {"rank"}:
        default = inspect.signature(kind).parameters[field].default
        assert shown[field].default == ("preset" if field in said else default)


@pytest.mark.compiles_nothing
@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize("option", ["rnak", "betas", "lr"])
def test_an_unknown_option_is_refused_by_name(name, option):
    with pytest.raises(TypeError, match=f"has no option '{option}'.*its options are"):
        FACTORIES[name](**{"rank": 2, "learning_rate": 0.1} if name in OPTIMIZERS else {"rank": 2},
                        **{option: (0.9, 0.99)})  # fmt: skip


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rank": 0}, ValueError, "rank must be a positive integer"),
        ({"rank": "0.5"}, TypeError, "rank must be"),
        ({"rank": 2, "b2": 1.0}, ValueError, "b2 must be"),
        ({"rank": 2, "side": "top"}, ValueError, "side must be one of"),
        ({"rank": 2, "feedback_bits": 8}, ValueError, "feedback_bits must be None unless"),
    ],
)
def test_a_bad_value_is_refused_when_the_optimizer_is_made(options, error, message):
    with pytest.raises(error, match=message):
        lowrank_jax.dct_adamw(0.1, **options)
