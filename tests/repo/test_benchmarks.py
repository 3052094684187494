"""The benchmarks run, what they find is whole, and the page about performance shows just that."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib import image

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "tests" / "benchmarks"
PAGE = ROOT / "docs" / "benchmarks.md"
PUBLISHED = ROOT / "docs" / "_static" / "benchmarks"


def _module(name):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        return importlib.import_module(name)


_race = _module("_race")
_tables = _module("_tables")
_publish = _module("_publish")
PARTS = sorted(path.stem.removeprefix("part_") for path in FOLDER.glob("part_*.py"))


def quick_run(folder, *parts):
    results = folder / "results.json"
    command = [sys.executable, str(FOLDER / "run.py"), "--quick", "--json", str(results)]
    process = subprocess.run(
        [*command, "--output", str(folder), "--parts", *parts],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return json.loads(results.read_text(encoding="utf-8")), process.stdout


def assert_drawn(path):
    """More than one part in a hundred of the picture is not its background."""
    pixels = image.imread(path)
    assert (pixels != pixels[0, 0]).any(axis=-1).mean() > 0.01


# All but two take minutes.
@pytest.mark.parametrize(
    "parts",
    [
        ("matrix", "choice"),
        pytest.param(
            ("transform", "models", "scaling", "stack", "training"), marks=pytest.mark.slow
        ),
        pytest.param(("memory",), marks=pytest.mark.slow),
        pytest.param(("jax", "startup", "compile"), marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_parts_run_and_their_tables_are_whole(tmp_path, parts):
    results, printed = quick_run(tmp_path, *parts)
    assert set(results["parts"]) == set(parts)
    for name in parts:
        found = results["parts"][name]
        assert found["tables"], name
        assert found["environment"]["versions"]["lowrank-core"] != "not installed"
        for table in found["tables"]:
            assert table["title"] in " ".join(printed.split()) or len(table["title"]) > 80
            assert_whole(table)
        for target in found["targets"]:
            assert target["met"] is None or isinstance(target["value"], float)
            assert target["met"] is not None or target["remark"], target
        assert _publish.section(name, results).count("| --") >= len(found["tables"])
    for picture in set(parts) & set(_publish.PICTURES):
        assert_drawn(tmp_path / f"{picture}.png")


def assert_whole(table):
    assert table["rows"], table["title"]
    units = [column["unit"] for column in table["columns"]]
    assert set(units) <= {"", *_tables.UNITS}
    for row in table["rows"]:
        cells = list(zip(row, units, strict=True))
        assert all(isinstance(cell, (float, type(None)) if unit else str) for cell, unit in cells)
        if all(cell is None for cell, unit in cells if unit not in ("", "count")):
            assert re.match("not installed: pip install|fails: |left out", row[-1]), row


def test_every_part_is_on_the_command_line_and_on_the_page():
    text = PAGE.read_text(encoding="utf-8")
    assert sorted(_publish.MARKED.findall(text)[i][1] for i in range(len(PARTS))) == PARTS
    assert sorted(_module("run").PARTS) == PARTS
    assert _module("run").PARTS.keys() >= set(_publish.PICTURES)
    assert sum(share for _, share in _module("run").PARTS.values()) == pytest.approx(1)


def test_page_names_the_command_that_installs_the_peers():
    assert _module("_peers").install_command() in PAGE.read_text(encoding="utf-8")


def stored():
    path = PUBLISHED / "results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"parts": {}}


def test_page_shows_what_was_measured():
    text = PAGE.read_text(encoding="utf-8")
    assert _publish.rendered(text, stored()) == text, "run tests/benchmarks/_publish.py"


def test_pictures_of_the_page_are_there_and_small():
    for part in stored()["parts"]:
        if part in _publish.PICTURES:
            assert (PUBLISHED / f"{part}.png").stat().st_size < 150_000


class Clock:
    """A clock that goes on only while contenders work."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(_race.time, "perf_counter", lambda: self.now)

    def work(self, seconds):
        def step():
            self.now += seconds

        return step


def test_ratio_is_that_of_the_same_round(monkeypatch):
    clock = Clock(monkeypatch)
    slow_down = iter([1.0] * 4 + [10.0] * 100)

    def step(seconds):
        def take():
            clock.now += seconds * factor[0]

        return take

    factor = [1.0]

    def reference():
        factor[0] = next(slow_down)
        clock.now += factor[0]

    contenders = [_race.Contender("one", reference), _race.Contender("three", step(3.0))]
    # In place, so that both of a round run on the same machine.
    monkeypatch.setattr(_race, "_order", lambda count, turn: range(count))
    times = _race.race(contenders, _race.Effort(100.0, most=9))
    assert times["three"].ratio(times["one"]) == pytest.approx(3)


def test_refreshes_are_spread_over_their_period(monkeypatch):
    clock = Clock(monkeypatch)
    plain = _race.Contender("plain", clock.work(1.0))
    seldom = _race.Contender("seldom", clock.work(2.0), clock.work(42.0), period=20)
    times = _race.race([plain, seldom], _race.Effort(1000.0))
    assert times["seldom"].seconds() == pytest.approx((19 * 2 + 42) / 20)
    assert times["seldom"].ratio(times["plain"]) == pytest.approx(4)
    assert not times["seldom"].remark()


def test_the_slow_say_how_often_they_ran(monkeypatch):
    clock = Clock(monkeypatch)
    plain = _race.Contender("plain", clock.work(0.01))
    slow = _race.Contender("slow", clock.work(5.0))
    dear = _race.Contender("dear", clock.work(0.01), clock.work(1.0), 200, refresh_expected=500.0)
    times = _race.race([plain, slow, dear], _race.Effort(30.0))
    assert len(times["plain"].step) >= _race.LEAST_ROUNDS
    assert times["slow"].remark() == f"{len(times['slow'].step)} rounds"
    assert 1 <= len(times["slow"].step) < _race.LEAST_ROUNDS
    assert "not timed" in times["dear"].remark()
    assert not times["dear"].refresh


def test_short_contenders_are_repeated_within_a_round(monkeypatch):
    clock = Clock(monkeypatch)
    calls = []
    work = clock.work(1e-5)
    contender = _race.Contender("short", work, before=lambda: calls.append(1))
    times = _race.race([contender], _race.Effort(1.0, most=7))
    assert len(times["short"].step) == 7
    assert len(calls) > 7 * 100
    assert times["short"].seconds() == pytest.approx(1e-5)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.01234, "0.012"), (1.234, "1.23"), (12.34, "12.3"), (12345.6, "12,346")],
)
def test_numbers_are_written_with_three_digits(value, text):
    assert _tables.significant(value) == text


def test_findings_survive_json():
    table = _tables.Table("t", "T", (_tables.Column("a"), _tables.Column("b", "ms")))
    table.add("x", 0.002)
    table.add("y", None)
    target = _tables.Target("x over y", 1.5, 1.2)
    findings = _tables.Findings([table], [target])
    content = json.loads(json.dumps(findings.as_json()))
    assert content["targets"][0]["met"] is True
    again = _tables.Findings.from_json(content)
    assert json.loads(json.dumps(again.as_json())) == content
    assert _tables.markdown(again).splitlines()[4:6] == ["| x | 2.00 |", "| y | - |"]
    with pytest.raises(ValueError, match="must have 2 cells"):
        table.add("z")


def test_target_without_a_value_says_why():
    target = _tables.Target("a over b", 1.0, None, remark="not installed")
    assert target.met is None
    assert target.cells()[-1] == "not measured: not installed"
    assert _tables.Target("a over b", 2.0, 3.0, at_least=True).met
