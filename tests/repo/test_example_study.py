"""The study of update rules: a line a run, nothing run twice, a table of what is there."""

import importlib
import json
import shlex
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("torch")

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
RESULTS = EXAMPLES.parent / "results" / "study.jsonl"
SMALL = ["--steps", "3", "--d-model", "64", "--layers", "1", "--seq-len", "16", "--batch", "2"]


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield importlib.import_module("study")
    for name in (
        "study",
        "_study_table",
        "_rivals",
        "_job",
        "_llama",
        "_text",
        "_weights",
        "_report",
        "_settings",
    ):
        sys.modules.pop(name, None)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_method_trains_and_is_run_once(study, tmp_path, capsys):
    out = tmp_path / "study.jsonl"
    command = [*SMALL, "--method", *study.METHODS, "--lr", "1e-3", "--out", str(out)]
    assert study.main(command) == 0
    first = out.read_text()
    runs = {line["method"]: line for line in lines(out)}
    assert list(runs) == list(study.METHODS)
    # Before training a byte costs log(256) = 5.5; three steps are no loss to speak of.
    assert all(4 < line["loss"] < 6 for line in runs.values())
    numbers = {method: line["numbers_per_weight"] for method, line in runs.items()}
    assert numbers["scale"] == 0
    assert numbers["adamw"] == 2
    assert numbers["foam"] == numbers["apollo"] == 0.5
    assert numbers["factored, 8 bits"] < numbers["factored"] < 0.31 < numbers["sign"] < 0.52
    assert study.main(command) == 0
    # A line's own command is that of its run, which has been done.
    for line in runs.values():
        assert study.main([*shlex.split(line["command"])[1:], "--out", str(out)]) == 0
    assert out.read_text() == first
    capsys.readouterr()
    assert study.main(["--report", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert f"{len(runs)} runs" in printed


def test_best_rates_are_told_and_edges_with_them(study):
    best_runs = importlib.import_module("_study_table").best_runs
    runs = [
        {"method": method, "lr": lr, "seed": seed, "loss": loss + seed}
        for method, losses in {"adamw": (3, 2, 4), "foam": (1, 2, 3)}.items()
        for lr, loss in enumerate(losses)
        for seed in (0, 1)
    ]
    found = {method: (lr, edge) for method, lr, _, edge in best_runs(runs)}
    assert found == {"adamw": (1, False), "foam": (0, True)}


def test_differences_are_paired_by_seed_and_sizes_apart(study):
    table = importlib.import_module("_study_table")
    size = dict.fromkeys(table.SIZE, 1)
    losses = {
        ("adamw", 0): 2.0,
        ("adamw", 1): 3.0,
        ("foam", 0): 1.9,
        ("foam", 1): 2.7,
        ("foam", 2): 9.0,
    }
    runs = [
        size | {"method": method, "lr": 1.0, "seed": seed, "loss": loss}
        for (method, seed), loss in losses.items()
    ]
    larger = [run | {"width": 2, "loss": 0.0} for run in runs]
    for own in table.sizes(runs + larger).values():
        adamw, foam = sorted(table.standings(own), key=lambda standing: standing.method)
        assert adamw.differences == []
        assert len(foam.runs) == 3
        assert len(foam.differences) == 2
    adamw, foam = table.standings(table.sizes(runs + larger)[1, 1, 1, 1, 1, 1])
    assert (adamw.method, adamw.mean) == ("adamw", 2.5)
    assert foam.differences == pytest.approx([-0.1, -0.3])
    assert foam.standard_error == pytest.approx(0.1)


def test_published_tables_are_those_of_the_lines(study):
    table = importlib.import_module("_study_table")
    text = (RESULTS.parent.parent / "evidence.md").read_text(encoding="utf-8")
    every = table.read(RESULTS)
    for own in table.sizes(every).values():
        assert table.markdown(table.wholes(own)) in text
    (parts,) = filter(None, map(table.parts, table.sizes(every).values()))
    assert table.markdown(parts, "factored") in text
