"""Peak memory and FLOPs of one JAX optimizer step on all parameters of a 7B Llama, from compiled programs alone.

No array is made: each program is compiled for abstract shapes, and the numbers are those of XLA's own analysis for the
device at hand. Parameters and state are overwritten, gradients are kept.

    python tests/benchmarks/jax_step_size.py [--rank 256] [--layers 32]
"""

from __future__ import annotations

import argparse
import os
from typing import Any

# By default XLA orders a CPU program for concurrency, with the updates of all parameters alive at once. As on a GPU,
# what counts here is memory.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_enable_concurrency_optimized_scheduler=false")

import jax
import lowrank_jax
import optax
from jax import numpy as jnp

WIDTH, HIDDEN, VOCABULARY = 4096, 11008, 32000
LAYER = {
    **{name: {"kernel": (WIDTH, WIDTH)} for name in ("query", "key", "value", "out")},
    **{name: {"kernel": (WIDTH, HIDDEN)} for name in ("gate", "up")},
    "down": {"kernel": (HIDDEN, WIDTH)},
    "before_attention": {"scale": (WIDTH,)},
    "before_mlp": {"scale": (WIDTH,)},
}
TABLES = {
    "embed": {"embedding": (VOCABULARY, WIDTH)},
    "lm_head": {"kernel": (WIDTH, VOCABULARY)},
    "norm": {"scale": (WIDTH,)},
}


def abstract(shapes: Any) -> Any:
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
        shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def size(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def analyse(optimizer: Any, shapes: Any) -> dict[str, float]:
    """Bytes and FLOPs of a step."""
    params = abstract(shapes)
    state = jax.eval_shape(optimizer.init, params)

    def step(params: Any, state: Any, gradient: Any) -> Any:
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile()
    memory, costs = compiled.memory_analysis(), compiled.cost_analysis()
    # What is overwritten is counted once: as an argument.
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {
        "state": size(state),
        "temporary": memory.temp_size_in_bytes,
        "peak": memory.argument_size_in_bytes + results + memory.temp_size_in_bytes,
        "flops": costs["flops"],
    }


def optimizers(rank: int) -> dict[str, Any]:
    low: dict[str, Any] = {"rank": rank}
    plain: dict[str, Any] = {**low, "preset": None}
    return {
        "AdamW (Optax)": optax.adamw(1e-3),
        "DCT-AdamW": lowrank_jax.dct_adamw(1e-3, **low),
        "DCT-AdamW, sign of the residual": lowrank_jax.dct_adamw(1e-3, **plain),
        "DCT-AdamW, residual dropped": lowrank_jax.dct_adamw(1e-3, residual="discard", **plain),
        "the same, columns every 50 steps": lowrank_jax.dct_adamw(
            1e-3, residual="discard", refresh_every=50, **plain
        ),
        "DCT-AdamW, error feedback in 8 bits": lowrank_jax.dct_adamw(
            1e-3, residual="error_feedback", feedback_bits=8, **plain
        ),
        "DCT-AdamW, normalised residual": lowrank_jax.dct_adamw(
            1e-3, residual="normalized", **plain
        ),
        "Trion": lowrank_jax.trion(1e-2, **low),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rank", type=int, default=256)
    parser.add_argument("--layers", type=int, default=32)
    arguments = parser.parse_args()
    shapes = {**TABLES, "layers": [LAYER] * arguments.layers}
    held = size(abstract(shapes))
    print(
        f"JAX {jax.__version__} on {jax.devices()[0].platform}, rank {arguments.rank}, float32: "
        f"{held // 4 / 1e9:.2f} billion parameters of {held / 2**30:.1f} GiB, gradients of as many\n"
    )
    print("| optimizer | state, GiB | temporaries, GiB | peak of the step, GiB | TFLOP |")
    print("|---|---:|---:|---:|---:|")
    for name, optimizer in optimizers(arguments.rank).items():
        found = analyse(optimizer, shapes)
        cells = [found[key] / 2**30 for key in ("state", "temporary", "peak")]
        row = " | ".join(f"{cell:.2f}" for cell in cells)
        print(f"| {name} | {row} | {found['flops'] / 1e12:.2f} |", flush=True)


if __name__ == "__main__":
    main()
