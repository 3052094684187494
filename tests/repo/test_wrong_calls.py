"""Type checkers know every option: they refuse each wrong call of `wrong_calls.py`, and none of the right ones."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILE = Path(__file__).with_name("wrong_calls.py")
LINES = FILE.read_text(encoding="utf-8").splitlines()
WRONG = set(range(LINES.index("# Wrong.") + 2, len(LINES) + 1))


def lines_of_mypy(folder):
    # The cache of the checkout: libraries take it a minute the first time.
    command = [sys.executable, "-m", "mypy", "--output", "json", str(FILE)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {row["line"] for row in found if row["severity"] == "error"}


def lines_of_pyright(folder):
    shutil.copy(FILE, folder)
    sources = [str(ROOT), str(ROOT / "backends"), str(ROOT / "frontends")]
    settings = {"include": [FILE.name], "extraPaths": sources, "typeCheckingMode": "standard"}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    command += ["--project", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    found = json.loads(done.stdout)["generalDiagnostics"]
    return {row["range"]["start"]["line"] + 1 for row in found if row["severity"] == "error"}


@pytest.mark.parametrize(
    ("checker", "lines_of"),
    [
        ("pyright", lines_of_pyright),
        # Of a checkout that has not been checked before, a minute.
        pytest.param("mypy", lines_of_mypy, marks=pytest.mark.slow),
    ],
)
def test_every_wrong_call_is_refused_and_no_right_one(checker, lines_of, tmp_path):
    if importlib.util.find_spec(checker) is None:
        pytest.skip(f"{checker} is not installed")
    assert lines_of(tmp_path) == WRONG
