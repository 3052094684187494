"""Make the notebook of the first look from its cells.

    python docs/notebook.py [FILE]

reads `docs/examples/first_look.py`, whose cells begin with `# %%` or `# %% [markdown]`, and writes
`first_look.ipynb` beside it. A test holds the one against the other, and runs the notebook.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("examples") / "first_look.py"


def notebook(text: str) -> dict[str, Any]:
    """The notebook, in format 4.5, without outputs."""
    cells = []
    parts = re.split(r"^# %%(.*)\n", text, flags=re.MULTILINE)[1:]
    for number, (kind, body) in enumerate(zip(parts[::2], parts[1::2], strict=True)):
        markdown = "[markdown]" in kind
        lines = body.strip("\n").splitlines()
        if markdown:
            lines = [line.removeprefix("#").removeprefix(" ") for line in lines]
        else:
            # What is no Python, such as `%matplotlib inline`, is a comment in the source.
            lines = [
                line.replace("# %", "%", 1) if line.startswith("# %") else line for line in lines
            ]
        cell = {
            "cell_type": "markdown" if markdown else "code",
            "id": f"cell-{number}",
            "metadata": {},
            "source": "\n".join(lines).splitlines(keepends=True),
        }
        cells.append(cell if markdown else cell | {"execution_count": None, "outputs": []})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {
        "cells": cells,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def written(text: str) -> str:
    """The notebook as its file holds it."""
    return json.dumps(notebook(text), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else SOURCE.with_suffix(".ipynb")
    path.write_text(written(SOURCE.read_text(encoding="utf-8")), encoding="utf-8")
