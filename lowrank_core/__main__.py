"""`python -m lowrank_core`: versions, adapters and devices, for a report of a fault."""

from __future__ import annotations

import platform
import sys
import warnings
from importlib import import_module
from importlib.metadata import PackageNotFoundError, entry_points, version
from importlib.util import find_spec

from lowrank_core import __version__, ops_for_namespace
from lowrank_core.ops.registry import ENTRY_POINT_GROUP

#: Other distributions whose versions a report needs.
OTHERS = ("array-api-compat", "numba", "optax", "safetensors", "scipy", "transformers", "triton")
#: Libraries whose arrays' functions are not in the top module.
NAMESPACES = {"jax": "jax.numpy"}


def lines() -> list[str]:
    """Return what there is, a line each."""
    found = [
        f"lowrank-core {__version__}, Python {platform.python_version()}, {platform.platform()}"
    ]
    for name in OTHERS:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name}: not installed")
    found.extend(_adapter(name) for name in sorted(entry_points(group=ENTRY_POINT_GROUP).names))
    return found


def _adapter(name: str) -> str:
    """Return the version of an array library, its adapter and its devices."""
    if find_spec(name) is None:
        return f"{name}: not installed"
    try:
        module = import_module(name)
        ops = ops_for_namespace(import_module(NAMESPACES.get(name, name)))
        with warnings.catch_warnings():
            # PyTorch warns of kinds of devices that it knows and no longer makes.
            warnings.simplefilter("ignore")
            known = ops.xp.__array_namespace_info__().devices()
        devices = ", ".join(str(device) for device in known if str(device) not in ("None", "meta"))
    except Exception as error:  # noqa: BLE001 - a library that does not load is what the report is for
        return f"{name}: installed, but {type(error).__name__}: {error}"
    return f"{name} {module.__version__}, adapter {type(ops).__name__}, devices: {devices}"


if __name__ == "__main__":
    sys.stdout.write("\n".join(lines()) + "\n")
