"""Run by `tests/jax/test_sharded.py`: cases of sharded steps, reported as JSON."""

import json
import math
import re
import sys

import jax
import lowrank_jax
import numpy as np
import optax
from jax import numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

ROWS, COLUMNS, RANK, STEPS = 1024, 256, 16, 3
ITEM_BYTES = {
    "f32": 4,
    "s32": 4,
    "u32": 4,
    "bf16": 2,
    "f64": 8,
    "s64": 8,
    "pred": 1,
    "u8": 1,
    "c64": 8,
}
COLLECTIVE = re.compile(
    r"= (\(?[^=]*?\)?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter|"
    r"collective-broadcast|ragged-all-to-all)(?:-start)?\("
)
# Besides the scores, five sums of products of the factor with itself and its norm.
TRION = 4 * COLUMNS + 6 * 4 * RANK * RANK + 64
KERNEL = lowrank_jax.MatrixAxes(outputs=-1, inputs=-2)
WEIGHT = lowrank_jax.MatrixAxes(outputs=-2, inputs=-1)


def collectives(text):
    """Kind and bytes of the result of every collective of a compiled program."""
    found = []
    for shapes, kind in COLLECTIVE.findall(text):
        size = 0
        for dtype, dimensions in re.findall(r"(\w+)\[([\d,]*)\]", shapes):
            lengths = [int(length) for length in dimensions.split(",") if length]
            size += ITEM_BYTES[dtype] * math.prod(lengths)
        found.append((kind, size))
    return found


def steps(update, params, state, sharding):
    """Parameters after all steps on seeded gradients."""
    for index in range(STEPS):
        numbers = np.random.default_rng(index).standard_normal(params["w"].shape)
        gradient = jax.device_put({"w": jnp.asarray(numbers, jnp.float32)}, sharding)
        params, state = update(params, state, gradient)
    return params


def report(optimizer, shape, spec, mesh, allowed):
    @jax.jit
    def update(params, state, gradient):
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    numbers = np.random.default_rng(100).standard_normal(shape)
    params = {"w": jnp.asarray(numbers, jnp.float32)}
    sharding = NamedSharding(mesh, spec)
    placed = jax.device_put(params, sharding)
    state = optimizer.init(placed)
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.size >= ROWS * RANK]
    state_sharded = bool(moments) and all(
        leaf.addressable_shards[0].data.size * mesh.size == leaf.size for leaf in moments
    )
    # What is small is on every device: else the second step would find it placed otherwise, and compile anew.
    state_sharded &= all(len(leaf.devices()) == mesh.size for leaf in jax.tree.leaves(state))
    # One program for all steps: it refuses a state that came out sharded otherwise than it went in.
    compiled = update.lower(placed, state, placed).compile()
    moved = collectives(compiled.as_text())
    found = steps(compiled, placed, state, sharding)
    expected = steps(update, params, optimizer.init(params), jax.devices()[0])
    start, wanted = np.asarray(params["w"]), np.asarray(expected["w"])
    return {
        "collectives": moved,
        "gathered": sum(size for kind, size in moved if kind != "all-reduce"),
        "reduced": sum(size for kind, size in moved if kind == "all-reduce"),
        "allowed": allowed,
        "gradient": 4 * math.prod(shape),
        "error": float(
            np.linalg.norm(np.asarray(found["w"]) - wanted) / np.linalg.norm(wanted - start)
        ),
        "moved": float(np.linalg.norm(wanted - start)),
        "state_sharded": state_sharded,
    }


def dct_adamw(axes=WEIGHT, **options):
    given = {"preset": None, "rank": RANK, "matrix_axes": axes, **options}
    return lowrank_jax.dct_adamw(0.01, **given)


def reports(case):
    kind = AxisType.Explicit if case.startswith("explicit") else AxisType.Auto
    mesh = jax.make_mesh((jax.device_count(),), ("x",), axis_types=(kind,))
    tall, scores = (ROWS, COLUMNS), 4 * COLUMNS
    rows = P("x", None)
    if case in ("dct_adamw", "explicit"):
        cases = {
            "plain": (dct_adamw(), tall, rows, scores),
            # Scores and mean squares of rows go together, the norm of the energies after them.
            "default": (dct_adamw(preset="factored"), tall, rows, 2 * scores + 8),
            "by transform": (dct_adamw(rank=128, refresh_every=2), tall, rows, scores),
        }
        if case == "explicit":
            cases["trion"] = (
                lowrank_jax.trion(0.01, rank=RANK, matrix_axes=WEIGHT),
                tall,
                rows,
                TRION,
            )
    elif case == "explicit across":
        # Transformed along the sharded dimension, and what needs a whole matrix in other ways.
        left = {"side": "left", "method": "fft"}
        cases = {
            "transform": (dct_adamw(**left), tall, rows, 0),
            "power": (dct_adamw(side="left", basis="power"), tall, rows, 0),
            "codes": (
                dct_adamw(side="left", residual="error_feedback", feedback_bits=4),
                tall,
                rows,
                0,
            ),
            "trion": (
                lowrank_jax.trion(0.01, rank=RANK, matrix_axes=WEIGHT, **left),
                tall,
                rows,
                0,
            ),
        }
    elif case == "explicit meshes":
        # One after the other: what the first mesh's step has left in memory must not bind the second's.
        both = jax.make_mesh((2, jax.device_count() // 2), ("y", "x"), axis_types=(kind, kind))
        return {
            "one axis": report(dct_adamw(), tall, rows, mesh, scores),
            "two axes": report(dct_adamw(), tall, P(("y", "x"), None), both, scores),
        }
    elif case == "policies":
        # Those that scale or normalise look at energies as well as scores, and at one norm.
        cases = {
            residual: (dct_adamw(residual=residual), tall, rows, 2 * scores + 8)
            for residual in ("error_feedback", "sign", "scaled", "normalized")
        }
        codes = {"residual": "error_feedback", "feedback_bits": 8}
        cases["codes"] = (dct_adamw(**codes), tall, rows, scores)
        factored = {"second_moment": "factored", "residual": "bounded"}
        cases["factored"] = (dct_adamw(**factored), tall, rows, 2 * scores + 8)
    elif case == "trion":
        trion = lowrank_jax.trion(0.01, rank=RANK, matrix_axes=WEIGHT)
        cases = {"trion": (trion, tall, rows, TRION)}
    elif case == "stacked":
        spec = P(None, "x", None)
        cases = {"stacked": (dct_adamw(refresh_every=2), (3, *tall), spec, 3 * scores)}
    elif case == "columns":
        # A kernel sharded by its outputs is the same matrix, and so is one transformed along its rows.
        wide, spec = (COLUMNS, ROWS), P(None, "x")
        cases = {
            "kernel": (dct_adamw(KERNEL, side="right"), wide, spec, scores),
            "left": (dct_adamw(side="left"), wide, spec, scores),
        }
    else:
        cases = {"across the shards": (dct_adamw(side="left", method="fft"), tall, rows, 0)}
    return {name: report(*arguments[:3], mesh, arguments[3]) for name, arguments in cases.items()}


if __name__ == "__main__":
    found = {case: reports(case) for case in sys.argv[1:]}
    print(json.dumps({"devices": jax.device_count(), "cases": found}))
