"""The default rule on whole models: Flax Linen, NNX and Equinox themselves, and trees as MaxText and others have them.

What is not installed here is played by trees of the same names and shapes, and said to be.
"""

import equinox as eqx
import flax.linen as nn
import jax
import lowrank_jax
import pytest
from flax import nnx
from jax import numpy as jnp
from lowrank_jax import MatrixAxes
from lowrank_jax._axes import axes_of_leaves
from lowrank_jax._rules import axes_by_name

pytestmark = [
    pytest.mark.usefixtures("optax"),
    pytest.mark.filterwarnings("ignore:plain Adam steps most of the parameters:UserWarning"),
]

LAYERS, WIDTH, HEADS, HEAD, INNER, WORDS = 3, 64, 4, 16, 128, 500
QUERIES = ("query", "key", "value")


def matrices(tree):
    """Path -> the axes of the stack, the outputs and the inputs of every matrix."""
    return {
        path: (axes.batch, axes.outputs, axes.inputs)
        for path, _, axes in axes_of_leaves(tree, axes_by_name)
        if axes is not None
    }


def shaped(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def under(prefix, found):
    return {path.removeprefix(prefix): axes for path, axes in found.items() if prefix in path}


#: What each kernel of a block of a transformer is in a layer by itself, and in layers stacked along the first axis.
BLOCK = {
    **{f"attention/{name}/kernel": ((), (1, 2), (0,)) for name in QUERIES},
    "attention/out/kernel": ((), (2,), (0, 1)),
    "up/kernel": ((), (1,), (0,)),
    "down/kernel": ((), (1,), (0,)),
}
STACKED = {
    path: ((0,), *(tuple(axis + 1 for axis in axes) for axes in own))
    for path, (_, *own) in BLOCK.items()
}


class LinenBlock(nn.Module):
    use_bias: bool = True

    @nn.compact
    def __call__(self, x, _=None):
        y = nn.LayerNorm(name="norm", use_bias=self.use_bias)(x)
        x = x + nn.MultiHeadDotProductAttention(HEADS, name="attention", use_bias=self.use_bias)(y)
        y = nn.gelu(nn.Dense(INNER, name="up", use_bias=self.use_bias)(x))
        return x + nn.Dense(WIDTH, name="down", use_bias=self.use_bias)(y), None


class LinenModel(nn.Module):
    scan: bool = False
    use_bias: bool = True

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(WORDS, WIDTH, name="tok")(tokens)
        block = {"use_bias": self.use_bias}
        if self.scan:
            scanned = nn.scan(
                LinenBlock,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=LAYERS,
            )
            x, _ = scanned(**block, name="layers")(x, None)
        else:
            x, _ = LinenBlock(**block, name="layers_0")(x)
        return nn.Dense(WORDS, name="logits_dense")(x)


def linen_params(**options):
    tokens = jnp.zeros((1, 3), jnp.int32)
    return jax.eval_shape(LinenModel(**options).init, jax.random.key(0), tokens)


@pytest.mark.parametrize("use_bias", [True, False], ids=["biases", "no biases"])
def test_linen_model(use_bias):
    assert under("params/layers_0/", matrices(linen_params(use_bias=use_bias))) == BLOCK
    scanned = matrices(linen_params(scan=True, use_bias=use_bias))
    assert under("params/layers/", scanned) == STACKED
    assert len(scanned) == len(STACKED), "neither the table nor the head is a matrix"


class NNXBlock(nnx.Module):
    def __init__(self, rngs, use_bias=True):
        options = {"rngs": rngs, "use_bias": use_bias}
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, **options)
        self.up = nnx.Linear(WIDTH, INNER, **options)
        self.down = nnx.Linear(INNER, WIDTH, **options)

    def __call__(self, x):
        x = x + self.attention(self.norm(x))
        return x + self.down(nnx.gelu(self.up(x)))


class NNXModel(nnx.Module):
    def __init__(self, rngs, use_bias=True):
        self.tok = nnx.Embed(WORDS, WIDTH, rngs=rngs)
        self.first = nnx.List([NNXBlock(rngs, use_bias)])
        make = nnx.vmap(lambda rngs: NNXBlock(rngs, use_bias), in_axes=0, out_axes=0)
        self.blocks = nnx.split_rngs(splits=LAYERS)(make)(rngs)
        self.lm_head = nnx.Linear(WIDTH, WORDS, rngs=rngs)

    def __call__(self, tokens):
        x = self.first[0](self.tok(tokens))

        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def scanned(x, block):
            return block(x)

        return self.lm_head(scanned(x, self.blocks))


@pytest.mark.parametrize("use_bias", [True, False], ids=["biases", "no biases"])
def test_nnx_model(use_bias):
    model = nnx.eval_shape(lambda: NNXModel(nnx.Rngs(0), use_bias))
    found = matrices(nnx.state(model, nnx.Param))
    assert under("first/0/", found) == BLOCK
    assert under("blocks/", found) == STACKED
    assert len(found) == len(BLOCK) + len(STACKED)


@pytest.mark.slow
def test_nnx_model_with_scanned_layers_trains():
    model = NNXModel(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, lowrank_jax.dct_adamw(3e-3, rank=16), wrt=nnx.Param)
    tokens = jax.random.randint(jax.random.key(1), (2, 8), 0, WORDS)

    @nnx.jit
    def step(model, optimizer):
        def loss(model):
            logs = jax.nn.log_softmax(model(tokens))
            return -jnp.mean(jnp.take_along_axis(logs, tokens[..., None], axis=-1))

        value, gradient = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradient)
        return value

    losses = [float(step(model, optimizer)) for _ in range(10)]
    assert losses[-1] < 0.7 * losses[0]


class EquinoxBlock(eqx.Module):
    norm: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    up: eqx.nn.Linear

    def __init__(self, key):
        self.norm = eqx.nn.LayerNorm(WIDTH)
        self.attention = eqx.nn.MultiheadAttention(HEADS, WIDTH, key=key)
        self.up = eqx.nn.Linear(WIDTH, INNER, key=key)


class EquinoxModel(eqx.Module):
    words: eqx.nn.Embedding
    layers: EquinoxBlock
    gru: eqx.nn.GRUCell
    lstm: eqx.nn.LSTMCell
    wide: eqx.nn.Conv1d
    pool: eqx.nn.ConvTranspose2d
    depthwise: eqx.nn.Conv2d
    norms: list[eqx.nn.RMSNorm]
    head: eqx.nn.Linear

    def __init__(self, key):
        self.words = eqx.nn.Embedding(WORDS, WIDTH, key=key)
        self.layers = eqx.filter_vmap(EquinoxBlock)(jax.random.split(key, LAYERS))
        self.gru = eqx.nn.GRUCell(WIDTH, INNER, key=key)
        self.lstm = eqx.nn.LSTMCell(WIDTH, INNER, key=key)
        self.wide = eqx.nn.Conv1d(WIDTH, INNER, 3, key=key)
        self.pool = eqx.nn.ConvTranspose2d(WIDTH, INNER, 3, key=key)
        self.depthwise = eqx.nn.Conv2d(WIDTH, WIDTH, 7, groups=WIDTH, key=key)
        self.norms = [eqx.nn.RMSNorm((48, WIDTH))]
        self.head = eqx.nn.Linear(WIDTH, WORDS, key=key)


def test_equinox_model():
    model = eqx.filter_eval_shape(EquinoxModel, jax.random.key(0))
    stack = ((0,), (1,), (2,))
    whole = ((), (0,), (1,))
    assert matrices(eqx.filter(model, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))) == {
        **{
            f"layers/attention/{name}_proj/weight": stack
            for name in ("query", "key", "value", "output")
        },
        "layers/up/weight": stack,
        "gru/weight_ih": whole,
        "gru/weight_hh": whole,
        "lstm/weight_ih": whole,
        "lstm/weight_hh": whole,
        "wide/weight": ((), (0,), (1, 2)),
        "pool/weight": ((), (0,), (1, 2, 3)),
    }


def maxtext_params(place):
    """Names and shapes of MaxText's parameters (a stand-in: it is not installed), layers stacked at ``place``."""

    def stacked(*shape):
        return shaped(*shape[:place], LAYERS, *shape[place:])

    layers = {
        "pre_self_attention_layer_norm": {"scale": stacked(WIDTH)},
        "self_attention": {
            **{name: {"kernel": stacked(WIDTH, HEADS, HEAD)} for name in QUERIES},
            "out": {"kernel": stacked(HEADS, HEAD, WIDTH)},
        },
        "mlp": {
            "wi_0": {"kernel": stacked(WIDTH, INNER)},
            "wi_1": {"kernel": stacked(WIDTH, INNER)},
            "wo": {"kernel": stacked(INNER, WIDTH)},
        },
    }
    experts = {
        "gate": {"kernel": stacked(WIDTH, 48)},
        "wi_0": stacked(48, WIDTH, INNER),
        "wo": stacked(48, INNER, WIDTH),
    }
    decoder = {
        "layers": layers,
        "moe_layers": {"norm": {"scale": stacked(WIDTH)}, "MoeBlock_0": experts},
        "decoder_norm": {"scale": shaped(WIDTH)},
        "logits_dense": {"kernel": shaped(WIDTH, WORDS)},
    }
    return {"params": {"token_embedder": {"embedding": shaped(WORDS, WIDTH)}, "decoder": decoder}}


@pytest.mark.parametrize("place", [0, 1])
def test_tree_like_maxtext(place):
    def stacked(outputs, inputs, ndim):
        """Axes of a kernel of ``ndim`` axes, with the layers' axis put between them."""
        new = {axis: axis + (axis >= place) for axis in range(ndim)}
        outputs, inputs = (tuple(new[axis] for axis in axes) for axes in (outputs, inputs))
        batch = tuple(axis for axis in range(ndim + 1) if axis not in (*outputs, *inputs))
        return batch, outputs, inputs

    dense, expert = stacked((1,), (0,), 2), stacked((2,), (1,), 3)
    attention = stacked((1, 2), (0,), 3)
    assert under("params/decoder/", matrices(maxtext_params(place))) == {
        **{f"layers/self_attention/{name}/kernel": attention for name in QUERIES},
        "layers/self_attention/out/kernel": stacked((2,), (0, 1), 3),
        **{f"layers/mlp/{name}/kernel": dense for name in ("wi_0", "wi_1", "wo")},
        "moe_layers/MoeBlock_0/wi_0": expert,
        "moe_layers/MoeBlock_0/wo": expert,
    }


def test_tree_like_haiku():
    """A stand-in for Haiku, whose modules' names have slashes in them, and whose kernels are called ``w``."""
    tree = {
        "lm/~/embed": {"embeddings": shaped(WORDS, WIDTH)},
        "lm/~/h0_attn/query": {"w": shaped(WIDTH, WIDTH), "b": shaped(WIDTH)},
        "lm/~/h0_norm": {"scale": shaped(WIDTH), "offset": shaped(WIDTH)},
        "lm/__layer_stack/mlp/linear": {
            "w": shaped(LAYERS, WIDTH, INNER),
            "b": shaped(LAYERS, INNER),
        },
        "conv2_d": {"w": shaped(3, 3, WIDTH, INNER)},
        "gru": {"w_i": shaped(WIDTH, 3 * INNER), "w_h": shaped(INNER, 3 * INNER)},
        "lm/~/head": {"w": shaped(WIDTH, WORDS)},
    }
    whole = ((), (1,), (0,))
    assert matrices(tree) == {
        "lm/~/h0_attn/query/w": whole,
        "lm/__layer_stack/mlp/linear/w": ((0,), (2,), (1,)),
        "conv2_d/w": ((), (3,), (2, 0, 1)),
        "gru/w_i": whole,
        "gru/w_h": whole,
    }


def test_tree_like_gemma():
    """A stand-in for Gemma, which has heads in front and kernels under the names of einsums."""
    layer = {
        "attn": {
            "q_einsum": {"w": shaped(HEADS, WIDTH, 32)},
            "kv_einsum": {"w": shaped(2, 1, WIDTH, 32)},
            "attn_vec_einsum": {"w": shaped(HEADS, 32, WIDTH)},
        },
        "mlp": {"gating_einsum": shaped(2, WIDTH, INNER), "linear": shaped(INNER, WIDTH)},
        "pre_ffw_norm": {"scale": shaped(WIDTH)},
    }
    tree = {"embedder": {"input_embedding": shaped(WORDS, WIDTH)}, "layer_0": layer}
    heads = ((0,), (2,), (1,))
    assert under("layer_0/", matrices(tree)) == {
        "attn/q_einsum/w": heads,
        "attn/kv_einsum/w": ((0, 1), (3,), (2,)),
        "attn/attn_vec_einsum/w": heads,
        "mlp/gating_einsum": heads,
        "mlp/linear": ((), (1,), (0,)),
    }


@pytest.mark.compiles_nothing
@pytest.mark.parametrize(
    ("path", "shape", "axes"),
    [
        # Queries, keys and values in one kernel: a matrix each.
        ("attention/qkv/kernel", (64, 3, 4, 16), MatrixAxes((2, 3), 0)),
        ("self_attention/o_proj/kernel", (4, 16, 64), MatrixAxes(2, (0, 1))),
        # Layers are fewer than features, whether the first or the second axis.
        ("layers/self_attention/query/kernel", (64, 3, 4, 16), MatrixAxes((2, 3), 0)),
        ("layers/self_attention/query/kernel", (3, 64, 4, 16), MatrixAxes((2, 3), 1)),
        ("layers/mlp/wi/kernel", (64, 3, 128), MatrixAxes(2, 0)),
        ("layers/mlp/wi/kernel", (3, 64, 128), MatrixAxes(2, 1)),
        ("experts/weight", (8, 64, 32), MatrixAxes(1, 2)),
        ("Conv_0/kernel", (3, 3, 64, 128), MatrixAxes(3, (2, 0, 1))),
        ("stem/kernel", (7, 7, 64, 128), MatrixAxes(3, (2, 0, 1))),
        ("embedding/kernel", (16, 16, 3, 64), MatrixAxes(3, (2, 0, 1))),
        ("dwconv/kernel", (7, 7, 1, 128), None),
        ("pool/cls_token", (1, 1, 64), None),
    ],
)
def test_more_axes_by_name(path, shape, axes):
    assert axes_by_name(path, shaped(*shape)) == axes


def test_head_is_known_by_the_size_of_the_vocabulary():
    tree = {
        "tok": {"embedding": shaped(5000, WIDTH)},
        "to_words": {"kernel": shaped(WIDTH, 5000)},
        "layers_0": {"wide": {"kernel": shaped(WIDTH, 5000)}},
    }
    assert matrices(tree) == {"layers_0/wide/kernel": ((), (1,), (0,))}


def test_functions_that_ask_the_rule_know_the_place_too():
    def rule(path, leaf):
        return None if "value" in path else axes_by_name(path, leaf)

    params = maxtext_params(1)
    wanted = {path: axes for path, axes in matrices(params).items() if "value" not in path}
    found = axes_of_leaves(params, rule)
    assert {path for path, _, axes in found if axes is not None} == set(wanted)
