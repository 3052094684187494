"""Diagnostics say what a step did: against sums over a basis in float64, in both frontends, and at no bit's cost."""

import importlib
import math

import jax.numpy as jnp
import lowrank_jax
import lowrank_torch
import numpy as np
import oracles
import pytest
import torch
from helpers import from_numpy, normal, to_numpy, tolerance

import lowrank_core as lc

pytestmark = pytest.mark.usefixtures("optax", "torch")

SHAPE, RANK, RATE, DECAY, MU = (12, 8), 3, 0.01, 0.1, 0.85
Q = oracles.dct_basis(SHAPE[1])
#: Gradients that lie mostly on a few columns, which move.
GRADIENTS = [
    (normal(*SHAPE, seed=k) * (0.1 + 3 * (np.abs(np.arange(8) - k) < 2))) @ Q.T for k in range(4)
]
WEIGHT = normal(*SHAPE, seed=9)


def expected(algorithm):
    """For each step what its columns hold of the gradient, what they leave, and which of them were there before."""
    momentum, before, rows = np.zeros(SHAPE), None, []
    for gradient in GRADIENTS:
        B = gradient + (momentum if algorithm == "trion" else 0)
        chosen = oracles.best_columns(np.linalg.norm(B @ Q, axis=0), RANK)
        a = gradient @ Q[:, chosen]
        momentum = B - (1 - MU) * (B @ Q[:, chosen]) @ Q[:, chosen].T
        captured = np.sum(a**2) / np.sum(gradient**2)
        left = np.linalg.norm(gradient - a @ Q[:, chosen].T)
        kept = math.nan if before is None else len({*chosen} & {*before}) / RANK
        rows.append((captured, left, kept, tuple(chosen)))
        before = None if algorithm == "trion" else chosen
    return rows


def plain(algorithm):
    """What lets columns be chosen at every step, by that gradient alone."""
    return {"preset": None} if algorithm == "dct_adamw" else {}


def torch_rows(algorithm, dtype, **options):
    kind = {"dct_adamw": lowrank_torch.DCTAdamW, "trion": lowrank_torch.Trion}[algorithm]
    weight = torch.nn.Parameter(from_numpy(WEIGHT, torch, dtype))
    options = plain(algorithm) | options
    made = kind([("w", weight)], lr=RATE, weight_decay=DECAY, rank=RANK, **options)
    made.record_diagnostics(every=1)
    for gradient in GRADIENTS:
        before = to_numpy(weight)
        weight.grad = from_numpy(gradient, torch, dtype)
        made.step()
        (row,) = made.diagnostics()
        yield row, before, to_numpy(weight) - before


def jax_rows(algorithm, dtype, **options):
    axes = {"w": lowrank_jax.MatrixAxes(0, 1)}
    options = plain(algorithm) | options
    made = getattr(lowrank_jax, algorithm)(
        RATE, weight_decay=DECAY, rank=RANK, matrix_axes=axes, **options
    )
    params = {"w": from_numpy(WEIGHT, jnp, dtype)}
    state = made.init(params)
    for gradient in GRADIENTS:
        given = {"w": from_numpy(gradient, jnp, dtype)}
        updates, after = made.update(given, state, params)
        step = lowrank_jax.Step(given, state, params, updates, after)
        (row,) = lowrank_jax.diagnostics(made, step)
        yield row, to_numpy(params["w"]), to_numpy(updates["w"])
        params, state = {"w": params["w"] + updates["w"]}, after


@pytest.mark.parametrize("algorithm", ["dct_adamw", "trion"])
@pytest.mark.parametrize(
    ("rows_of", "dtype"), [(torch_rows, "float64"), (torch_rows, "float32"), (jax_rows, "float32")]
)
def test_rows_are_what_the_step_did(algorithm, rows_of, dtype):
    allowed = 50 * tolerance("transform", dtype)
    found = list(rows_of(algorithm, dtype))
    assert len(found) == len(GRADIENTS)
    pairs = zip(found, expected(algorithm), strict=True)
    for number, ((row, before, moved), (captured, left, kept, chosen)) in enumerate(pairs, 1):
        # What the weights moved by is a difference of weights, rounded as these.
        rms = math.sqrt(np.mean(moved**2)), math.sqrt(np.mean(before**2))
        assert (row.name, row.step, row.columns) == ("w", number, chosen)
        assert row.numbers() == pytest.approx(
            {
                "captured": captured,
                "residual_norm": row.residual_norm,
                "kept": kept,
                "age": row.age,
                "update_rms": rms[0],
                "weight_rms": math.sqrt(np.mean((before + moved) ** 2))
                if rows_of is torch_rows
                else rms[1],
            },
            rel=max(allowed, 1e-6),
            nan_ok=True,
        )
        # A difference of two energies, which is as exact as they are.
        energy = np.sum(GRADIENTS[number - 1] ** 2)
        assert row.residual_norm**2 == pytest.approx(left**2, abs=allowed * energy)
        replaced = math.nan if math.isnan(kept) else number
        if kept < 1:
            replaced = min(number, 1 / (1 - kept))
        assert row.age == pytest.approx(replaced, nan_ok=True)
        assert all(type(value) is float for value in row.numbers().values())


def test_ages_are_those_that_the_state_counts():
    rows = [row for row, *_ in torch_rows("dct_adamw", "float64", bias_correction="column")]
    ages, means = {}, []
    for _, _, _, chosen in expected("dct_adamw"):
        ages = {column: ages.get(column, 0) + 1 for column in chosen}
        means.append(np.mean([*ages.values()]))
    assert [row.age for row in rows] == pytest.approx(means)
    assert len(set(means)) > 2


def test_columns_that_are_no_columns_of_a_basis_hold_the_most():
    for (row, *_), gradient in zip(
        torch_rows("dct_adamw", "float64", basis="svd"), GRADIENTS, strict=True
    ):
        values = np.linalg.svd(gradient, compute_uv=False)
        assert row.captured == pytest.approx(np.sum(values[:RANK] ** 2) / np.sum(values**2))
        assert row.columns == ()
        assert math.isnan(row.kept)


def stepped(optimizer, every, steps=7, **options):
    """Parameters after some steps, and the steps at which rows were measured."""
    generator = torch.Generator().manual_seed(3)
    shapes = [(64, 48), (64, 48), (96, 48), (16,)]
    weights = [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in shapes]
    options = {"rank": 8, **options}
    if optimizer is lowrank_torch.DCTAdamW:
        options = {"refresh_every": 1, **options}
    made = optimizer([(f"w{k}", w) for k, w in enumerate(weights)], **options)
    if every is not None:
        made.record_diagnostics(every)
    seen = []
    for _ in range(steps):
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator)
        made.step()
        seen.append({row.name: row.step for row in made.diagnostics()})
    return weights, seen


@pytest.mark.parametrize("optimizer", [lowrank_torch.DCTAdamW, lowrank_torch.Trion])
def test_recording_changes_no_bit_and_is_off_by_default(optimizer):
    plain, nothing = stepped(optimizer, None)
    off, still_nothing = stepped(optimizer, 0)
    on, seen = stepped(optimizer, 1)
    assert nothing == still_nothing == [{}] * 7
    assert seen == [dict.fromkeys(("w0", "w1", "w2"), step) for step in range(1, 8)]
    for one, other, third in zip(plain, off, on, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, third)


def test_a_step_that_chooses_columns_is_measured_every_so_often():
    _, seen = stepped(lowrank_torch.DCTAdamW, 3)
    assert [step["w0"] for step in seen] == [1, 1, 1, 4, 4, 4, 7]
    _, seen = stepped(lowrank_torch.DCTAdamW, 3, refresh_every=2)
    assert [step["w0"] for step in seen] == [1, 1, 1, 4, 4, 4, 4]
    _, seen = stepped(lowrank_torch.DCTAdamW, 1, refresh_every=3)
    assert [step["w0"] for step in seen] == [1, 1, 3, 3, 3, 6, 6]


@pytest.mark.parametrize("optimizer", [lowrank_torch.DCTAdamW, lowrank_torch.Trion])
def test_matrices_measured_together_have_the_rows_of_each_alone(optimizer):
    def rows(**options):
        generator = torch.Generator().manual_seed(4)
        weights = [torch.nn.Parameter(torch.randn(24, 8, generator=generator)) for _ in range(3)]
        made = optimizer([(f"w{k}", w) for k, w in enumerate(weights)], rank=2, **options)
        made.record_diagnostics(every=1)
        for _ in range(3):
            for weight in weights:
                weight.grad = torch.randn(weight.shape, generator=generator)
            made.step()
        return made.diagnostics()

    together, alone = rows(), rows(foreach=False)
    assert [row.name for row in together] == ["w0", "w1", "w2"]
    assert [row.columns for row in together] == [row.columns for row in alone]
    for one, other in zip(together, alone, strict=True):
        close = pytest.approx(other.numbers(), rel=tolerance("transform", "float32"), nan_ok=True)
        assert one.numbers() == close


def test_steps_between_two_measurements_look_at_no_parameter(monkeypatch):
    module = importlib.import_module("lowrank_torch._diagnostics")
    seen, look = [], module.Recorder._earliest
    monkeypatch.setattr(
        module.Recorder,
        "_earliest",
        lambda self, parameter, done: seen.append(done) or look(self, parameter, done),
    )
    stepped(lowrank_torch.DCTAdamW, 4)
    # Before and after the steps that are measured, 1 and 5, and the second, to which the state is new.
    assert sorted({*seen}) == [0, 1, 2, 4, 5]
    seen.clear()
    stepped(lowrank_torch.DCTAdamW, 3, refresh_every=6)
    assert sorted({*seen}) == [0, 1, 2, 5, 6]


def test_steps_in_backward_are_measured_as_often():
    layers = torch.nn.Sequential(torch.nn.Linear(8, 12), torch.nn.Linear(12, 8))
    made = lowrank_torch.DCTAdamW(layers.parameters(), lr=RATE, rank=2, refresh_every=1)
    made.record_diagnostics(every=3)
    lowrank_torch.step_in_backward(made)
    seen = []
    for _ in range(5):
        layers(torch.ones(2, 8)).sum().backward()
        made.step()
        seen.append([row.step for row in made.diagnostics()])
    assert seen == [[1, 1]] * 3 + [[4, 4]] * 2


def test_every_matrix_of_a_parameter_has_a_row():
    weight = torch.nn.Parameter(torch.from_numpy(normal(24, 8)))
    made = lowrank_torch.DCTAdamW([("qkv", weight)], rank=2, split_sizes=[12, 12], num_heads=2)
    made.record_diagnostics()
    weight.grad = torch.from_numpy(normal(24, 8, seed=1))
    made.step()
    rows = made.diagnostics()
    assert [row.name for row in rows] == [f"qkv[{k}]" for k in range(4)]
    for row, part in zip(rows, np.split(normal(24, 8, seed=1), 4), strict=True):
        # Of a matrix of 6 rows and 8 columns the rows are transformed along the shorter side.
        S = oracles.dct(part, axis=-2)
        chosen = oracles.best_columns(np.linalg.norm(S, axis=1), 2)
        assert row.columns == tuple(chosen)
        assert row.captured == pytest.approx(np.sum(S[chosen] ** 2) / np.sum(S**2))


def test_sizes_of_large_matrices_are_told_from_rows_evenly_apart(monkeypatch):
    module = importlib.import_module("lowrank_torch._diagnostics")
    monkeypatch.setattr(module, "_SAMPLE", 4 * SHAPE[1])
    for row, before, moved in torch_rows("dct_adamw", "float64"):
        rows = slice(None, None, 3)
        assert row.weight_rms == pytest.approx(math.sqrt(np.mean((before + moved)[rows] ** 2)))
        assert row.update_rms == pytest.approx(math.sqrt(np.mean(moved[rows] ** 2)))


@pytest.mark.parametrize("every", [-1, 2.5, None, True, "3"])
def test_an_interval_that_is_none_is_refused(every):
    made = lowrank_torch.DCTAdamW([torch.nn.Parameter(torch.ones(6, 4))], rank=2)
    with pytest.raises((TypeError, ValueError), match="every must be"):
        made.record_diagnostics(every)


def row(name, step, captured, columns):
    numbers = (captured, 1.0, math.nan, math.nan, 0.1, 1.0)
    return lc.MatrixDiagnostics(name, step, *numbers, columns)


HISTORY = [row("a", 1, 0.5, (0, 2)), row("b", 1, 0.25, (1,)), row("a", 3, 0.75, (2, 3))]


@pytest.mark.parametrize("frontend", ["lowrank_torch", "lowrank_jax"])
def test_pictures_show_the_rows(frontend):
    pytest.importorskip("matplotlib")
    plot = importlib.import_module(f"{frontend}.plot")
    (axes,) = plot.energy([*HISTORY, HISTORY[0]]).axes
    drawn = {line.get_label(): [*map(list, line.get_data())] for line in axes.lines}
    assert drawn == {"a": [[1, 3], [0.5, 0.75]], "b": [[1], [0.25]]}
    many = [row(f"m{k}", 1 + 2 * (k % 2), k / 10, (0,)) for k in range(9)]
    image = plot.energy(many).axes[0].images[0]
    shown = np.asarray(image.get_array().filled(np.nan))
    assert np.array_equal(np.nanmax(shown, axis=1), [k / 10 for k in range(9)])
    assert np.array_equal(np.isnan(shown), [[k % 2 == 1, k % 2 == 0] for k in range(9)])
    (axes,) = plot.columns(HISTORY, "a").axes
    (image,) = axes.images
    assert np.array_equal(image.get_array(), [[1, 0], [0, 0], [1, 1], [0, 1]])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "3"]


@pytest.mark.parametrize("frontend", ["lowrank_torch", "lowrank_jax"])
def test_pictures_of_nothing_are_refused(frontend):
    pytest.importorskip("matplotlib")
    plot = importlib.import_module(f"{frontend}.plot")
    with pytest.raises(ValueError, match="rows must be those of diagnostics"):
        plot.energy([])
    with pytest.raises(ValueError, match="name must be one of a, b, got 'c'"):
        plot.columns(HISTORY, "c")
    with pytest.raises(ValueError, match="columns to choose from"):
        plot.columns([row("svd", 1, 0.5, ())], "svd")


def test_a_step_of_another_kind_is_refused():
    made = lowrank_jax.dct_adamw(0.1)
    with pytest.raises(TypeError, match=r"step must be a lowrank_jax\.Step"):
        lowrank_jax.diagnostics(made, {})
