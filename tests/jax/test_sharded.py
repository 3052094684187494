"""Sharded JAX steps: where the matrices are sharded, what the compiled step moves between devices, and the same result.

Each test runs in a process of its own, for JAX settles how many devices there are before its first computation.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("jnp")

DEVICES = 8


def run_sharded(*cases):
    """What ``sharded_jax.py`` reports of some cases on eight simulated devices."""
    flags = f"--xla_force_host_platform_device_count={DEVICES}"
    result = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            str(Path(__file__).parents[1] / "support" / "sharded_jax.py"),
            *cases,
        ],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["devices"] == DEVICES
    return found["cases"]


def check_local(reports):
    assert reports, "a case runs something"
    for name, report in reports.items():
        # Nothing that has a number for each row of a matrix goes over the wire, much less a gradient.
        assert report["gathered"] == 0, f"{name}: {report['collectives']}"
        assert report["reduced"] <= report["allowed"], f"{name}: {report['collectives']}"
        assert report["reduced"] < 0.1 * report["gradient"]
        assert report["error"] <= 1e-5, name
        assert report["moved"] > 0, name
        assert report["state_sharded"], name


def test_sharded_rows_stay_where_they_are():
    cases = run_sharded("dct_adamw", "columns", "stacked", "gathering")
    across = cases.pop("gathering")["across the shards"]
    for reports in cases.values():
        check_local(reports)
    # The count of bytes sees a gather where there is one, and the result is the same.
    assert across["gathered"] + across["reduced"] >= across["gradient"]
    assert across["error"] <= 1e-5


@pytest.mark.slow
def test_so_they_do_with_every_policy_with_trion_and_where_types_tell_shardings():
    for reports in run_sharded("policies", "trion", "explicit").values():
        check_local(reports)


@pytest.mark.slow
def test_explicit_axes_give_what_automatic_ones_do():
    cases = run_sharded("explicit across", "explicit meshes")
    check_local(cases["explicit meshes"])
    for name, report in cases["explicit across"].items():
        assert report["error"] <= 1e-5, name
        assert report["moved"] > 0, name
