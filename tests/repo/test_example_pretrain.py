"""The language-model example: what it shows, what it refuses, and that it goes on exactly."""

import errno
import hashlib
import importlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
OPTIMIZERS = ["adamw", "dct-adamw"]
STEPS = 12
Command = Callable[..., list[str]]


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    """The example's main module, imported the way a script finds its neighbours."""
    threads = torch.get_num_threads()
    # Matrices this small only lose by being shared out, most of all on a busy machine.
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        # The example sets it for itself; here it would stay set for other tests.
        patch.setenv("OMP_WAIT_POLICY", "PASSIVE")
        yield importlib.import_module("pretrain_lm")
        torch.set_num_threads(threads)
        for file in EXAMPLES.glob("*.py"):
            sys.modules.pop(file.stem, None)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty small files, each unlike the others."""
    folder = tmp_path_factory.mktemp("text")
    for number in range(60):
        lines = (f"number {number} times {factor} is {number * factor}" for factor in range(20))
        (folder / f"{number}.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture
def command(tmp_path: Path, text: Path) -> Command:
    """Arguments of a job of a second; what a test names replaces or adds to them."""

    def build(**changes: object) -> list[str]:
        arguments: dict[str, object] = {
            "text": text,
            "steps": STEPS,
            "d_model": 32,
            "layers": 1,
            "heads": 2,
            "batch": 2,
            "seq_len": 16,
            "output": tmp_path / "curves.png",
        } | changes
        words: list[str] = []
        for name, value in arguments.items():
            values = value if isinstance(value, list) else [value]
            words += ["--" + name.replace("_", "-"), *map(str, values)]
        return words

    return build


def state_of(checkpoint: Path) -> dict[str, Any]:
    """Everything saved that a run's numbers are made of: no durations."""
    content: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    for run in content["runs"]:
        run.pop("seconds")
        run.pop("optimizer_seconds")
    return content


def assert_same(left: object, right: object, at: str = "checkpoint") -> None:
    """Equal to the bit, tensors and numbers alike, whatever they are nested in."""
    assert type(left) is type(right), at
    if isinstance(left, torch.Tensor):
        assert isinstance(right, torch.Tensor)
        assert left.dtype == right.dtype, at
        assert torch.equal(left, right), at
    elif isinstance(left, dict):
        assert isinstance(right, dict)
        assert left.keys() == right.keys(), at
        for key in left:
            assert_same(left[key], right[key], f"{at}.{key}")
    elif isinstance(left, list | tuple):
        assert isinstance(right, list | tuple)
        assert len(left) == len(right), at
        for index, pair in enumerate(zip(left, right, strict=True)):
            assert_same(*pair, f"{at}[{index}]")
    else:
        assert left == right, at


def test_shows_a_table_a_picture_and_a_file(
    example: ModuleType,
    command: Command,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert example.main(command(json=tmp_path / "results.json", rank=8)) == 0
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    runs = results["runs"]
    assert [run["optimizer"] for run in runs] == OPTIMIZERS
    for run in runs:
        assert len(run["training"]) == len(run["optimizer_seconds"]) == STEPS
        assert run["training"][-1] < run["training"][0]
        assert run["validation"][-1] == [STEPS, run["validation_loss"]]
        assert run["seconds"] > sum(run["optimizer_seconds"]) > 0
        row = next(line for line in printed.splitlines() if line.startswith(f"│ {run['label']} "))
        assert f"{run['validation_loss']:.3f}" in row
        assert f"{run['learning_rate']:g}" in row
    # The first state is AdamW's two moments (and a step count) of each parameter.
    model = example.Llama(32, 1, 2, 16)
    sizes = [parameter.numel() for parameter in model.parameters()]
    assert runs[0]["state_bytes"] == sum(8 * size + 4 for size in sizes)
    assert runs[1]["state_bytes"] < runs[0]["state_bytes"]
    # Without a terminal: a line for each validation, not for each step or redrawing.
    lines = [line for line in printed.splitlines() if "tokens/s" in line]
    assert len(lines) == sum(len(run["validation"]) for run in runs)

    picture = matplotlib.image.imread(tmp_path / "curves.png")[..., :3]
    assert picture.shape[0] > 400
    assert picture.shape[1] > 800
    report = importlib.import_module("_report")
    curves, states = np.split(picture, [int(0.6 * picture.shape[1])], axis=1)
    for colour in report.COLOURS[:2]:
        wanted = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
        for part, least in ((curves, 2000), (states, 3000)):
            assert (np.abs(part - wanted).max(axis=-1) < 0.02).sum() > least
    assert not list(tmp_path.glob("*.part"))


def test_terminal_gets_a_progress_bar(
    example: ModuleType,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    assert example.main(command(optimizer="adamw")) == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().out)
    assert re.search(rf"AdamW ━+ {STEPS}/{STEPS} loss \d\.\d+ +[\d,]+ tokens/s +0:00 left", plain)


def test_same_seed_same_run_and_same_start_for_all(
    example: ModuleType, command: Command, tmp_path: Path
) -> None:
    files = [tmp_path / name for name in ("first", "second", "other")]
    for file, seed in zip(files, (3, 3, 4), strict=True):
        assert example.main(command(checkpoint=file, seed=seed)) == 0
    first, second, other = map(state_of, files)
    assert_same(first, second)
    assert first["runs"][0]["training"] != other["runs"][0]["training"]
    starts = {run["training"][0] for run in first["runs"]}
    assert len(starts) == 1, "the optimizers differ in their first weights or first batch"


@pytest.mark.parametrize(
    ("optimizer", "step"), [("adamw", 4), ("adamw", STEPS), ("dct-adamw", 7), ("dct-adamw", STEPS)]
)
def test_interrupted_run_goes_on_exactly(
    example: ModuleType,
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    optimizer: str,
    step: int,
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert example.main(command(checkpoint=whole)) == 0

    def interrupt(_self: object, run: Any) -> None:
        if (run.optimizer, run.step) == (optimizer, step):
            signal.raise_signal(signal.SIGINT)

    arguments = command(checkpoint=broken, checkpoint_every=1000)
    with monkeypatch.context() as patch:
        patch.setattr(example._job.LiveReport, "show", interrupt)
        capsys.readouterr()
        finished = (optimizer, step) == ("dct-adamw", STEPS)
        assert example.main(arguments) == (0 if finished else 130)
    printed = capsys.readouterr().out
    assert finished or f"Stopped after step {step} of {STEPS}" in printed
    # What has been found out of the first optimizer is shown, whatever stopped the second.
    assert ("│ AdamW " in printed) is (optimizer == "dct-adamw" or step == STEPS)
    saved = state_of(broken)["runs"]
    assert len(saved[-1]["training"]) == step
    assert example.main(arguments) == 0
    assert_same(state_of(broken), state_of(whole))
    # A finished run has nothing to train; it shows the same again.
    capsys.readouterr()
    assert example.main(arguments) == 0
    final = state_of(whole)["runs"][-1]["validation"][-1][1]
    assert re.search(rf"│ DCT-AdamW .* {final:.3f} ", capsys.readouterr().out)


def test_killed_run_goes_on_from_the_last_save(
    example: ModuleType, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert example.main(command(checkpoint=whole)) == 0

    class Killed(BaseException):
        """Ends the run as abruptly as a test can survive."""

    def kill(_self: object, run: Any) -> None:
        if (run.optimizer, run.step) == ("dct-adamw", 8):
            raise Killed

    arguments = command(checkpoint=broken, checkpoint_every=3)
    with monkeypatch.context() as patch:
        patch.setattr(example._job.LiveReport, "show", kill)
        with pytest.raises(Killed):
            example.main(arguments)
    assert len(state_of(broken)["runs"][-1]["training"]) == 6
    assert example.main(arguments) == 0
    assert_same(state_of(broken), state_of(whole))


def test_full_disk_leaves_the_last_checkpoint_whole(
    example: ModuleType, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tmp_path / "checkpoint"
    arguments = command(checkpoint=checkpoint, checkpoint_every=3)
    write, saved = torch.save, []

    def save(content: object, path: Path) -> None:
        if saved:
            path.write_bytes(b"half")
            raise RuntimeError("no space left")
        saved.append(content)
        write(content, path)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save)
        with pytest.raises(SystemExit, match=r"could not write the checkpoint .*no space left"):
            example.main(arguments)
    assert len(state_of(checkpoint)["runs"][-1]["training"]) == 3
    assert not list(tmp_path.glob("*.part"))
    assert example.main(arguments) == 0


def test_full_disk_leaves_the_figures_where_the_picture_has_no_room(
    example: ModuleType, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def savefig(_self: object, path: Path, **_: object) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "no space left", str(path))

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", savefig)
    with pytest.raises(SystemExit, match=r"could not write .*no space left"):
        example.main(command(json=tmp_path / "results.json", optimizer="adamw", steps=2))
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert len(results["runs"][0]["training"]) == 2
    assert [path.name for path in tmp_path.iterdir() if path.suffix in (".png", ".part")] == []


def test_interrupt_without_a_checkpoint_says_so(
    example: ModuleType,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        example._job.LiveReport, "show", lambda _self, _run: signal.raise_signal(signal.SIGINT)
    )
    # A job in the background inherits an ignored interrupt: what was there is what must come back.
    before = signal.getsignal(signal.SIGINT)
    assert example.main(command()) == 130
    assert "--checkpoint PATH" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_of_a_real_process(
    example: ModuleType, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    steps = 200
    assert example.main(command(checkpoint=whole, steps=steps, optimizer="dct-adamw")) == 0
    arguments = command(checkpoint=broken, steps=steps, optimizer="dct-adamw")
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLES / "pretrain_lm.py"), *arguments],
        # The number of threads decides the order in which sums are taken.
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "tokens/s" in line:
                break
        process.send_signal(signal.SIGINT)
        printed, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, errors
    assert errors == ""
    assert "Stopped after step" in printed
    assert str(broken) in printed
    assert 0 < len(state_of(broken)["runs"][-1]["training"]) < steps
    assert example.main(arguments) == 0
    assert_same(state_of(broken), state_of(whole))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rank": 0}, "argument --rank: must be a whole number >= 1 .* got '0'"),
        ({"rank": 1.5}, "argument --rank: must be a whole number >= 1 .* got '1.5'"),
        ({"rank": "nan"}, "argument --rank: .* got 'nan'"),
        ({"rank": 32}, "argument --rank: must leave .* fewer than --d-model = 32 .* got 32"),
        ({"rank": 0.01}, "argument --rank: must leave at least 1 .* got 0.01"),
        ({"heads": 3}, "argument --heads: must divide --d-model = 32 .* got 3"),
        ({"heads": 32}, "argument --heads: .* even width, got 32"),
        ({"steps": 0}, "argument --steps: must be a whole number >= 1, got '0'"),
        ({"steps": "many"}, "argument --steps: must be a whole number >= 1, got 'many'"),
        ({"seed": -1}, "argument --seed: must be a whole number >= 0, got '-1'"),
        ({"lr": 0}, "argument --lr: must be a number above 0, got '0'"),
        ({"lr": "inf"}, "argument --lr: must be a number above 0, got 'inf'"),
        ({"lr": ["1e-3"] * 3}, "argument --lr: must be one rate, or one for each .* got 3"),
        ({"optimizer": "adam"}, "argument --optimizer: .*'adam'"),
        ({"option": "score"}, "argument --option: must be KEY=VALUE, got 'score'"),
        ({"option": "colour=red"}, "argument --option: .*no option 'colour' .*options are .*score"),
        ({"option": "lr=1"}, "argument --option: must not set what has its own .* got lr"),
        ({"option": "score=l3"}, "argument --option: score must be .*'l3'"),
        (
            {"option": "score=l1", "optimizer": "adamw"},
            "argument --option: needs a low-rank optimizer .* got score",
        ),
        ({"text": "/no/such/text"}, "argument --text: must name existing .* got /no/such/text"),
        ({"seq_len": 10**6}, "argument --text: .* at least --seq-len \\+ 1 = 1000001 bytes"),
        ({"output": "/no/such/folder/a.png"}, "argument --output: .* existing folder, got"),
        ({"output": "curves.xyz"}, "argument --output: must end in .* got 'curves.xyz'"),
        # Linux lets nobody write there; elsewhere there is no such folder.
        ({"json": "/proc/a.json"}, "argument --json: .*(can be written to|existing folder), got"),
        ({"json": "/"}, "argument --json: must name a file, got the folder '/'"),
        ({"nonsense": 1}, "unrecognized arguments: --nonsense 1"),
    ],
)
def test_bad_arguments_get_one_line(
    example: ModuleType,
    command: Command,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, object],
    said: str,
) -> None:
    with pytest.raises(SystemExit) as stop:
        example.main(command(**changes))
    assert stop.value.code == 2
    printed, errors = capsys.readouterr()
    assert printed == ""
    assert errors.count("\n") == 1
    assert re.search(f"error: {said}", errors), errors


def test_empty_folder_of_text_is_refused(
    example: ModuleType, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        example.main(command(text=tmp_path))
    assert stop.value.code == 2
    assert re.search(r"--text: a folder must hold files .* none in", capsys.readouterr().err)


def test_checkpoint_of_another_run_is_refused(
    example: ModuleType, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tmp_path / "checkpoint"
    assert example.main(command(checkpoint=checkpoint)) == 0
    before = checkpoint.read_bytes()
    for name, value in {"rank": 4, "steps": 13, "lr": 0.5, "optimizer": "adamw"}.items():
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            example.main(command(checkpoint=checkpoint, **{name: value}))
        assert stop.value.code == 2
        assert f"belongs to a run with --{name} " in capsys.readouterr().err
    other = tmp_path / "other.txt"
    other.write_text("another text\n" * 100, encoding="utf-8")
    with pytest.raises(SystemExit):
        example.main(command(checkpoint=checkpoint, text=other))
    assert "belongs to a run with --text " in capsys.readouterr().err
    assert checkpoint.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_broken_checkpoint_is_refused(
    example: ModuleType,
    command: Command,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: bytes | None,
) -> None:
    checkpoint = tmp_path / "checkpoint"
    if content is None:
        torch.save({"something": torch.ones(3)}, checkpoint)
    else:
        checkpoint.write_bytes(content)
    with pytest.raises(SystemExit) as stop:
        example.main(command(checkpoint=checkpoint))
    assert stop.value.code == 2
    assert "--checkpoint: must be a file that this program saved" in capsys.readouterr().err


def test_first_weights_are_written_once_and_started_from(
    example: ModuleType,
    command: Command,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    weights, files = (
        tmp_path / "weights",
        [tmp_path / name for name in ("first", "second", "other")],
    )
    for file, seed in zip(files[:2], (3, 4), strict=True):
        # The seed decides the order of the text as well: the same one at the first step.
        changes = {"steps": 1, "weights": weights, "optimizer": "adamw", "checkpoint": file}
        assert example.main(command(seed=seed, **changes)) == 0
        if seed == 3:
            written = weights.read_bytes()
    assert weights.read_bytes() == written
    model = example.Llama(32, 1, 2, 16)
    found = importlib.import_module("_weights").first_weights(
        weights, {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    )
    torch.manual_seed(3)
    for name, parameter in example.Llama(32, 1, 2, 16).named_parameters():
        np.testing.assert_array_equal(found[name], parameter.detach().numpy())
    training = example.Training("adamw", 1e-3, _settings(example, command(seed=4, weights=weights)))
    for name, parameter in training.model.named_parameters():
        np.testing.assert_array_equal(found[name], parameter.detach().numpy())
    for changes, said in (
        ({"layers": 2, "weights": weights}, "must have blocks.1.attention.k.weight .* got none"),
        ({"d_model": 64, "weights": weights}, r"must have .* of shape \(64, 64\), got \(32, 32\)"),
        ({"weights": files[0]}, "must be a safetensors file, got"),
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            example.main(command(**changes))
        assert stop.value.code == 2
        assert re.search(f"argument --weights: {said}", capsys.readouterr().err)
    weights.write_bytes(written[:-4] + bytes(4))
    with pytest.raises(SystemExit):
        example.main(
            command(seed=3, steps=1, weights=weights, optimizer="adamw", checkpoint=files[0])
        )
    assert "belongs to a run with --weights" in capsys.readouterr().err


def _settings(example: ModuleType, arguments: list[str]) -> Any:
    settings = importlib.import_module("_settings")
    parser = settings.make_parser("", example.OPTIMIZERS, example.PICTURE)
    rates = {name: recipe.lr for name, recipe in example.OPTIMIZERS.items()}
    return settings.settings_from(parser, arguments, rates)


def test_runaway_loss_ends_with_advice(
    example: ModuleType, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(example.Training, "step", lambda *_: (float("nan"), 0.0))
    with pytest.raises(SystemExit, match=r"AdamW: the loss is nan at step 1; try an --lr below"):
        example.main(command())


def test_repeated_optimizer_is_told_apart_by_its_rate(
    example: ModuleType, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    twice = command(optimizer=["adamw", "adamw"], lr=["1e-3", "2e-3"], steps=2)
    assert example.main(twice) == 0
    printed = capsys.readouterr().out
    assert "│ AdamW at 0.001 " in printed
    assert "│ AdamW at 0.002 " in printed


def test_held_out_text_is_disjoint(example: ModuleType, text: Path) -> None:
    corpus = importlib.import_module("_text").load([text])
    training, held_out = corpus.training.tobytes(), corpus.held_out.tobytes()
    files = [file.read_bytes() for file in sorted(text.iterdir())]
    apart = [file for file in files if hashlib.sha256(file).digest()[0] < 13]
    assert 0 < len(apart) < len(files) / 4
    for file in files:
        assert (file in training) is (file not in apart)
        assert (file in held_out) is (file in apart)


def test_single_file_gives_up_its_end(example: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "book.txt"
    file.write_bytes(bytes(range(256)) * 10)
    corpus = importlib.import_module("_text").load([file])
    assert len(corpus.held_out) == 256
    assert corpus.training.tobytes() + corpus.held_out.tobytes() == file.read_bytes()


@pytest.mark.slow
def test_default_text_is_the_standard_library(example: ModuleType) -> None:
    text_module = importlib.import_module("_text")
    corpus = text_module.load()
    assert len(corpus.training) > 5_000_000
    assert 0.01 < len(corpus.held_out) / len(corpus.training) < 0.2
    assert text_module.load().fingerprint == corpus.fingerprint
    first = corpus.batch(0, seed=0, count=4, window=33)
    assert first.shape == (4, 33)
    np.testing.assert_array_equal(first, corpus.batch(0, seed=0, count=4, window=33))
    for other in ({"step": 1, "seed": 0}, {"step": 0, "seed": 1}):
        assert not np.array_equal(first, corpus.batch(count=4, window=33, **other))
    np.testing.assert_array_equal(
        corpus.validation(count=9, window=33), corpus.validation(count=9, window=33)
    )


def test_learning_rate_warms_up_and_falls(example: ModuleType) -> None:
    factors = [example.rate_factor(step, steps=100) for step in range(100)]
    assert factors[0] == pytest.approx(0.2)
    assert max(factors) == factors[5] == pytest.approx(1.0)
    assert all(left > right for left, right in itertools.pairwise(factors[5:]))
    assert factors[-1] == pytest.approx(0.1, abs=0.01)


def test_model_sees_the_past_alone(example: ModuleType) -> None:
    torch.manual_seed(0)
    model = example.Llama(32, 2, 2, 16)
    tokens = torch.randint(256, (1, 16))
    changed = tokens.clone()
    changed[0, 9:] = (changed[0, 9:] + 1) % 256
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])


def test_rotary_positions_are_relative(example: ModuleType) -> None:
    llama = importlib.import_module("_llama")
    cos, sin = llama.rotary_table(20, 8)
    query, key = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0))

    def product(first: int, second: int) -> torch.Tensor:
        rotated = (llama.rotate(x, cos[at], sin[at]) for x, at in ((query, first), (key, second)))
        return torch.mul(*rotated).sum()

    torch.testing.assert_close(product(3, 1), product(15, 13))
    assert not torch.allclose(product(3, 1), product(3, 2))
