"""The page says of every campaign what its result file does: how many were tried, how many failed, by which command."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

RESULTS = sorted((ROOT / "docs" / "results" / "campaigns").glob("*.json"))
PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")


def row_of(result):
    return f"| {result['tried']:,} | {result['failed']} | `{result['command']}` |"


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_page_states_the_result(path):
    result = json.loads(path.read_text(encoding="utf-8"))
    assert path.stem == result["campaign"]
    assert row_of(result) in PAGE
    assert result["failed"] == len(result["failures"]) == 0


def test_there_are_results():
    assert len(RESULTS) >= 6
