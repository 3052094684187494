"""Which leaves are matrices along which axes: as stated, as read off Flax and Equinox names, or refused."""

import functools

import equinox as eqx
import flax.linen as nn
import jax
import optax
import pytest
from flax import nnx
from jax import numpy as jnp
from jax_helpers import AXES, MATRICES, RANK, train, tree
from lowrank_jax import MatrixAxes, axes_by_name, dct_adamw, matrix_mask, trion

pytestmark = [
    pytest.mark.usefixtures("optax"),
    # The models here are so small that tables and heads are most of them.
    pytest.mark.filterwarnings("ignore:plain Adam steps most of the parameters:UserWarning"),
]

KERNEL, WEIGHT = MatrixAxes(outputs=1, inputs=0), MatrixAxes(outputs=0, inputs=1)
#: The default rule for the small models here.
SMALL = functools.partial(axes_by_name, min_size=4)


def stepped(params, **options):
    """Path -> shape of the moments of what is stepped as a matrix."""
    state = jax.eval_shape(dct_adamw(0.1, rank=2, **options).init, params)
    moments = state[0].matrices.first_moment
    return {
        jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value"): leaf.shape
        for path, leaf in jax.tree_util.tree_flatten_with_path(moments)[0]
    }


@pytest.mark.compiles_nothing
@pytest.mark.parametrize(
    ("path", "shape", "axes"),
    [
        ("layers/0/kernel", (40, 60), KERNEL),
        ("w", (40, 60), KERNEL),
        ("layers/0/weight", (40, 60), WEIGHT),
        ("cell/weight_ih", (96, 32), WEIGHT),
        ("kernel", (60,), None),
        ("pre_head/kernel", (40, 60), KERNEL),
        ("heads/kernel", (40, 60), None),
        ("head/mlp/kernel", (40, 60), KERNEL),
        # Vectors of layers under a scan.
        ("scanned/norm/scale", (40, 60), None),
        ("scanned/mlp/bias", (40, 60), None),
        ("layers/attention/relative_bias", (40, 60), None),
        ("layers/post_norm/weight", (40, 60), None),
        ("layers/A_log", (40, 60), None),
        # Tables.
        ("embed/embedding", (40, 60), None),
        ("Token_Embedder/kernel", (40, 60), None),
        ("embedding/weight", (40, 60), None),
        ("wte/weight", (40, 60), None),
        ("tok/weight", (40, 60), None),
        ("tok_emb/weight", (40, 60), None),
        ("pos/kernel", (40, 60), None),
        ("layers/attention/pos_proj/kernel", (40, 60), KERNEL),
        ("blocks/0/token_mixing/kernel", (40, 60), KERNEL),
        # Heads: some under any name above them, others only where they stand in no layer.
        ("lm_head/kernel", (40, 60), None),
        ("decoder/logits/kernel", (40, 60), None),
        ("decoder/logits_dense/kernel", (40, 60), None),
        ("head/weight", (40, 60), None),
        ("fc/kernel", (40, 60), None),
        ("classifier/out_proj/kernel", (40, 60), None),
        ("classifier/6/kernel", (40, 60), None),
        ("classifier/dense/kernel", (40, 60), KERNEL),
        ("value_head/kernel", (40, 60), None),
        ("output/kernel", (40, 60), None),
        ("layers/0/attention/output/kernel", (40, 60), KERNEL),
        ("layers/0/attention/output/dense/kernel", (40, 60), KERNEL),
        ("h_3/attn/out/kernel", (40, 60), KERNEL),
        # Routers; the gate of a gated unit has as many outputs as inputs at least.
        ("layers/0/moe/gate/kernel", (60, 40), None),
        ("layers/0/mlp/gate/kernel", (40, 60), KERNEL),
        ("layers/0/mlp/gate_proj/kernel", (60, 40), KERNEL),
        ("layers/0/router/kernel", (40, 60), None),
        # Nothing to save.
        ("layers/0/kernel", (31, 600), None),
        ("layers/0/kernel", (600, 31), None),
        ("layers/0/kernel", (32, 32), KERNEL),
    ],
)
def test_default_by_name(path, shape, axes):
    assert axes_by_name(path, jax.ShapeDtypeStruct(shape, jnp.float32)) == axes


def test_least_size_of_a_matrix_can_be_set():
    leaf = jax.ShapeDtypeStruct((8, 12), jnp.float32)
    assert axes_by_name("up/kernel", leaf) is None
    assert axes_by_name("up/kernel", leaf, min_size=8) == KERNEL
    assert stepped({"up": {"kernel": leaf}}, matrix_axes=SMALL) == {"up/kernel": (12, 2)}
    assert matrix_mask({"kernel": leaf}, functools.partial(axes_by_name, min_size=9)) == {
        "kernel": False
    }


class Linen(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(11, 8, name="embed")(tokens)
        x = nn.MultiHeadDotProductAttention(num_heads=2, name="attention")(x)
        x = nn.Dense(12, name="up")(x)
        x = nn.LayerNorm(name="norm")(x)
        return nn.Dense(11, name="lm_head")(x)


class NNX(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(11, 8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, rngs=rngs)
        self.up = nnx.Linear(8, 12, rngs=rngs)
        self.norm = nnx.LayerNorm(12, rngs=rngs)
        self.lm_head = nnx.Linear(12, 11, rngs=rngs)


class Equinox(eqx.Module):
    embed: eqx.nn.Embedding
    up: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    lm_head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.embed = eqx.nn.Embedding(11, 8, key=keys[0])
        self.up = eqx.nn.Linear(8, 12, key=keys[1])
        self.norm = eqx.nn.LayerNorm(12)
        self.lm_head = eqx.nn.Linear(12, 11, key=keys[2])


def linen_params():
    return jax.eval_shape(Linen().init, jax.random.key(0), jnp.zeros((1, 3), jnp.int32))


def nnx_params():
    return nnx.state(nnx.eval_shape(lambda: NNX(nnx.Rngs(0))), nnx.Param)


@pytest.mark.parametrize("params", [linen_params, nnx_params], ids=["linen", "nnx"])
def test_flax_kernels_are_inputs_by_outputs(params):
    params = params()
    prefix = "params/" if "params" in params else ""
    heads = {
        f"{prefix}attention/{name}/kernel": (8, 2) for name in ("query", "key", "value", "out")
    }
    # 12 x 8 as a PyTorch weight: transformed along the 8 inputs, moments for 12 outputs.
    assert stepped(params, matrix_axes=SMALL) == {f"{prefix}up/kernel": (12, 2), **heads}


def test_equinox_weights_are_outputs_by_inputs():
    model = eqx.filter_eval_shape(Equinox, jax.random.key(0))
    assert model.up.weight.shape == (12, 8)
    assert stepped(model, matrix_axes=SMALL) == {"up/weight": (12, 2)}


def test_nnx_optimizer_trains():
    model = NNX(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, dct_adamw(1e-2, rank=2, matrix_axes=SMALL), wrt=nnx.Param)
    before = model.up.kernel[...]

    @nnx.jit
    def step(model, optimizer):
        def loss(model):
            return jnp.mean(model.lm_head(model.norm(model.up(jnp.ones((2, 8))))) ** 2)

        value, gradient = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradient)
        return value

    losses = [float(step(model, optimizer)) for _ in range(20)]
    assert losses[-1] < 0.7 * losses[0]
    assert not jnp.array_equal(before, model.up.kernel[...])


def test_equinox_model_trains():
    model = Equinox(jax.random.key(0))
    optimizer = dct_adamw(1e-2, rank=2, matrix_axes=SMALL)
    state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model, state):
        def loss(model):
            return jnp.mean(model.lm_head(model.norm(model.up(jnp.ones(8)))) ** 2)

        value, gradient = eqx.filter_value_and_grad(loss)(model)
        updates, state = optimizer.update(gradient, state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state, value

    losses = []
    for _ in range(20):
        model, state, value = step(model, state)
        losses.append(float(value))
    assert losses[-1] < 0.7 * losses[0]


def test_a_tree_says_what_a_function_says():
    params = tree()

    def rule(path, leaf):
        if path == "scanned/kernel":
            return MatrixAxes(-1, -2)
        return SMALL(path, leaf)

    assert set(stepped(params, matrix_axes=AXES)) == set(MATRICES)
    assert stepped(params, matrix_axes=rule) == stepped(params, matrix_axes=AXES)
    kernels = {"a": params["layer"]["kernel"], "b": params["embed"]}
    assert set(stepped(kernels, matrix_axes=KERNEL)) == {"a", "b/embedding"}
    assert stepped(params, matrix_axes=None) == {}


def test_mask_of_matrices():
    assert matrix_mask(tree(), AXES) == {
        "embed": {"embedding": False},
        "layer": {"kernel": True, "bias": False},
        "scanned": {"kernel": True},
    }
    assert matrix_mask(tree())["scanned"] == {"kernel": False}
    assert matrix_mask(tree(), SMALL)["scanned"] == {"kernel": True}


def test_labels_by_mask_give_matrices_a_rate_of_their_own():
    params = tree()
    label = {True: "matrix", False: "rest"}
    optimizer = optax.partition(
        {
            "matrix": trion(0.02, rank=RANK, matrix_axes=AXES),
            "rest": optax.adamw(0.003),
        },
        lambda p: jax.tree.map(label.__getitem__, matrix_mask(p, AXES)),
    )
    found, _ = train(optimizer, params, 1)
    alone, _ = train(trion(0.02, rank=RANK, matrix_axes=AXES), params, 1)
    adamw, _ = train(optax.adamw(0.003), params, 1)
    assert jnp.array_equal(found["layer"]["kernel"], alone["layer"]["kernel"])
    assert jnp.array_equal(found["layer"]["bias"], adamw["layer"]["bias"])


@pytest.mark.parametrize(
    ("axes", "error", "message"),
    [
        (MatrixAxes(2, 0), ValueError, r"must name axes of the leaf.*'w' of shape \(8, 6\)"),
        (MatrixAxes(0, -3), ValueError, "must name axes of the leaf"),
        (MatrixAxes(0, 0), ValueError, "none twice"),
        (MatrixAxes(-1, 1), ValueError, "none twice"),
        (MatrixAxes((), (0, 1)), ValueError, "at least one output"),
        ({"v": KERNEL}, ValueError, "says nothing of 'w'"),
        (
            lambda path, leaf: (1, 0),
            TypeError,
            r"must give MatrixAxes or None, got \(1, 0\) for 'w'",
        ),
    ],
)
def test_bad_axes_are_refused(axes, error, message):
    with pytest.raises(error, match=message):
        dct_adamw(0.1, rank=2, matrix_axes=axes).init({"w": jnp.zeros((8, 6))})


def test_a_matrix_that_cannot_be_stepped_is_named():
    params = {"layer": {"kernel": jnp.zeros((6, 8))}}
    with pytest.raises(ValueError, match=r"'layer/kernel' cannot be stepped.*power of two.*6"):
        dct_adamw(0.1, rank=2, preset=None, basis="hadamard", matrix_axes=SMALL).init(params)
