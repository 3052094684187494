"""The job of `pretrain_lm.py` in JAX: the same text, model, data order, table and picture.

    python docs/examples/pretrain_lm_jax.py

To compare the two from the same first weights, give both the same file; the first to run writes it:

    python docs/examples/pretrain_lm.py --weights first.safetensors
    python docs/examples/pretrain_lm_jax.py --weights first.safetensors

The model (`_llama_jax.py`) is made of Equinox modules and the optimizers are Optax transformations.
`--help` lists what can be changed, and `--checkpoint PATH` makes a run that can be stopped at any
moment and goes on exactly where it was.

Needs `pip install 'lowrank-core[examples-jax]'`.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import _job
import jax
import jax.numpy as jnp
import lowrank_jax
import numpy as np
import optax
from _job import BETAS, CLIP_NORM, RATES, WEIGHT_DECAY, Framework, Recipe, UsageError, rate_factor
from _llama_jax import Llama, drawn_weights, next_byte_loss, weights_of, with_weights
from _settings import Settings
from _weights import first_weights
from jax import Array
from safetensors import SafetensorError, safe_open
from safetensors.flax import save_file

PICTURE = "pretrain_lm_jax.png"
BETA1, BETA2 = BETAS
Schedule = Callable[[Any], Array]


def schedule(rate: float, settings: Settings) -> Schedule:
    """The learning rate of every step, made on the host and looked up."""
    factors = [rate_factor(step, steps=settings.steps) for step in range(settings.steps)]
    rates = np.asarray(rate * np.asarray(factors), np.float32)
    return lambda step: jnp.asarray(rates)[step]


def is_decayed(params: Any) -> Any:
    """All but vectors (norms)."""
    return jax.tree.map(lambda leaf: leaf.ndim >= 2, params)


def adamw(rate: float, settings: Settings) -> optax.GradientTransformation:
    """Optax's AdamW; vectors are not decayed."""
    return optax.adamw(
        schedule(rate, settings), BETA1, BETA2, weight_decay=WEIGHT_DECAY, mask=is_decayed
    )


def dct_adamw(rate: float, settings: Settings) -> optax.GradientTransformation:
    """Low rank for the hidden matrices, Adam for the rest."""
    keywords = {"b1": BETA1, "b2": BETA2, "weight_decay": WEIGHT_DECAY, **settings.options}
    return lowrank_jax.dct_adamw(
        schedule(rate, settings), mask=is_decayed, rank=settings.rank, **keywords
    )


def trion(rate: float, settings: Settings) -> optax.GradientTransformation:
    """Trion for the hidden matrices, AdamW at its own best rate for the rest."""
    keywords = {"weight_decay": WEIGHT_DECAY, **settings.options}
    matrices = lowrank_jax.trion(schedule(rate, settings), rank=settings.rank, **keywords)
    rest = adamw(RATES["adamw"], settings)
    return optax.partition({True: matrices, False: rest}, lowrank_jax.matrix_mask)


OPTIMIZERS = {
    "adamw": Recipe("AdamW", RATES["adamw"], adamw),
    "dct-adamw": Recipe("DCT-AdamW", RATES["dct-adamw"], dct_adamw, low_rank=True),
    "trion": Recipe("Trion", RATES["trion"], trion, low_rank=True),
}


class Training:
    """One optimizer at work: everything that changes from step to step, and can be saved."""

    def __init__(self, name: str, lr: float, settings: Settings) -> None:
        empty = Llama(settings.width, settings.layers, settings.heads)
        first = first_weights(settings.weights, drawn_weights(empty, settings.seed))
        self.model = with_weights(empty, first)
        recipe = OPTIMIZERS[name]
        try:
            optimizer = recipe.build(lr, settings)
            self.state = optimizer.init(self.model)
        except (TypeError, ValueError) as error:
            if not recipe.low_rank:
                raise
            blamed = f"argument --option: {error}" if settings.options else str(error)
            raise UsageError(blamed) from error

        # The new model and state take the place of the old in memory.
        @partial(jax.jit, donate_argnums=(0, 1))
        def update(model: Llama, state: Any, gradient: Llama) -> tuple[Llama, Any]:
            updates, state = optimizer.update(gradient, state, model)
            return optax.apply_updates(model, updates), state

        self._update = update

    def step(self, windows: Any) -> tuple[float, float]:
        """Train on a batch; the loss, and the seconds spent in the optimizer alone."""
        loss, gradient = jax.block_until_ready(_gradients(self.model, _tokens(windows)))
        start = time.perf_counter()
        self.model, self.state = jax.block_until_ready(
            self._update(self.model, self.state, gradient)
        )
        return loss.item(), time.perf_counter() - start

    def validate(self, windows: Any, batch: int) -> float:
        """Mean loss over the held-out windows."""
        parts = [windows[begin : begin + batch] for begin in range(0, len(windows), batch)]
        total = sum(_loss(self.model, _tokens(part)).item() * len(part) for part in parts)
        return total / len(windows)

    def state_bytes(self) -> int:
        """Bytes of every array in the optimizer's state."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.state))

    def parameters(self) -> int:
        """Number of the model's weights."""
        return sum(weight.size for weight in weights_of(self.model).values())

    def state_dict(self) -> dict[str, Array]:
        """All of it, by the place in the two trees."""
        leaves, _ = jax.tree_util.tree_flatten_with_path((self.model, self.state))
        return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Go back to where `state_dict` was called."""
        leaves = [state[place] for place in self.state_dict()]
        structure = jax.tree.structure((self.model, self.state))
        self.model, self.state = jax.tree.unflatten(structure, leaves)


# Compiled once for all optimizers.
_loss = jax.jit(next_byte_loss)


@jax.jit
def _gradients(model: Llama, windows: Array) -> tuple[Array, Llama]:
    """The loss of a batch and its gradients, clipped."""
    clip = optax.clip_by_global_norm(CLIP_NORM)
    loss, gradients = jax.value_and_grad(next_byte_loss)(model, windows)
    return loss, clip.update(gradients, clip.init(model))[0]


def _tokens(windows: Any) -> Array:
    return jnp.asarray(np.asarray(windows, np.int32))


def write(content: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint: arrays as they are, everything else as JSON."""
    metadata = {name: json.dumps(content[name]) for name in ("settings", "runs")}
    try:
        save_file(dict(content["training"]), path, metadata=metadata)
    except SafetensorError as error:
        raise OSError(str(error)) from error


def read(path: Path) -> dict[str, Any]:
    """Read a checkpoint."""
    with safe_open(path, framework="flax") as file:
        content = {name: json.loads(text) for name, text in (file.metadata() or {}).items()}
        names = list(file.keys())
        return {**content, "training": {name: file.get_tensor(name) for name in names}}


def about() -> str:
    """What trains, and on what."""
    return f"JAX {jax.__version__}, {jax.default_backend()}"


JAX = Framework(
    about=about,
    recipes=OPTIMIZERS,
    training=Training,
    write=write,
    read=read,
    read_errors=(SafetensorError,),
    picture=PICTURE,
)


def main(arguments: list[str] | None = None) -> int:
    """Run the job of a command line; the exit status."""
    return _job.main(JAX, arguments)


if __name__ == "__main__":
    sys.exit(main())
