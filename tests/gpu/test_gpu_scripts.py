"""The scripts for GPUs, as far as they go without one."""

import importlib.metadata
import importlib.util
import json
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton: not installed"
)


def script(name):
    spec = importlib.util.spec_from_file_location(f"gpu_{name}", HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_without_a_gpu_the_script_says_so(capsys, monkeypatch, tmp_path):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run = script("run")
    assert run.main(["--out", str(tmp_path / "gpu.json")]) == 2
    assert capsys.readouterr().out.strip() == run.NO_GPU
    assert not (tmp_path / "gpu.json").exists()


def test_what_is_missing_is_named(capsys, monkeypatch):
    run = script("run")
    monkeypatch.setitem(run.NEEDED, "no_such_module", "no-such-distribution")
    assert run.main([]) == 3
    assert "pip install no-such-distribution" in capsys.readouterr().out


def test_a_checkout_that_is_not_installed_is_described():
    run = script("run")
    (about,) = run.described().iterdir()
    found = list(importlib.metadata.distributions(path=[str(about.parent)]))
    assert [one.metadata["Name"] for one in found] == ["lowrank-core"]
    points = {point.name: point.value for point in found[0].entry_points}
    assert points["torch"] == "lowrank_backends.torch:TorchOps"
    assert str(about.parent) in run.environment()["PYTHONPATH"]


def test_words_are_counted():
    run = script("run")
    assert run.words_per_weight(0.25) == 5
    assert run.words_per_weight(0.25, chooses=False) == 4
    assert run.words_per_weight(1.0) == 8 == run.ADAMW_WORDS + 1


def test_ratios_are_over_the_baseline():
    run = script("run")
    times = {run.BASELINE: 2.0, "Trion": 3.0, "Muon": "failed"}
    assert run.ratios(times) == {"Trion": 1.5}


def test_sections_are_written_as_they_are_found(tmp_path, capsys):
    run = script("run")
    path = tmp_path / "gpu.json"
    sections = run.Run(path, 100)
    sections.section("good", lambda: {"ms": 1.0})
    assert json.loads(path.read_text()) == {"good": {"ms": 1.0}}
    sections.section("bad", lambda: 1 / 0)
    sections.section("late", lambda: 1, needs=1000)
    found = json.loads(path.read_text())
    assert found["bad"] == {"error": "ZeroDivisionError: division by zero"}
    assert "needs 1000 s" in found["late"]["left out"]
    assert found["good"] == {"ms": 1.0}


@needs_triton
def test_the_report_tells_spills_in_a_loop_from_others():
    report = script("compile_report")
    code = "\n".join(
        [
            *("STL [R1], R2", ".L_x_0:", "LDL R2, [R1]", *["FADD R0, R0, R0"] * 9),
            *("@P0 BRA `(.L_x_0)", "LDL R3, [R1]"),
        ]
    )
    assert report.spills_in_loops(code) == 1
    assert report.spills_in_loops(code.replace("LDL R2", "LDS R2")) == 0


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["high", "highest"])
@pytest.mark.parametrize("kernel", ["sums", "sign", "sums of both", "columns", "lift"])
@pytest.mark.parametrize("chip", [80, 90, 100])
def test_no_kernel_spills_in_a_loop_or_asks_for_too_much_shared_memory(chip, kernel, precision):
    report = script("compile_report")
    for n in report.SIZES:
        if not report.holds(report.factors(n), precision == "highest", chip):
            continue  # where the planner does not let it through
        found = report.report(kernel, n, chip, precision)
        assert found.spills == 0, (n, found)
        assert found.shared <= report.SHARED[chip], (n, found)
        assert found.registers * 32 * report.factors(n).warps <= 65536, (n, found)
