"""The file that crossovers are kept in: read only where the user names it."""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lowrank_core._files import replacing
from lowrank_core.ops.crossovers import Crossovers, measured

#: Environment variable that names a file to read when the first array is seen.
ENVIRONMENT = "LOWRANK_CROSSOVERS"
_VERSION = 1
# Largest size that a file may speak of, far above any layer, and bytes that a file may have.
_LARGEST_SIZE = 2**26
_LARGEST_FILE = 2**20


def read_named_file() -> None:
    """Take over the file that the environment names; warn where it cannot be read.

    Until `lowrank_core.calibrate` has written it there is nothing to take over.
    """
    named = os.environ.get(ENVIRONMENT)
    if named and Path(named).exists():
        try:
            read_crossovers(Path(named))
        except (OSError, ValueError) as error:
            warnings.warn(f"{ENVIRONMENT} is not used: {error}", stacklevel=2)


def read_crossovers(path: Path) -> None:
    """Take over what a file says, all of it or nothing.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is not one that `lowrank_core.calibrate` wrote, or a number in it is out of range.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"path must be a plain file, got {path}")
    if path.stat().st_size > _LARGEST_FILE:
        raise ValueError(f"path must be a file that lowrank_core.calibrate wrote, got {path}")
    try:
        content = json.loads(path.read_text())
        if content["version"] != _VERSION:
            raise ValueError(f"version {content['version']}, not {_VERSION}")
        found = {str(key): _checked(entry) for key, entry in content["crossovers"].items()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"path must be a file that lowrank_core.calibrate wrote, got {path} ({error}); delete it or calibrate again"
        ) from error
    measured.update(found)


def write_crossovers(path: Path) -> None:
    """Write all that was measured or read, beside what the file has of other devices."""
    if path.exists():
        kept = dict(measured)
        read_crossovers(path)
        measured.update(kept)
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = {key: asdict(value) for key, value in sorted(measured.items())}
    with replacing(path) as aside:
        aside.write_text(json.dumps({"version": _VERSION, "crossovers": entries}, indent=1))


def _checked(entry: Any) -> Crossovers:
    small = _number(entry["small_size"], _LARGEST_SIZE)
    few = tuple(
        (max(1, _number(size, _LARGEST_SIZE)), _number(columns, _LARGEST_SIZE))
        for size, columns in entry["few_columns"]
    )
    if not few:
        raise ValueError("few_columns is empty")
    return Crossovers(small, few)


def _number(value: Any, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise ValueError(f"{value!r} is no integer from 0 to {most}")
    return value
