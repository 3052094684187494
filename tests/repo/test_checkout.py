"""What the checkout holds beside the library: layout, README, continuous integration."""

import os
import re
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"lowrank_core", "backends", "frontends", "tests", "docs"}
COMMANDS = {"main-job": "docs/examples/pretrain_lm.py", "tests": "pytest"}


def tracked_files():
    """Paths under version control, or all of them where git does not know this folder."""
    try:
        listing = subprocess.run(
            ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return [path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file()]
    return [Path(name) for name in listing.split("\0") if name]


def readme_command(name, readme=ROOT / "README.md"):
    return subprocess.run(
        ["bash", str(ROOT / ".ci" / "readme-command"), name, str(readme)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_top_level_folders_are_the_five():
    tops = {path.parts[0] for path in tracked_files() if len(path.parts) > 1}
    assert {top for top in tops if not top.startswith(".")} == FOLDERS


@pytest.mark.parametrize("root", ["backends", "frontends"])
def test_source_roots_are_not_packages(root):
    assert not (ROOT / root / "__init__.py").exists()


def test_project_version_is_the_installed_one():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert metadata.version(project["name"]) == project["version"]


def test_dependencies_are_ranges_and_not_pins():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = [
        *project["dependencies"],
        *(item for extra in project["optional-dependencies"].values() for item in extra),
    ]
    assert [item for item in requirements if re.search(r"==", item.partition(";")[0])] == []


def test_readme_holds_exactly_the_two_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"<!-- command: (\S+) -->", text)) == sorted(COMMANDS)


@pytest.mark.parametrize(("name", "runs"), COMMANDS.items())
def test_readme_command_sets_up_and_runs_on_one_line(name, runs):
    result = readme_command(name)
    assert result.returncode == 0, result.stderr
    (command,) = result.stdout.splitlines()
    assert command.startswith("python3 -m venv ")
    assert re.search(r"pip install -e '\.\[[a-z,]+\]'", command)
    assert runs in command.rpartition("&&")[2]
    assert (ROOT / "README.md").read_text(encoding="utf-8").count(command) == 1


@pytest.mark.parametrize(
    "text",
    [
        "no marker",
        "<!-- command: tests -->\n```bash\na\n```\n<!-- command: tests -->\n```bash\nb\n```\n",
        "<!-- command: tests -->\n```bash\na\nb\n```\n",
        "<!-- command: tests -->\n```bash\n```\n",
    ],
    ids=["absent", "twice", "two lines", "empty"],
)
def test_ambiguous_readme_command_is_an_error(text, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(text, encoding="utf-8")
    result = readme_command("tests", readme)
    assert result.returncode == 1
    assert result.stdout == ""
    assert 'markers "<!-- command: tests -->"' in result.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_continuous_integration_runs_the_readme_command(name):
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    function = name.replace("-", "_")
    assert re.search(rf"^{function}\(\) \{{\n  readme_command {name}$", script, re.MULTILINE)
    assert re.search(rf'^section ".*" {function}$', script, re.MULTILINE)


@pytest.mark.parametrize("script", ["run", "readme-command"])
def test_continuous_integration_scripts_can_be_started(script):
    path = ROOT / ".ci" / script
    assert os.access(path, os.X_OK)
    subprocess.run(["bash", "-n", str(path)], check=True)


def test_extras_that_the_readme_names_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = set(project["optional-dependencies"])
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = {
        extra
        for match in re.findall(r"(?:\.|lowrank-core)\[([a-z0-9,-]+)\]", text)
        for extra in match.split(",")
    }
    assert named
    assert named <= extras
