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


def run_sharded(*arguments):
    """What ``sharded_jax.py`` reports of one case on eight simulated devices."""
    flags = f"--xla_force_host_platform_device_count={DEVICES}"
    result = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            str(Path(__file__).with_name("sharded_jax.py")),
            *arguments,
        ],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize(
    "case", ["dct_adamw", "policies", "trion", "stacked", "columns", "explicit"]
)
def test_sharded_step_moves_scores_and_gives_the_same(case):
    found = run_sharded(case)
    assert found["devices"] == DEVICES
    assert found["optimizers"], "a case runs something"
    for name, report in found["optimizers"].items():
        # Nothing that has a number for each row of a matrix goes over the wire, much less a gradient.
        assert report["gathered"] == 0, f"{name}: {report['collectives']}"
        assert report["reduced"] <= report["allowed"], f"{name}: {report['collectives']}"
        assert report["reduced"] < 0.1 * report["gradient"]
        assert report["error"] <= 1e-5, name
        assert report["moved"] > 0, name
        assert report["state_sharded"], name
        assert (report["traces"], report["compiled"]) == (1, 1), name


def test_the_count_of_bytes_sees_a_gather():
    found = run_sharded("gathering")
    report = found["optimizers"]["across the shards"]
    assert report["gathered"] + report["reduced"] >= report["gradient"]
    assert report["error"] <= 1e-5
