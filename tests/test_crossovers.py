"""What is measured once: which way to transform is the faster, kept in a file and used by every later run."""

import json
import subprocess
import sys

import numpy as np
import pytest
from helpers import assert_close, normal

import lowrank_core as lc
from lowrank_core import crossovers as module


@pytest.fixture(autouse=True)
def _nothing_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_measured", {})
    monkeypatch.setenv(module.ENVIRONMENT, str(tmp_path / "crossovers.json"))


def test_calibration_is_used_and_kept(xp, tmp_path):
    ops = lc.ops_for_namespace(xp)
    device = ops.device_of(ops.xp.ones(1))
    assert ops.crossovers_on(device) is ops.crossovers
    found = lc.calibrate(xp, sizes=(8, 32))
    assert [size for size, _ in found.few_columns] == [8, 32]
    assert all(1 <= columns <= size for size, columns in found.few_columns)
    assert ops.crossovers_on(device) == found
    module._measured.clear()
    module.load(tmp_path / "crossovers.json")
    assert ops.crossovers_on(device) == found
    assert list(tmp_path.iterdir()) == [tmp_path / "crossovers.json"]


def test_the_faster_of_two_times_decides(monkeypatch):
    # In the order measured: back from 2 columns by the transform and by the product, and from as many as that makes
    # likely; the transform of all, and the product with all; then the same at the next size, and at the last no more
    # of all.
    times = iter([4.0, 1.0, 8.0, 4.0, 5.0, 4.0, 4.0, 1.0, 3.0, 4.0, 4.0, 9.0, 32.0, 1.0, 1.0, 1.0])
    monkeypatch.setattr(module, "_seconds", lambda work: next(times))
    found = lc.calibrate(np, sizes=(32, 64, 128))
    assert found == lc.Crossovers(33, ((32, 16), (64, 12), (128, 128)))
    ops = lc.ops_for_namespace(np)
    assert ops.use_matmul(32, "auto", "cpu")
    assert not ops.use_matmul(33, "auto", "cpu")
    assert ops.use_product(12, 64, "auto", "cpu")
    assert not ops.use_product(13, 64, "auto", "cpu")
    assert ops.use_product(13, 32, "auto", "cpu"), "the whole basis is the faster there"
    assert ops.use_product(13, 80, "fft", "cpu") is False
    assert ops.use_product(13, 4096, "matmul", "cpu") is True


def test_sizes_in_between_go_by_the_nearest_by_ratio():
    found = lc.Crossovers(1, ((64, 10), (1024, 50)))
    assert [found.columns(size) for size in (1, 64, 255, 257, 9999)] == [10, 10, 10, 50, 50]


def test_choice_changes_no_result(xp):
    x = normal(6, 48)
    ops = lc.ops_for_namespace(xp)
    results = []
    for small in (1, 1000):
        module._measured[module._key(ops.xp, ops.device_of(ops.xp.ones(1)))] = lc.Crossovers(
            small, ((1, small),)
        )
        results.append(lc.dct(ops.xp.asarray(x)))
    assert_close(results[0], np.asarray(results[1]), xp=xp, dtype="float64")


@pytest.mark.parametrize(
    "content", ["", "{}", '{"version": 2, "crossovers": {}}', '{"version": 1, "crossovers": 3}']
)
def test_a_bad_file_is_named_and_not_used(content, tmp_path):
    path = tmp_path / "crossovers.json"
    path.write_text(content)
    with pytest.warns(UserWarning, match=r"crossovers.json must be a file that .*calibrate wrote"):
        module.load(path)
    assert not module._measured


def test_every_process_reads_the_file(tmp_path):
    entry = {"small_size": 7, "few_columns": [[64, 5]]}
    path = tmp_path / "crossovers.json"
    path.write_text(json.dumps({"version": 1, "crossovers": {"numpy on cpu": entry}}))
    program = (
        "import numpy, lowrank_core as lc; print(lc.ops_for_namespace(numpy).crossovers_on('cpu'))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "Crossovers(small_size=7, few_columns=((64, 5),))"


@pytest.mark.parametrize("sizes", [(), (64, 32), (32, 32), (1, 2)])
def test_bad_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match="sizes must be ascending integers of at least 2"):
        lc.calibrate(np, sizes=sizes)
