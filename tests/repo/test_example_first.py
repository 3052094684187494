"""What newcomers copy first: the example in one file, the one under Lightning, the notebook."""

import importlib
import json
import re
import sys
from pathlib import Path

import pytest
from example_helpers import refused
from model_libraries import import_torchvision

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLES = DOCS / "examples"


@pytest.fixture
def load(monkeypatch):
    """Import an example, made short."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.syspath_prepend(str(DOCS))
    loaded = []

    def load(name):
        loaded.append(name)
        return importlib.import_module(name)

    yield load
    for name in loaded:
        sys.modules.pop(name, None)


def test_the_least_example_is_read_in_a_minute_and_learns(load, capsys):
    assert len((EXAMPLES / "minimal.py").read_text(encoding="utf-8").splitlines()) <= 80
    load("minimal").main()
    printed = capsys.readouterr().out
    rows = re.findall(r"^(\S+) +accuracy (\S+), state (\S+) bytes$", printed, re.MULTILINE)
    found = {name: (float(accuracy), int(state.replace(",", ""))) for name, accuracy, state in rows}
    assert found["DCT-AdamW"][1] < 0.5 * found["AdamW"][1]
    assert min(accuracy for accuracy, _ in found.values()) > 0.95
    # By chance a tenth is right.
    assert "low rank" in printed


@pytest.mark.filterwarnings("ignore")
def test_lightning_trains_and_logs_what_steps_do(load, monkeypatch, capsys):
    import_torchvision()
    pytest.importorskip("lightning")
    monkeypatch.setattr(load("minimal"), "STEPS", 40)
    load("train_lightning").main()
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines() if "/" in line)
    assert {"captured/network.0.weight", "captured/network.2.weight"} == set(printed)
    assert all(0 < float(share) <= 1 for share in printed.values())


def test_steps_of_the_training_job_are_recorded(load, tmp_path, capsys):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 400)
    given = {
        "steps": 3,
        "d-model": 32,
        "layers": 2,
        "heads": 2,
        "batch": 2,
        "seq-len": 16,
        "every": 2,
    }
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    words += ["--text", str(tmp_path / "text"), "--json", str(tmp_path / "rows.json")]
    words += ["--option", "refresh_every=1"]
    example = load("watch_steps")
    assert example.main(words) == 0
    rows = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert sorted({row["step"] for row in rows}) == [1, 3]
    assert {row["name"] for row in rows if "columns" in row} == {example.MATRIX}
    assert all(0 < row["captured"] <= 1 for row in rows)
    drawn = {path.name for path in tmp_path.glob("*.png")}
    assert drawn == {"watch_steps_energy.png", "watch_steps_columns.png"}
    assert "argument --matrix: must be one of" in refused(
        example, [*words, "--matrix", "none"], capsys
    )


NOTEBOOK = EXAMPLES / "first_look.ipynb"


def test_the_notebook_is_made_of_its_cells(load):
    text = NOTEBOOK.with_suffix(".py").read_text(encoding="utf-8")
    assert NOTEBOOK.read_text(encoding="utf-8") == load("notebook").written(text)
    assert "%matplotlib inline" in NOTEBOOK.read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_notebook_runs():
    nbformat, nbclient = map(pytest.importorskip, ("nbformat", "nbclient"))
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    nbclient.NotebookClient(notebook, timeout=120).execute()
    shown = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    assert "".join(out.get("text", "") for out in shown).count("low rank") == 1
    assert sum("image/png" in out.get("data", {}) for out in shown) == 2
