"""The language-model example in JAX: the numbers of the one in PyTorch, and that it goes on exactly."""

import importlib
import json
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest
import torch
from example_helpers import refused
from safetensors.numpy import load_file

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
OPTIMIZERS = ["adamw", "dct-adamw", "trion"]
STEPS = 8


@pytest.fixture(scope="module")
def examples() -> Iterator[dict[str, ModuleType]]:
    """Both examples, imported the way scripts find their neighbours, JAX as it is for its users."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with (
        pytest.MonkeyPatch.context() as patch,
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
    ):
        patch.syspath_prepend(str(EXAMPLES))
        patch.setenv("OMP_WAIT_POLICY", "PASSIVE")
        modules = {"torch": "pretrain_lm", "jax": "pretrain_lm_jax"}
        yield {name: importlib.import_module(module) for name, module in modules.items()}
    torch.set_num_threads(threads)
    for file in EXAMPLES.glob("*.py"):
        sys.modules.pop(file.stem, None)


@pytest.fixture
def example(examples: dict[str, ModuleType]) -> ModuleType:
    return examples["jax"]


def command(folder: Path, *more: object, optimizer: str = "dct-adamw") -> list[str]:
    """Arguments of a job of a second, with more of them at the end."""
    size = "--d-model 32 --layers 1 --heads 2 --batch 2 --seq-len 16"
    words = [*size.split(), "--steps", STEPS, "--optimizer", *optimizer.split()]
    words += ["--text", EXAMPLES, "--output", folder / "curves.png", *more]
    return list(map(str, words))


@pytest.mark.slow
def test_same_weights_give_the_numbers_of_pytorch(
    examples: dict[str, ModuleType], tmp_path: Path
) -> None:
    results = {}
    for name, module in examples.items():
        file = tmp_path / f"{name}.json"
        more = ("--weights", tmp_path / "weights", "--json", file)
        assert module.main(command(tmp_path, *more, optimizer=" ".join(OPTIMIZERS))) == 0
        results[name] = json.loads(file.read_text(encoding="utf-8"))["runs"]
    for found, wanted in zip(results["jax"], results["torch"], strict=True):
        assert found["optimizer"] == wanted["optimizer"]
        for figures in ("training", "validation"):
            # Sums are taken in another order; a wrong step shows in the third digit.
            np.testing.assert_allclose(found[figures], wanted[figures], rtol=1e-5)
        assert found["training"][-1] < found["training"][0]
        # PyTorch counts steps for every parameter, JAX for all of them.
        assert found["state_bytes"] == pytest.approx(wanted["state_bytes"], rel=1e-3)
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_model_is_that_of_pytorch(examples: dict[str, ModuleType]) -> None:
    llama = importlib.import_module("_llama_jax")
    torch.manual_seed(0)
    model = examples["torch"].Llama(32, 2, 4, 16)
    own = {name: p.detach().numpy() for name, p in model.named_parameters()}
    same = llama.with_weights(llama.Llama(32, 2, 4), own)
    assert list(llama.weights_of(same)) == list(own)
    tokens = np.random.default_rng(0).integers(256, size=(3, 16))
    with torch.no_grad():
        wanted = model(torch.from_numpy(tokens)).numpy()
    np.testing.assert_allclose(same(tokens), wanted, atol=2e-6)


def test_own_first_weights_are_spread_as_those_of_pytorch(examples: dict[str, ModuleType]) -> None:
    llama = importlib.import_module("_llama_jax")
    torch.manual_seed(0)
    model = examples["torch"].Llama(64, 2, 4, 16)
    drawn = llama.drawn_weights(llama.Llama(64, 2, 4), seed=0)
    for name, parameter in model.named_parameters():
        wanted = parameter.detach().numpy()
        assert drawn[name].shape == wanted.shape
        assert drawn[name].dtype == wanted.dtype
        assert drawn[name].std() == pytest.approx(wanted.std(), rel=0.05, abs=1e-6)
    other = llama.drawn_weights(llama.Llama(64, 2, 4), seed=1)
    assert not np.array_equal(other["head.weight"], drawn["head.weight"])


def state_of(example: ModuleType, checkpoint: Path) -> dict[str, Any]:
    """Everything saved that a run's numbers are made of: no durations."""
    content: dict[str, Any] = example.read(checkpoint)
    for run in content["runs"]:
        run.pop("seconds")
        run.pop("optimizer_seconds")
    return content


def assert_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Equal to the bit."""
    for part in ("settings", "runs"):
        assert found[part] == wanted[part]
    assert found["training"].keys() == wanted["training"].keys()
    for place, array in wanted["training"].items():
        assert found["training"][place].dtype == array.dtype
        np.testing.assert_array_equal(found["training"][place], array)


@pytest.mark.parametrize(
    ("optimizer", "step"), [pytest.param("dct-adamw", 3, marks=pytest.mark.slow), ("trion", 5)]
)
def test_interrupted_run_goes_on_exactly(
    example: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    optimizer: str,
    step: int,
) -> None:
    whole, broken = (
        command(tmp_path, "--checkpoint", tmp_path / name, optimizer="dct-adamw trion")
        for name in ("whole", "broken")
    )
    assert example.main(whole) == 0

    def interrupt(_self: object, run: Any) -> None:
        if (run.optimizer, run.step) == (optimizer, step):
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(example._job.LiveReport, "show", interrupt)
        assert example.main(broken) == 130
    assert f"Stopped after step {step} of {STEPS}" in capsys.readouterr().out
    assert len(state_of(example, tmp_path / "broken")["runs"][-1]["training"]) == step
    assert example.main(broken) == 0
    assert_same(*(state_of(example, tmp_path / name) for name in ("broken", "whole")))


def test_full_disk_leaves_the_last_checkpoint_whole(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tmp_path / "checkpoint"
    arguments = command(tmp_path, "--checkpoint", checkpoint, "--checkpoint-every", 3)
    save, saved = example.save_file, []

    def fill(arrays: Any, path: Path, metadata: Any) -> None:
        if saved:
            path.write_bytes(b"half")
            raise example.SafetensorError("no space left")
        saved.append(path)
        save(arrays, path, metadata=metadata)

    with monkeypatch.context() as patch:
        patch.setattr(example, "save_file", fill)
        with pytest.raises(SystemExit, match=r"could not write the checkpoint .*no space left"):
            example.main(arguments)
    assert len(state_of(example, checkpoint)["runs"][-1]["training"]) == 3
    assert example.main(arguments) == 0


def test_checkpoints_that_do_not_fit_are_refused(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tmp_path / "checkpoint"
    arguments = command(tmp_path, "--checkpoint", checkpoint, "--steps", 1)
    assert example.main(arguments) == 0
    errors = refused(example, [*arguments, "--rank", "4"], capsys)
    assert "belongs to a run with --rank 0.25, this one has 4" in errors
    for content in (b"", b"not a checkpoint", checkpoint.read_bytes()[:-1]):
        checkpoint.write_bytes(content)
        errors = refused(example, arguments, capsys)
        assert "--checkpoint: must be a file that this program saved" in errors


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            ["--option", "colour=red"],
            "argument --option: .*no option 'colour' .*options are .*score",
        ),
        (["--option", "score=l3"], "argument --option: score must be .*'l3'"),
        (["--option", "learning_rate=1"], "argument --option: must not set what has its own"),
        (["--optimizer", "galore"], "argument --optimizer: .*'galore'"),
        (["--rank", "32"], "argument --rank: must leave .* fewer than --d-model = 32"),
    ],
)
def test_bad_arguments_get_one_line(
    example: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    said: str,
) -> None:
    errors = refused(example, command(tmp_path, *more), capsys)
    assert re.search(f"error: {said}", errors), errors


def test_first_weights_of_jax_are_pytorchs_to_start_from(
    examples: dict[str, ModuleType], tmp_path: Path
) -> None:
    file = tmp_path / "weights"
    for name in ("jax", "torch"):
        more = ("--steps", 1, "--weights", file, "--json", tmp_path / name)
        assert examples[name].main(command(tmp_path, *more)) == 0
    first, second = (
        json.loads((tmp_path / name).read_text(encoding="utf-8"))["runs"][0]["training"]
        for name in ("jax", "torch")
    )
    np.testing.assert_allclose(first, second, rtol=1e-6)
    assert load_file(file)["head.weight"].shape == (256, 32)
