"""Steps of the Optax transformations are the core's steps on matrices, and Optax's own Adam on everything else."""

import jax
import lowrank_jax
import numpy as np
import optax
import oracles
import pytest
from helpers import assert_close, assert_identical, dtype_name, from_numpy, normal, untouched
from jax import numpy as jnp
from jax_helpers import (
    AXES,
    MATRICES,
    OPTIMIZERS,
    RANK,
    RATE,
    SCALERS,
    gradients,
    make,
    train,
    tree,
)
from lowrank_jax import MatrixAxes, dct_adamw

import lowrank_core as lc

pytestmark = pytest.mark.usefixtures("optax")

STEPS = 5
CORE = {
    "dct_adamw": (lc.DCTAdamWConfig, lc.dct_adamw_init, lc.dct_adamw_step),
    "trion": (lc.TrionConfig, lc.trion_init, lc.trion_step),
}


def by_hand(name, matrix, gradient_of, steps=STEPS, decay=0.0, **options):
    """``W <- W - lr wd W - lr u`` with ``u`` from the core."""
    kind, init, core_step = CORE[name]
    preset = lc.PRESETS["factored"] if name == "dct_adamw" else {}
    config = kind(rank=RANK, **{**preset, **options})

    @jax.jit
    def step(matrix, state, gradient):
        update, state = core_step(gradient, state, config)
        return matrix - RATE * decay * matrix - RATE * lc.materialize(update), state

    state = init(matrix.shape, config, xp=jnp, dtype=matrix.dtype)
    for index in range(steps):
        matrix, state = step(matrix, state, gradient_of(index))
    return matrix


@pytest.mark.parametrize(
    ("shape", "axes", "turn"),
    [
        ((8, 12), MatrixAxes(1, 0), lambda x: x.T),
        ((12, 8), MatrixAxes(1, 0), lambda x: x.T),
        ((8, 8), MatrixAxes(1, 0), lambda x: x.T),
        ((8, 12), MatrixAxes(0, 1), lambda x: x),
        ((2, 9, 6), MatrixAxes(-1, -2), jnp.matrix_transpose),
        ((9, 2, 6), MatrixAxes(2, 0), lambda x: x.transpose(1, 2, 0)),
        ((8, 2, 5), MatrixAxes((1, 2), 0), lambda x: x.reshape(8, 10).T),
        ((2, 5, 8), MatrixAxes(2, (0, 1)), lambda x: x.reshape(10, 8).T),
        ((3, 2, 4, 6), MatrixAxes(3, (2, 0, 1)), lambda x: x.transpose(3, 2, 0, 1).reshape(6, 24)),
        ((3, 8, 2, 5), MatrixAxes((2, 3), 1), lambda x: x.reshape(3, 8, 10).transpose(0, 2, 1)),
    ],
    ids=["wide", "tall", "layer", "as it is", "scanned", "heads", "fused heads", "output of heads",
         "convolution", "scanned fused heads"],
)  # fmt: skip
def test_matrix_follows_the_core(shape, axes, turn):
    check_follows("dct_adamw", shape, axes, turn)


@pytest.mark.parametrize(
    ("name", "side"), [("dct_adamw", "left"), ("dct_adamw", "right"), ("trion", "auto")]
)
def test_side_and_scale_mean_what_they_mean_in_pytorch(name, side):
    # Of a wide kernel and of a square one, where "auto" cannot tell the sides apart by their lengths.
    for shape in ((8, 12), (8, 8)):
        check_follows(name, shape, MatrixAxes(1, 0), lambda x: x.T, side=side)


def check_follows(name, shape, axes, turn, **options):
    leaf = from_numpy(normal(*shape), jnp, "float64")
    optimizer = make(name, matrix_axes=axes, weight_decay=0.5, **options)
    found, _ = train(optimizer, {"w": leaf}, STEPS)
    expected = by_hand(name, turn(leaf), lambda i: turn(gradients(leaf, i)), decay=0.5, **options)
    assert_close(turn(found["w"]), expected, xp=jnp, dtype="float64", kind="trajectory")


def test_matrix_follows_the_independent_oracle():
    shape = (10, 24)
    leaf = from_numpy(normal(*shape), jnp, "float64")
    options = {"betas": (0.8, 0.95), "eps": 1e-6, "refresh_every": 3}
    oracle = oracles.DCTAdamW(rank=RANK, **options)
    value = np.asarray(leaf).T
    for index in range(STEPS):
        direction = oracle.step(np.asarray(gradients(leaf, index)).T)
        value = value - RATE * 0.5 * value - RATE * direction
    optimizer = dct_adamw(
        RATE,
        0.8,
        0.95,
        1e-6,
        0.5,
        rank=RANK,
        preset=None,
        refresh_every=3,
        matrix_axes=MatrixAxes(1, 0),
    )
    found, state = train(optimizer, {"w": leaf}, STEPS)
    assert_close(found["w"].T, value, xp=jnp, dtype="float64", kind="trajectory")
    assert state[0].matrices.indices["w"].tolist() == sorted(oracle.columns)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_no_matrix_gets_adamw(name):
    params = tree()
    optimizer = make(name, b1=0.8, b2=0.95, eps=1e-6, weight_decay=0.3)
    found, _ = train(optimizer, params, STEPS)
    expected, _ = train(optax.adamw(RATE, 0.8, 0.95, 1e-6, weight_decay=0.3), params, STEPS)
    rest = [("embed", "embedding"), ("layer", "bias")]
    for module, leaf in rest:
        assert_close(
            found[module][leaf], expected[module][leaf], xp=jnp, dtype="float32", kind="trajectory"
        )
    assert not np.allclose(found["layer"]["kernel"], expected["layer"]["kernel"], rtol=1e-3)


def test_a_rank_not_below_the_size_gets_adamw():
    params = {"w": tree()["layer"]["kernel"]}
    axes = MatrixAxes(1, 0)
    full, _ = train(optax.adamw(RATE, weight_decay=0.01), params, STEPS)
    for rank, same in ((8, True), (9, True), (7, False)):
        found, state = train(dct_adamw(RATE, rank=rank, matrix_axes=axes), params, STEPS)
        assert isinstance(state[0].matrices.indices["w"], optax.MaskedNode) is same
        assert np.allclose(found["w"], full["w"], rtol=1e-4) is same


def test_trion_orthonormalises_whole_what_has_fewer_columns_than_the_rank():
    params = {"w": tree()["layer"]["kernel"]}
    axes = MatrixAxes(1, 0)
    more, _ = train(lowrank_jax.trion(RATE, rank=20, matrix_axes=axes), params, STEPS)
    same, _ = train(lowrank_jax.trion(RATE, rank=8, matrix_axes=axes), params, STEPS)
    assert_identical(more["w"], same["w"])


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_dtypes(name, dtype):
    params = tree(dtype=dtype)
    wide = "float64" if dtype == "float64" else "float32"
    optimizer = make(name)
    state = optimizer.init(params)
    updates, after = jax.jit(optimizer.update)(gradients(params, 0), state, params)
    kinds = {dtype_name(update) for update in jax.tree.leaves(updates)}
    assert kinds == {dtype}
    before = [(x.dtype, x.shape) for x in jax.tree.leaves(state)]
    assert [(x.dtype, x.shape) for x in jax.tree.leaves(after)] == before
    floats = {
        dtype_name(x) for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)
    }
    assert floats == {wide}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_half_precision_is_rounded_once(name):
    exact = jax.tree.map(lambda x: x.astype("bfloat16").astype("float32"), tree())
    narrow = jax.tree.map(lambda x: x.astype("bfloat16"), exact)
    gradient = jax.tree.map(lambda x: x.astype("bfloat16"), gradients(exact, 0))
    # A decay that in bfloat16 would be lost against the update it is added to.
    optimizer = make(name, weight_decay=1e-3)
    found, _ = jax.jit(optimizer.update)(gradient, optimizer.init(narrow), narrow)
    wide = jax.tree.map(lambda x: x.astype("float32"), gradient)
    wanted, _ = jax.jit(optimizer.update)(wide, optimizer.init(exact), exact)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert_identical(one, other.astype("bfloat16"))


def test_adam_sees_wide_gradients():
    # Operation by operation: a compiler may skip roundings in between of its own accord.
    optimizer = lowrank_jax.scale_by_dct_adam(rank=RANK)
    narrow = from_numpy(normal(50), jnp, "bfloat16")
    found, state = optimizer.update(narrow, optimizer.init(narrow))
    wanted, exact = optimizer.update(narrow.astype("float32"), optimizer.init(narrow))
    assert_identical(found, wanted.astype("bfloat16"))
    assert_identical(state.adam.mu, exact.adam.mu)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_arguments_are_left_as_they_are(name):
    params = tree()
    optimizer = make(name, **({"residual": "error_feedback"} if name == "dct_adamw" else {}))
    state = optimizer.init(params)
    gradient = gradients(params, 0)
    with untouched(*jax.tree.leaves((params, state, gradient))):
        jax.jit(optimizer.update)(gradient, state, params)


@pytest.mark.parametrize("name", SCALERS)
def test_scaling_alone_has_neither_rate_nor_decay(name):
    params = tree()
    scaler = SCALERS[name](rank=RANK, matrix_axes=AXES)
    whole = make(name.replace("scale_by_", "").replace("dct_adam", "dct_adamw"), weight_decay=0.0)
    found, _ = jax.jit(scaler.update)(gradients(params, 0), scaler.init(params))
    wanted, _ = jax.jit(whole.update)(gradients(params, 0), whole.init(params), params)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert_close(-RATE * one, other, xp=jnp, dtype="float32")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_is_one_tree_of_arrays_with_one_count(name):
    params = tree()
    state = make(name).init(params)[0]
    assert isinstance(state, lowrank_jax.ScaleByLowRankState)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(state))
    assert int(optax.tree.get(state, "count")) == 0
    for field in state.matrices:
        paths = jax.tree_util.tree_flatten_with_path(field)[0]
        names = {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths}
        assert names in (set(), set(MATRICES))


def test_matrices_draw_by_path_whatever_else_there_is():
    params = tree()
    optimizer = make("dct_adamw", selection="sampled")
    keys = {
        name: optimizer.init(params)[0].matrices.key[name]["kernel"].tolist()
        for name in ("layer", "scanned")
    }
    assert len({key for found in keys.values() for key in found}) == 3
    alone = optimizer.init({"layer": params["layer"]})[0].matrices.key
    assert alone["layer"]["kernel"].tolist() == keys["layer"]
