"""What is measured once: which way to transform is the faster, kept in a file and used by every later run."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from helpers import assert_close, normal

import lowrank_core as lc
from lowrank_core import calibration
from lowrank_core.bases.basis import crossovers_on
from lowrank_core.ops.crossovers import device_key, measured
from lowrank_core.ops.crossovers_file import ENVIRONMENT


@pytest.fixture(autouse=True)
def _nothing_measured(monkeypatch, tmp_path):
    before = dict(measured)
    measured.clear()
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "crossovers.json"))
    yield
    measured.clear()
    measured.update(before)


def test_calibration_is_used_and_kept(xp, tmp_path):
    ops = lc.ops_for_namespace(xp)
    device = ops.device_of(ops.xp.ones(1))
    assert crossovers_on(device, ops) is ops.crossovers
    found = lc.calibrate(xp, sizes=(8, 32))
    assert [size for size, _ in found.few_columns] == [8, 32]
    assert all(1 <= columns <= size for size, columns in found.few_columns)
    assert crossovers_on(device, ops) == found
    measured.clear()
    lc.use_crossovers(tmp_path / "crossovers.json")
    assert crossovers_on(device, ops) == found
    assert list(tmp_path.iterdir()) == [tmp_path / "crossovers.json"]


def test_the_faster_of_two_times_decides(monkeypatch):
    # In the order measured: back from 2 columns by the transform and by the product, and from as many as that makes
    # likely; the transform of all, and the product with all; then the same at the next size, and at the last no more
    # of all.
    times = iter([4.0, 1.0, 8.0, 4.0, 5.0, 4.0, 4.0, 1.0, 3.0, 4.0, 4.0, 9.0, 32.0, 1.0, 1.0, 1.0])
    monkeypatch.setattr(calibration, "_seconds", lambda work: next(times))
    found = lc.calibrate(np, sizes=(32, 64, 128))
    assert found == lc.Crossovers(33, ((32, 16), (64, 12), (128, 128)))
    used = crossovers_on("cpu", lc.ops_for_namespace(np))
    assert used.by_matrix(32)
    assert not used.by_matrix(33)
    assert used.by_columns(12, 64)
    assert not used.by_columns(13, 64)
    assert used.by_columns(13, 32), "the whole basis is the faster there"


def test_sizes_in_between_go_by_the_nearest_by_ratio():
    found = lc.Crossovers(1, ((64, 10), (1024, 50)))
    assert [found.columns(size) for size in (1, 64, 255, 257, 9999)] == [10, 10, 10, 50, 50]


def test_choice_changes_no_result(xp):
    x = normal(6, 48)
    ops = lc.ops_for_namespace(xp)
    results = []
    for small in (1, 1000):
        key = device_key(ops.xp, ops.device_of(ops.xp.ones(1)))
        measured[key] = lc.Crossovers(small, ((1, small),))
        results.append(lc.dct(ops.xp.asarray(x)))
    assert_close(results[0], np.asarray(results[1]), xp=xp, dtype="float64")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        '{"version": 2, "crossovers": {}}',
        '{"version": 1, "crossovers": 3}',
        '{"version": 1, "crossovers": {"numpy on cpu": {"small_size": -1, "few_columns": [[1, 1]]}}}',
        '{"version": 1, "crossovers": {"numpy on cpu": {"small_size": 1e999, "few_columns": [[1, 1]]}}}',
        '{"version": 1, "crossovers": {"numpy on cpu": {"small_size": 1, "few_columns": []}}}',
    ],
)
def test_use_crossovers_names_a_bad_file_and_uses_nothing_of_it(content, tmp_path):
    path = tmp_path / "crossovers.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"path must be a file that .*calibrate wrote.*crossovers"):
        lc.use_crossovers(path)
    assert not measured


def test_use_crossovers_without_a_file_is_an_error_of_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        lc.use_crossovers(tmp_path / "none.json")


PROGRAM = """
import numpy, lowrank_core as lc
from lowrank_core.bases.basis import crossovers_on
print(crossovers_on("cpu", lc.ops_for_namespace(numpy)).small_size)
"""


def small_size_of_a_process(**environment):
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | environment,
    )
    return int(run.stdout)


def test_crossovers_are_read_only_where_the_environment_names_a_file(tmp_path):
    entry = {"small_size": 7, "few_columns": [[64, 5]]}
    path = tmp_path / "lowrank-core" / "crossovers.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"version": 1, "crossovers": {"numpy on cpu": entry}}))
    assert small_size_of_a_process(**{ENVIRONMENT: str(path)}) == 7
    # Not where they were kept before, in the user's cache; and a file that cannot be read ends no run.
    others = {ENVIRONMENT: "", "XDG_CACHE_HOME": str(tmp_path)}
    default = lc.ops_for_namespace(np).crossovers.small_size
    assert small_size_of_a_process(**others) == default
    assert small_size_of_a_process(**{ENVIRONMENT: str(tmp_path / "none")}) == default


@pytest.mark.parametrize("sizes", [(), (64, 32), (32, 32), (1, 2)])
def test_bad_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match="sizes must be ascending integers of at least 2"):
        lc.calibrate(np, sizes=sizes)
