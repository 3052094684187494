"""A JAX run goes on from an Orbax checkpoint with the same bits, whatever its state is made of."""

import jax
import optax
import orbax.checkpoint as ocp
import pytest
from jax_helpers import AXES, RANK, assert_same_bits, make, train, tree
from lowrank_jax import dct_adamw, matrix_mask, trion

pytestmark = pytest.mark.usefixtures("optax")

VARIANTS = {
    "plain": ("dct_adamw", {"preset": None, "refresh_every": 3}),
    "schedule": (
        "dct_adamw",
        {"preset": None, "learning_rate": optax.linear_schedule(0.1, 0.0, 9)},
    ),
    "codes": ("dct_adamw", {"preset": None, "residual": "error_feedback", "feedback_bits": 4}),
    "counters": (
        "dct_adamw",
        {"preset": None, "residual": "scaled", "bias_correction": "column", "score_decay": 0.9},
    ),
    "drawn": ("dct_adamw", {"preset": None, "residual": "normalized", "selection": "sampled"}),
    "vectors": ("dct_adamw", {"preset": None, "basis": "power"}),
    "narrow state": (
        "dct_adamw",
        {"preset": None, "state_dtype": "bfloat16", "residual": "error_feedback"},
    ),
    "trion": ("trion", {}),
    "trion in codes": ("trion", {"momentum_bits": 8, "row_decay": 0.9}),
}


def round_trip(folder, params, state, optimizer):
    """Save, and restore into what a process that has run nothing yet can know."""
    saved = {"params": params, "state": state}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "checkpoint", saved)
    abstract = jax.eval_shape(lambda p: {"params": p, "state": optimizer.init(p)}, params)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract
    )
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(folder / "checkpoint", abstract)
    assert_same_bits(restored, saved)
    return restored["params"], restored["state"]


@pytest.mark.parametrize(("name", "options"), VARIANTS.values(), ids=VARIANTS)
def test_resumed_run_has_the_same_bits(tmp_path, name, options):
    first, fresh = make(name, **options), make(name, **options)
    params, state = train(first, tree(), 4)
    whole = train(first, params, 3, state=state, start=4)
    params, state = round_trip(tmp_path, params, state, fresh)
    assert_same_bits(train(fresh, params, 3, state=state, start=4), whole)


def test_wrapped_run_has_the_same_bits(tmp_path):
    def build():
        parts = {
            True: dct_adamw(optax.linear_schedule(0.1, 0.0, 9), rank=RANK, matrix_axes=AXES),
            False: trion(0.1, rank=RANK, matrix_axes=AXES),
        }
        labelled = optax.partition(parts, lambda p: matrix_mask(p, AXES))
        return optax.MultiSteps(optax.apply_if_finite(labelled, 3), every_k_schedule=2)

    # In the middle of an accumulation.
    first, fresh = build(), build()
    params, state = train(first, tree(), 3)
    whole = train(first, params, 3, state=state, start=3)
    params, state = round_trip(tmp_path, params, state, fresh)
    assert_same_bits(train(fresh, params, 3, state=state, start=3), whole)
