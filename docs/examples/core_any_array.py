"""Train a classifier of handwritten digits on the arrays of any library, with the core's functions alone.

    python docs/examples/core_any_array.py --array jax

reads scikit-learn's 1797 digits of 8 x 8 pixels, trains a network of one hidden layer whose gradients
are written out below, and prints how many held-out digits it tells right and how many bytes of
optimizer state it took: the same numbers with NumPy, CuPy, PyTorch and JAX. There is no training
framework here: `dct_adamw_init`, `dct_adamw_step` and `materialize` are all of the optimizer.

Needs `pip install 'lowrank-core[examples]'`, for JAX `'lowrank-core[jax]'` and for CuPy
`'lowrank-core[cupy-cuda12x]'` and a GPU.
"""

import sys
import time
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from _settings import OneLineParser, learning_rate, rank, whole
from rich.console import Console
from rich.table import Table

from lowrank_core import (
    DCTAdamWConfig,
    dct_adamw_init,
    dct_adamw_step,
    materialize,
    ops_for_namespace,
    state_bytes,
)

HIDDEN = 128
BATCH = 64
HELD_OUT = 360
WEIGHT_DECAY = 0.01
# Name of a library: the module whose functions its users call, and what installs it.
LIBRARIES = {
    "numpy": ("numpy", "lowrank-core[examples]"),
    "cupy": ("cupy", "lowrank-core[cupy-cuda12x]"),
    "torch": ("torch", "lowrank-core[torch]"),
    "jax": ("jax.numpy", "lowrank-core[jax]"),
}


class UnavailableError(Exception):
    """A library that was asked for cannot be used; the message is one line."""


class Digits(NamedTuple):
    """Training and held-out digits: pixels and a one for the bias, ``(N, 65)``, and one-hot labels, ``(N, 10)``."""

    x: Any
    y: Any
    held_out_x: Any
    held_out_y: Any


class Result(NamedTuple):
    """What a training reached."""

    #: Share of the held-out digits told right.
    accuracy: float
    #: Mean cross-entropy over them in nats.
    loss: float
    #: Bytes of the state of all matrices.
    state_bytes: int
    #: Bytes that AdamW's two moments would be.
    adamw_bytes: int


def installed(module: str, package: str) -> Any:
    """A module, or the command that installs it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise UnavailableError(
            f"{module} cannot be imported ({error}): pip install '{package}'"
        ) from None


def library(name: str) -> Any:
    """The namespace of an array library, if it is there and can compute."""
    xp = installed(*LIBRARIES[name])
    if name == "cupy" and not xp.is_available():
        raise UnavailableError("argument --array: cupy needs a GPU, and found none")
    return xp


def digits(xp: Any, seed: int) -> Digits:
    """The digits in a random order, as float32 arrays of a library."""
    datasets = installed("sklearn.datasets", "lowrank-core[examples]")
    pixels, labels = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    x = np.c_[pixels[order] / 16, np.ones(len(labels))].astype(np.float32)
    y = np.eye(10, dtype=np.float32)[labels[order]]
    parts = (x[HELD_OUT:], y[HELD_OUT:], x[:HELD_OUT], y[:HELD_OUT])
    return Digits(*(xp.asarray(part) for part in parts))


def first_weights(xp: Any, seed: int) -> list[Any]:
    """Weights ``(128, 65)`` and ``(10, 129)``; the last column of each is the bias."""
    random = np.random.default_rng([seed, 1])
    shapes = [(HIDDEN, 65), (10, HIDDEN + 1)]
    made = [random.standard_normal(shape) / shape[1] ** 0.5 for shape in shapes]
    return [xp.asarray(weight.astype(np.float32)) for weight in made]


def forward(xp: Any, weights: Sequence[Any], x: Any) -> tuple[Any, Any]:
    """What the hidden layer holds, with a one for the bias, and the logarithms of the odds of each digit."""
    hidden = x @ weights[0].T
    hidden = xp.where(hidden > 0, hidden, xp.zeros_like(hidden))
    hidden = xp.concat([hidden, x[:, -1:]], axis=1)
    logits = hidden @ weights[1].T
    logits = logits - xp.max(logits, axis=1, keepdims=True)
    return hidden, logits - xp.log(xp.sum(xp.exp(logits), axis=1, keepdims=True))


def gradients(xp: Any, weights: Sequence[Any], x: Any, y: Any) -> list[Any]:
    """Gradients of the mean cross-entropy, outputs by inputs as the weights are."""
    hidden, log_odds = forward(xp, weights, x)
    error = (xp.exp(log_odds) - y) / x.shape[0]
    behind = (error @ weights[1])[:, :-1]
    behind = xp.where(hidden[:, :-1] > 0, behind, xp.zeros_like(behind))
    return [behind.T @ x, error.T @ hidden]


def train(xp: Any, *, columns: int | float, rate: float, epochs: int, seed: int) -> Result:
    """Train on arrays of one library."""
    # The library by the names of the array API standard, which not all of them follow by themselves.
    xp = ops_for_namespace(xp).xp
    data, weights = digits(xp, seed), first_weights(xp, seed)
    # Of ten outputs nothing can be left out: the last layer keeps all its columns.
    ranks = (columns, 10)
    configs = [DCTAdamWConfig(rank=rank, refresh_every=10) for rank in ranks]
    states = [
        dct_adamw_init(tuple(weight.shape), config, xp=xp)
        for weight, config in zip(weights, configs, strict=True)
    ]

    def step(weights: list[Any], states: list[Any], x: Any, y: Any) -> tuple[list[Any], list[Any]]:
        new_weights, new_states = [], []
        for weight, gradient, state, config in zip(
            weights, gradients(xp, weights, x, y), states, configs, strict=True
        ):
            update, state = dct_adamw_step(gradient, state, config)
            new_weights.append((1 - rate * WEIGHT_DECAY) * weight - rate * materialize(update))
            new_states.append(state)
        return new_weights, new_states

    if "jax" in xp.__name__:
        step = import_module("jax").jit(step)
    for epoch in range(epochs):
        order = np.random.default_rng([seed, 2, epoch]).permutation(data.x.shape[0])
        for begin in range(0, len(order) - BATCH + 1, BATCH):
            chosen = xp.asarray(order[begin : begin + BATCH])
            x, y = (xp.take(array, chosen, axis=0) for array in (data.x, data.y))
            weights, states = step(weights, states, x, y)

    log_odds = forward(xp, weights, data.held_out_x)[1]
    right = xp.argmax(log_odds, axis=1) == xp.argmax(data.held_out_y, axis=1)
    shapes = [tuple(weight.shape) for weight in weights]
    return Result(
        accuracy=float(xp.sum(xp.astype(right, xp.float32))) / HELD_OUT,
        loss=-float(xp.sum(log_odds * data.held_out_y)) / HELD_OUT,
        state_bytes=sum(map(state_bytes, shapes, configs)),
        adamw_bytes=sum(2 * 4 * rows * columns for rows, columns in shapes),
    )


def show(name: str, result: Result, seconds: float) -> None:
    """Print a table of one row."""
    table = Table(title="Handwritten digits")
    table.add_column("arrays")
    for heading in (
        "held-out\naccuracy",
        "held-out\nloss",
        "state\nbytes",
        "of\nAdamW's",
        "time\ns",
    ):
        table.add_column(heading, justify="right")
    share = f"{result.state_bytes / result.adamw_bytes:.0%}"
    figures = (f"{result.accuracy:.4f}", f"{result.loss:.4f}", f"{result.state_bytes:,}", share)
    table.add_row(name, *figures, f"{seconds:.1f}")
    Console().print(table)


def main(arguments: list[str] | None = None) -> int:
    """Run the job of a command line; the exit status."""
    parser = OneLineParser(description="Train a classifier of digits on any arrays.")
    parser.add_argument("--array", choices=list(LIBRARIES), default="numpy", help="whose arrays")
    parser.add_argument("--rank", type=rank, default=16, help="columns kept of 65, or a fraction")
    parser.add_argument("--lr", type=learning_rate, default=3e-3, help="learning rate")
    parser.add_argument("--epochs", type=whole(1), default=10, help="times over the digits")
    parser.add_argument("--seed", type=whole(0), default=0, help="of weights and order")
    given = parser.parse_args(arguments)
    if isinstance(given.rank, int) and given.rank > 65:
        parser.error(f"argument --rank: must be at most 65, the inputs, got {given.rank}")
    begun = time.perf_counter()
    try:
        xp = library(given.array)
        result = train(xp, columns=given.rank, rate=given.lr, epochs=given.epochs, seed=given.seed)
    except UnavailableError as error:
        parser.error(str(error))
    show(given.array, result, time.perf_counter() - begun)
    return 0


if __name__ == "__main__":
    sys.exit(main())
