"""The table of what is done with every leaf, and the warnings where little is saved or a vocabulary is cut."""

import warnings

import jax
import lowrank_jax
import optax
import pytest
from jax import numpy as jnp
from lowrank_jax import LeafSummary, MatrixAxes, dct_adamw, matrix_mask, scale_by_dct_adam, trion

pytestmark = pytest.mark.usefixtures("optax")


@pytest.fixture(autouse=True)
def _small_models_count(monkeypatch):
    """Warn of models as small as those of tests, too."""
    monkeypatch.setattr("lowrank_jax._plans._LEAST_NUMBERS", 0)


def shaped(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def small_model(**more):
    return {
        "embed": {"embedding": shaped(100, 32)},
        "layers": {
            "attention": {"query": {"kernel": shaped(2, 64, 4, 16)}},
            "up": {"kernel": shaped(2, 64, 128), "bias": shaped(2, 128)},
        },
        "narrow": {"kernel": shaped(64, 8)},
        **more,
    }


def test_a_row_for_each_leaf():
    rows = lowrank_jax.summary(dct_adamw(1e-3, rank=8), small_model())
    assert list(rows) == [
        LeafSummary("embed/embedding", (100, 32), "adam", None, None, 2 * 4 * 3200, "table"),
        LeafSummary(
            *("layers/attention/query/kernel", (2, 64, 4, 16), "dct_adamw", 8, (1,)),
            # A moment of 64 x 8, eight indices and means of 64 rows and columns for each of two layers.
            *(2 * 4 * (64 * 8 + 8 + 64 + 64), "attention"),
        ),
        LeafSummary("layers/up/bias", (2, 128), "adam", None, None, 2 * 4 * 256, "vector"),
        LeafSummary(
            *("layers/up/kernel", (2, 64, 128), "dct_adamw", 8, (1,)),
            *(2 * 4 * (128 * 8 + 8 + 64 + 128), "stack of kernels"),
        ),
        LeafSummary(
            *("narrow/kernel", (64, 8), "adam", None, None, 2 * 4 * 512),
            "smaller side 8 is below min_size=32",
        ),
    ]


def test_state_is_counted_as_it_is_made():
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), small_model())
    for optimizer in (
        trion(0.1, rank=4, momentum_bits=8),
        dct_adamw(0.1, rank=4, preset=None, residual="error_feedback", selection="sampled"),
    ):
        made = sum(leaf.nbytes for leaf in jax.tree.leaves(optimizer.init(params)[0]))
        rows = lowrank_jax.summary(optimizer, params)
        # The step count is of no leaf.
        assert sum(row.state_bytes for row in rows) == made - 4


def test_what_the_user_says_is_the_reason():
    axes = {"narrow": MatrixAxes(1, 0), "rest": None}
    tree = {"narrow": shaped(64, 8), "rest": shaped(64, 64)}
    with pytest.warns(UserWarning, match="plain Adam"):
        rows = lowrank_jax.summary(scale_by_dct_adam(rank=4, matrix_axes=axes), tree)
    assert [(row.method, row.axis, row.reason) for row in rows] == [
        ("dct_adamw", (1,), "matrix_axes says so"),
        ("adam", None, "matrix_axes says so"),
    ]
    rows = lowrank_jax.summary(
        scale_by_dct_adam(rank=64, matrix_axes=lambda *_: MatrixAxes(1, 0)),
        {"tall": shaped(64, 80), "larger": shaped(80, 96)},
    )
    assert {row.path: row.reason for row in rows} == {
        "larger": "kernel",
        "tall": "rank 64 is not below the transformed size",
    }


def test_parts_of_a_partition_are_told_apart():
    parts = {True: trion(0.1, rank=8), False: optax.adamw(0.1)}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.partition(parts, matrix_mask))
    rows = {row.path: row for row in lowrank_jax.summary(optimizer, small_model())}
    assert rows["layers/up/kernel"].method == "trion"
    assert rows["embed/embedding"].method == "adam"
    assert rows["embed/embedding"].state_bytes == 2 * 4 * 3200
    parts[False] = optax.sgd(0.1)
    rows = {
        row.path: row
        for row in lowrank_jax.summary(optax.partition(parts, matrix_mask), small_model())
    }
    assert rows["embed/embedding"][2:6] == ("other", None, None, 0)


def test_text_is_a_table():
    lines = str(lowrank_jax.summary(dct_adamw(1e-3, rank=8), small_model())).splitlines()
    assert " ".join(lines[0].split()) == "path shape method rank axis state, bytes reason"
    assert " ".join(lines[1].split()) == "embed/embedding 100 x 32 adam - - 25,600 table"
    assert lines[-2:] == [
        "24,576 of 28,544 numbers in 2 of 5 leaves are stepped as matrices",
        "state 46,720 bytes, beside Adam's 228,352 in float32",
    ]


def test_no_low_rank_transformation_is_an_error():
    with pytest.raises(ValueError, match="state must be of a low-rank transformation"):
        lowrank_jax.summary(optax.adamw(1e-3), small_model())


# -- warnings --------------------------------------------------------------------------------------


def init(optimizer, tree):
    return jax.eval_shape(optimizer.init, tree)


@pytest.mark.parametrize("look", [init, lowrank_jax.summary], ids=["init", "summary"])
@pytest.mark.parametrize("make", [dct_adamw, trion])
def test_plain_adam_for_most_is_told(look, make):
    strange = small_model(strange={"coefficients": shaped(30, 10_000)})
    with pytest.warns(
        UserWarning, match=r"303,968 of 328,544.*'strange/coefficients' \(smaller side"
    ):
        look(make(1e-3, rank=8), strange)


@pytest.mark.compiles_nothing
@pytest.mark.parametrize("look", [init, lowrank_jax.summary], ids=["init", "summary"])
@pytest.mark.parametrize("make", [dct_adamw, trion])
@pytest.mark.parametrize(
    "more",
    [
        # As many rows as the table, though in a layer by its name; and much longer than wide.
        {"mystery": {"kernel": shaped(64, 4000)}},
        {"reader": {"weight": shaped(4000, 64)}},
    ],
)
def test_a_vocabulary_that_is_cut_is_told(look, make, more):
    (name,) = more
    with pytest.warns(UserWarning, match=rf"of the shape of a vocabulary.*'{name}/"):
        look(make(1e-3, rank=8), small_model(**more))


def test_ordinary_models_are_no_reason_to_warn():
    wide = small_model(layers_0={"wide": {"kernel": shaped(64, 4000)}})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for tree in (small_model(), wide):
            lowrank_jax.summary(dct_adamw(1e-3, rank=8), tree)
            init(dct_adamw(1e-3, rank=8), tree)
        # Whoever says of each leaf what it is knows.
        init(dct_adamw(1e-3, rank=8, matrix_axes=None), small_model())
