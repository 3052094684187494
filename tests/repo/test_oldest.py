"""The versions that `.ci/oldest` tests are the least that `pyproject.toml` promises; extras bring what they say."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
PINS = dict(
    line.split("==")
    for line in (ROOT / ".ci" / "oldest.txt").read_text(encoding="utf-8").splitlines()
    if "==" in line
)


def padded(version):
    return tuple(map(int, f"{version}.0.0".split(".")[:3]))


def promised():
    """The least version of everything that the extras of `.ci/oldest` name, and the package itself."""
    script = (ROOT / ".ci" / "oldest").read_text(encoding="utf-8")
    (extras,) = re.findall(r"'\.\[([\w,]+)\]'", script)
    stated = [*PROJECT["dependencies"], *(one for e in extras.split(",") for one in EXTRAS[e])]
    return dict(re.fullmatch(r"([\w-]+)>=([\d.]+)", one).groups() for one in stated)


def test_what_is_promised_is_what_is_tested():
    least = promised()
    assert {"array-api-compat", "torch", "jax", "optax", "numpy"} <= set(least)
    assert {name: padded(PINS[name]) for name in least} == {
        name: padded(version) for name, version in least.items()
    }
    # What comes along with one of them has its version.
    assert set(PINS) - set(least) == {"jaxlib"}
    assert PINS["jaxlib"] == PINS["jax"]


def names_of(extra):
    found = set()
    for one in EXTRAS[extra]:
        own = re.fullmatch(r"lowrank-core\[([\w,-]+)\]", one)
        if own:
            found |= set().union(*map(names_of, own[1].split(",")))
        else:
            found.add(re.match(r"[\w-]+", one)[0])
    return found


@pytest.mark.parametrize("extra", ["style", "test"])
def test_small_extras_bring_no_framework_and_dev_brings_them(extra):
    assert not names_of(extra) & {"torch", "jax", "transformers", "cupy-cuda12x"}
    assert names_of(extra) < names_of("dev")


def test_tests_that_the_script_names_exist():
    script = (ROOT / ".ci" / "oldest").read_text(encoding="utf-8")
    named = re.findall(r"tests/\S+\.py", script)
    assert named
    assert all((ROOT / name).is_file() for name in named)
