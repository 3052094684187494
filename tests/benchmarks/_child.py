"""A part of a benchmark in a process of its own, which prints what it found as JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any


def found_by(script: str, *arguments: object, environment: Mapping[str, str] | None = None) -> Any:
    """Return what ``script`` prints on its last line when given ``arguments``, by default in this environment."""
    command = [sys.executable, script, *map(str, arguments)]
    process = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=1200, env=environment
    )
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: {process.stderr}")
    return json.loads(process.stdout.splitlines()[-1])
