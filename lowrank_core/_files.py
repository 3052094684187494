"""Files: what their format needs, and how they are written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def needing_safetensors() -> Iterator[None]:
    """Turn a failed import of safetensors, in the block, into an error that says what it is needed for."""
    try:
        yield
    except ImportError as error:
        raise ImportError(
            "save_state and load_state need safetensors: pip install 'lowrank-core[safetensors]'"
        ) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the name of a file to write aside, which then takes the place of ``path``."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield aside
        with aside.open("rb+") as file:
            # Or, after a power cut, the name might be there before the content is.
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
