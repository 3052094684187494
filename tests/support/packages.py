"""The four packages as they are installed: their modules, found without running them."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("lowrank_core", "lowrank_backends", "lowrank_torch", "lowrank_jax")


def package_folder(package: str) -> Path:
    """Where an installed package lies, found without running it."""
    spec = importlib.util.find_spec(package)
    assert spec is not None, f"{package} is not installed"
    assert spec.origin is not None, f"{package} has no __init__.py"
    return Path(spec.origin).parent


def module_names() -> Iterator[tuple[str, Path]]:
    """Dotted name and file of every module of the four packages."""
    for package in PACKAGES:
        folder = package_folder(package)
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            yield ".".join((package, *(part for part in parts if part != "__init__"))), path
