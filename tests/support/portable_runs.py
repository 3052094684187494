"""One model in two frameworks, which call and store its parameters differently, trained on the same gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import lowrank_jax
import lowrank_torch
import numpy as np
import optax
import torch
from helpers import normal
from jax import numpy as jnp
from lowrank_jax import MatrixAxes

RATE, DECAY, RANK = 0.02, 0.1, 3
ADAMW = {"algorithm": "adamw"}
Array = Any


class Leaf(NamedTuple):
    """A parameter as PyTorch has it, and as Flax does."""

    shape: tuple[int, ...]
    #: Its path in JAX.
    path: str
    to_jax: Callable[[Array], Array] = np.transpose
    to_torch: Callable[[Array], Array] = np.transpose
    axes: MatrixAxes | None = MatrixAxes(1, 0)
    #: Options of its group in PyTorch.
    group: Mapping[str, Any] = {}


def same(x: Array) -> Array:
    return x


#: What a language model is made of, every kernel stored transposed in JAX.
MODEL = {
    "layers.0.up.weight": Leaf((20, 12), "layers/0/up/kernel"),
    "layers.1.up.weight": Leaf((20, 12), "layers/1/up/kernel"),
    "layers.0.down.weight": Leaf((12, 20), "layers/0/down/kernel"),
    "layers.0.up.bias": Leaf((20,), "layers/0/up/bias", axes=None),
    # Fewer columns than the rank: stepped by AdamW, though said to be a matrix.
    "narrow.weight": Leaf((2, 12), "narrow/kernel"),
    "embed.weight": Leaf((15, 12), "embed/embedding", same, same, None, ADAMW),
    "head.weight": Leaf((15, 12), "head/kernel", axes=None, group=ADAMW),
    "norm.weight": Leaf((12,), "norm/scale", same, same, None),
}

#: Parameters of more than two dimensions, and those that are several matrices.
SHAPED = {
    "conv.weight": Leaf(
        (6, 4, 3, 2),
        "conv/kernel",
        lambda w: w.transpose(2, 3, 1, 0),
        lambda k: k.transpose(3, 2, 0, 1),
        MatrixAxes(3, (2, 0, 1)),
    ),
    "query.weight": Leaf(
        (16, 12),
        "query/kernel",
        lambda w: w.reshape(2, 8, 12).transpose(2, 0, 1),
        lambda k: k.transpose(1, 2, 0).reshape(16, 12),
        MatrixAxes((1, 2), 0),
    ),
    "heads.weight": Leaf(
        (16, 12),
        "heads/kernel",
        lambda w: w.reshape(2, 8, 12).transpose(2, 0, 1),
        lambda k: k.transpose(1, 2, 0).reshape(16, 12),
        MatrixAxes(2, 0),
        {"num_heads": 2},
    ),
    "experts": Leaf(
        (3, 10, 14),
        "experts",
        lambda w: w.transpose(0, 2, 1),
        lambda k: k.transpose(0, 2, 1),
        MatrixAxes(-1, -2),
        {"batch_dims": 1},
    ),
    "patch.weight": Leaf(
        (5, 2, 3),
        "patch/kernel",
        lambda w: w.transpose(2, 1, 0),
        lambda k: k.transpose(2, 1, 0),
        MatrixAxes(2, (1, 0)),
        ADAMW,
    ),
}


def start(model: Mapping[str, Leaf]) -> dict[str, Array]:
    """The first weights, as PyTorch has them."""
    return {
        name: normal(*leaf.shape, seed=place).astype(np.float32)
        for place, (name, leaf) in enumerate(model.items())
    }


def gradient(weight: Array, place: int, step: int) -> Array:
    """A gradient that depends on the weight, as one does: so that every step tells on all after it."""
    noise = normal(*weight.shape, seed=1000 + 50 * step + place).astype(np.float32)
    return 0.1 * weight + noise


class TorchRun:
    """Training in PyTorch."""

    def __init__(self, name: str, model: Mapping[str, Leaf] = MODEL, **options: Any) -> None:
        self.model, self.made = model, (name, model, options)
        kind = {"dct_adamw": lowrank_torch.DCTAdamW, "trion": lowrank_torch.Trion}[name]
        self.parameters = {
            name: torch.nn.Parameter(torch.tensor(weight)) for name, weight in start(model).items()
        }
        groups = [
            {"params": [(name, parameter)], **model[name].group}
            for name, parameter in self.parameters.items()
        ]
        self.optimizer = kind(
            groups, **{"lr": RATE, "weight_decay": DECAY, "rank": RANK, **options}
        )

    def fresh(self) -> TorchRun:
        """A run at its start."""
        name, model, options = self.made
        return TorchRun(name, model, **options)

    def train(self, steps: int, begin: int = 0) -> dict[str, Array]:
        """Do steps ``begin .. begin + steps - 1`` and return the weights."""
        for step in range(begin, begin + steps):
            for place, parameter in enumerate(self.parameters.values()):
                weight = parameter.detach().numpy()
                parameter.grad = torch.tensor(gradient(weight, place, step))
            self.optimizer.step()
        return self.weights()

    def weights(self) -> dict[str, Array]:
        return {name: p.detach().numpy().copy() for name, p in self.parameters.items()}

    def put(self, weights: Mapping[str, Array]) -> None:
        """Set the weights."""
        for name, parameter in self.parameters.items():
            parameter.data.copy_(torch.tensor(weights[name]))

    def save(self, path: Any, **how: Any) -> None:
        self.optimizer.save_state(path, **how)

    def load(self, path: Any, **how: Any) -> None:
        self.optimizer.load_state(path, **how)


def axes_of(model: Mapping[str, Leaf]) -> Callable[[str, Any], MatrixAxes | None]:
    by_path = {leaf.path: None if leaf.group == ADAMW else leaf.axes for leaf in model.values()}
    return lambda path, _: by_path[path]


class JaxRun:
    """Training in JAX; ``build`` makes the transformation of the rule's factory and its options."""

    def __init__(
        self,
        name: str,
        model: Mapping[str, Leaf] = MODEL,
        build: Callable[..., Any] | None = None,
        **options: Any,
    ) -> None:
        self.model = model
        factory = {"dct_adamw": lowrank_jax.dct_adamw, "trion": lowrank_jax.trion}[name]
        given = {"rank": RANK, "weight_decay": DECAY, "matrix_axes": axes_of(model), **options}
        rate = given.pop("lr", RATE)
        self.optimizer = (build or (lambda make, rate, **rest: make(rate, **rest)))(
            factory, rate, **given
        )

        def step(params: Any, state: Any, gradients: Any) -> Any:
            updates, state = self.optimizer.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        self.compiled = jax.jit(step)
        self.begin()

    def begin(self) -> None:
        self.put(start(self.model))
        self.state = self.optimizer.init(self.params)

    def fresh(self) -> JaxRun:
        """A run at its start, which shares what has been compiled."""
        other = copy.copy(self)
        other.begin()
        return other

    def train(self, steps: int, begin: int = 0) -> dict[str, Array]:
        for step in range(begin, begin + steps):
            gradients = {
                name: gradient(weight, place, step)
                for place, (name, weight) in enumerate(self.weights().items())
            }
            self.params, self.state = self.compiled(
                self.params, self.state, self.tree_of(gradients)
            )
        return self.weights()

    def tree_of(self, weights: Mapping[str, Array]) -> Any:
        """What PyTorch has by name as nested dictionaries, stored as Flax stores it."""
        tree: dict[str, Any] = {}
        for name, leaf in self.model.items():
            *folders, last = leaf.path.split("/")
            node = tree
            for folder in folders:
                node = node.setdefault(folder, {})
            node[last] = jnp.asarray(np.ascontiguousarray(leaf.to_jax(weights[name])))
        return tree

    def weights(self) -> dict[str, Array]:
        found = {}
        for name, leaf in self.model.items():
            node = self.params
            for part in leaf.path.split("/"):
                node = node[part]
            found[name] = np.ascontiguousarray(leaf.to_torch(np.asarray(node)))
        return found

    def put(self, weights: Mapping[str, Array]) -> None:
        self.params = self.tree_of(weights)

    def save(self, path: Any, **how: Any) -> None:
        lowrank_jax.save_state(path, self.optimizer, self.state, self.params, **how)

    def load(self, path: Any, **how: Any) -> None:
        self.state = lowrank_jax.load_state(path, self.optimizer, self.state, self.params, **how)


RUNS = {"torch": TorchRun, "jax": JaxRun}
