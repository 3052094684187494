"""The language model of `_llama.py` in JAX, as Equinox modules: the same names, the same weights, the same numbers.

Every weight is `outputs x inputs`, as in PyTorch. Shapes are written with B = batch, T = sequence length, D = model
width, H = heads.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from _weights import BYTES, Weights, deviation, feed_forward_width
from jax import Array


class Linear(eqx.Module):
    """A matrix, ``(outputs, inputs)``."""

    weight: Array

    def __init__(self, inputs: int, outputs: int) -> None:
        self.weight = jnp.zeros((outputs, inputs), jnp.float32)

    def __call__(self, x: Array) -> Array:
        return x @ self.weight.T


class RMSNorm(eqx.Module):
    """Divide by the root mean square over the last axis, then scale each entry."""

    weight: Array
    eps: float = eqx.field(static=True)

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        self.weight = jnp.ones(width, jnp.float32)
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        mean_square = jnp.mean(x * x, axis=-1, keepdims=True)
        return x * jax.lax.rsqrt(mean_square + self.eps) * self.weight


def rotary_table(length: int, head_width: int, base: float = 10_000.0) -> tuple[Array, Array]:
    """Cosines and sines of the rotary embedding, each ``(length, 1, head_width)``."""
    frequencies = base ** (-np.arange(0, head_width, 2) / head_width)
    angles = np.tile(np.outer(np.arange(length), frequencies), (1, 2))[:, None]
    return jnp.asarray(np.cos(angles), jnp.float32), jnp.asarray(np.sin(angles), jnp.float32)


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotate the two halves of each head by its position's angles; ``x`` is (B, T, H, D/H)."""
    first, second = jnp.split(x, 2, axis=-1)
    return x * cos + jnp.concatenate((-second, first), axis=-1) * sin


class Attention(eqx.Module):
    """Causal self-attention with rotary positions."""

    q: Linear
    k: Linear
    v: Linear
    o: Linear
    heads: int = eqx.field(static=True)

    def __init__(self, width: int, heads: int) -> None:
        self.q, self.k, self.v, self.o = (Linear(width, width) for _ in range(4))
        self.heads = heads

    def __call__(self, x: Array) -> Array:
        q, k, v = (
            part(x).reshape(*x.shape[:2], self.heads, -1)  # (B, T, H, D/H)
            for part in (self.q, self.k, self.v)
        )
        cos, sin = rotary_table(x.shape[1], q.shape[-1])
        mixed = jax.nn.dot_product_attention(
            rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True
        )
        return self.o(mixed.reshape(x.shape))


class SwiGLU(eqx.Module):
    """The gated feed-forward part."""

    gate: Linear
    up: Linear
    down: Linear

    def __init__(self, width: int, hidden: int) -> None:
        self.gate, self.up = Linear(width, hidden), Linear(width, hidden)
        self.down = Linear(hidden, width)

    def __call__(self, x: Array) -> Array:
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Block(eqx.Module):
    """Attention and feed-forward, each normalised first and added to the stream."""

    attention_norm: RMSNorm
    attention: Attention
    feed_forward_norm: RMSNorm
    feed_forward: SwiGLU

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        self.attention_norm = RMSNorm(width)
        self.attention = Attention(width, heads)
        self.feed_forward_norm = RMSNorm(width)
        self.feed_forward = SwiGLU(width, hidden)

    def __call__(self, x: Array) -> Array:
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.feed_forward_norm(x))


class Embedding(eqx.Module):
    """A row for each byte."""

    weight: Array

    def __init__(self, width: int) -> None:
        self.weight = jnp.zeros((BYTES, width), jnp.float32)

    def __call__(self, tokens: Array) -> Array:
        return self.weight[tokens]


class Llama(eqx.Module):
    """Bytes in, logits of the next byte out; its matrices are zero before `with_weights`.

    Parameters
    ----------
    width, layers, heads : int
        Size of the model; ``width / heads`` must be an even whole number.
    """

    embedding: Embedding
    blocks: list[Block]
    norm: RMSNorm
    head: Linear

    def __init__(self, width: int, layers: int, heads: int) -> None:
        self.embedding = Embedding(width)
        self.blocks = [Block(width, heads, feed_forward_width(width)) for _ in range(layers)]
        self.norm = RMSNorm(width)
        self.head = Linear(width, BYTES)

    def __call__(self, tokens: Array) -> Array:
        """Logits ``(B, T, 256)`` for tokens ``(B, T)``."""
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def next_byte_loss(model: Llama, windows: Array) -> Array:
    """Mean cross-entropy in nats per byte; ``windows`` is ``(B, T + 1)`` of integers."""
    log_odds = jax.nn.log_softmax(model(windows[:, :-1]))
    return -jnp.mean(jnp.take_along_axis(log_odds, windows[:, 1:, None], axis=-1))


def weights_of(model: Llama) -> dict[str, Array]:
    """The weights by the names that PyTorch gives them."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(model)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def with_weights(model: Llama, weights: Weights) -> Llama:
    """The model with the weights of these names."""
    leaves = [jnp.asarray(weights[name], jnp.float32) for name in weights_of(model)]
    result: Llama = jax.tree.unflatten(jax.tree.structure(model), leaves)
    return result


def drawn_weights(model: Llama, seed: int) -> dict[str, np.ndarray]:
    """Weights to start from, of the deviations that PyTorch's model has, drawn by NumPy."""
    random = np.random.default_rng(seed)
    drawn = {}
    for name, weight in weights_of(model).items():
        if weight.ndim == 2:
            scale = deviation(name, len(model.blocks))
            drawn[name] = (scale * random.standard_normal(weight.shape)).astype(np.float32)
        else:
            drawn[name] = np.asarray(weight)
    return drawn
