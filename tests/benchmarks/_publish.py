"""Put what the benchmarks found into `docs/benchmarks.md`, so that no figure there is typed.

    python tests/benchmarks/_publish.py

writes the tables of `docs/_static/benchmarks/results.json` between the page's markers, and draws its pictures again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _pictures import PICTURES, draw
from _tables import Findings, markdown

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = DOCS / "benchmarks.md"
PUBLISHED = DOCS / "_static" / "benchmarks"
MARKED = re.compile(
    r"(?P<open><!-- benchmark: (?P<part>\w+) -->\n).*?(?P<close><!-- end of benchmark -->)",
    re.DOTALL,
)


def conditions(about: Mapping[str, Any]) -> str:
    """Return one line on what the numbers of a part depend on."""
    # A part that was measured before Numba was asked for did not have it.
    versions = {"numba": "not installed", **about["versions"]}
    return (
        f"*{about['processor']}, {about['threads']} threads on {about['cores']} cores, PyTorch {versions['torch']}, "
        f"JAX {versions['jax']}, NumPy {versions['numpy']}, Numba {versions['numba']}; "
        f"load {about['load']:g} at the end; `{about['command']}`*"
    )


def section(part: str, results: Mapping[str, Any]) -> str:
    """Return what stands between the markers of a part."""
    if part not in results["parts"]:
        return "\nNot measured yet.\n\n"
    found = results["parts"][part]
    pieces = [conditions(found["environment"]), markdown(Findings.from_json(found)).rstrip()]
    if part in PICTURES:
        about = " ".join((PICTURES[part].__doc__ or "").split())
        pieces.insert(0, f"![{about}](_static/benchmarks/{part}.png)")
    return "\n" + "\n\n".join(pieces) + "\n\n"


def rendered(text: str, results: Mapping[str, Any]) -> str:
    """Return a page with its marked regions written anew."""
    return MARKED.sub(
        lambda match: match["open"] + section(match["part"], results) + match["close"], text
    )


def publish(results: Mapping[str, Any]) -> Path:
    """Write the page."""
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")
    return PAGE


if __name__ == "__main__":
    stored = json.loads((PUBLISHED / "results.json").read_text(encoding="utf-8"))
    list(draw(stored, PUBLISHED))
    print(publish(stored))
