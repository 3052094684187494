"""The example on the core alone: the same numbers whichever library's arrays it trains on, and errors of one line."""

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from example_helpers import refused

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
SETTINGS: dict[str, Any] = {"columns": 16, "rate": 3e-3, "epochs": 3, "seed": 0}


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    """The example's module, imported the way a script finds its neighbours."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        yield importlib.import_module("core_any_array")
        for file in EXAMPLES.glob("*.py"):
            sys.modules.pop(file.stem, None)


@pytest.fixture(scope="module")
def reached(example: ModuleType) -> Any:
    """What a short training reaches with NumPy."""
    return example.train(np, **SETTINGS)


def test_learns_with_less_state(reached: Any) -> None:
    assert reached.accuracy > 0.9
    assert reached.loss < 0.5
    assert reached.state_bytes < 0.4 * reached.adamw_bytes


@pytest.mark.parametrize("xp", ["torch", "jax"], indirect=True)
def test_numbers_are_the_same_with_every_library(
    example: ModuleType, reached: Any, xp: ModuleType
) -> None:
    np.testing.assert_allclose(example.train(xp, **SETTINGS), reached, atol=1e-4, rtol=0)


def test_gradients_are_those_of_the_loss(example: ModuleType) -> None:
    data, weights = example.digits(np, 0), example.first_weights(np, 0)
    x, y = (array[:50].astype(np.float64) for array in (data.x, data.y))
    weights = [weight.astype(np.float64) for weight in weights]
    direction = [np.random.default_rng(1).standard_normal(weight.shape) for weight in weights]

    def loss(along: float) -> float:
        moved = [w + along * d for w, d in zip(weights, direction, strict=True)]
        return float(-np.sum(example.forward(np, moved, x)[1] * y) / len(x))

    slope = (loss(1e-6) - loss(-1e-6)) / 2e-6
    made = example.gradients(np, weights, x, y)
    assert slope == pytest.approx(sum(map(np.vdot, made, direction)), rel=1e-5)


def test_shows_a_table(
    example: ModuleType, reached: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert example.main(["--array", "numpy", "--epochs", "3"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if "numpy" in line)
    assert f"{reached.accuracy:.4f}" in row
    assert f"{reached.loss:.4f}" in row
    assert f"{reached.state_bytes:,}" in row


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--array", "jacks"], "argument --array: .*'jacks'"),
        (["--rank", "0"], "argument --rank: must be a whole number >= 1 or .* got '0'"),
        (["--rank", "66"], "argument --rank: must be at most 65, the inputs, got 66"),
        (["--lr", "-1"], "argument --lr: must be a number above 0, got '-1'"),
        (["--epochs", "x"], "argument --epochs: must be a whole number >= 1, got 'x'"),
        (["--seed", "-1"], "argument --seed: must be a whole number >= 0, got '-1'"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_bad_arguments_get_one_line(
    example: ModuleType,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    errors = refused(example, arguments, capsys)
    assert re.search(f"error: {said}", errors), errors


def test_missing_library_gets_one_line(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module, remedy in (("torch", "[torch]"), ("sklearn.datasets", "[examples]")):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            errors = refused(example, ["--array", "torch"], capsys)
        assert module in errors
        assert f"pip install 'lowrank-core{remedy}'" in errors


def test_cupy_without_a_gpu_gets_one_line(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without = ModuleType("cupy")
    without.is_available = lambda: False  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cupy", without)
    errors = refused(example, ["--array", "cupy"], capsys)
    assert "argument --array: cupy needs a GPU, and found none" in errors
