"""Run the Python code of the documentation, and put what it prints back into the pages.

    python docs/snippets.py [PAGE...]

runs every `python` block of the pages named, of all of them by default, and rewrites each block
that stands under `<!-- output -->` with what the block before it prints. Each block runs as a
reader copies it: after the first block of its page and no other, in a namespace of its own. The
blocks of a page share one fresh interpreter in an empty folder. A block under
`<!-- no-run: why -->` is left out. The tests hold the pages against the same functions.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).resolve().parent
SUPPORT = DOCS.parent / "tests" / "support"
PAGES = {path.name: path for path in (*sorted(DOCS.glob("*.md")), DOCS.parent / "README.md")}

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = re.compile(r"<!-- no-run: \S.* -->\n\Z")
OUTPUT = re.compile(r"<!-- output -->\n\Z")

# Each block is compiled at the line it has in the page, so that a traceback points there. What the
# blocks print goes back by a file.
RUNNER = """
import contextlib, io, json, sys

page, blocks, results, support = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3], sys.argv[4]
if any(name in source for _, source in blocks for name in ("transformers", "lightning", "accelerate")):
    # PyPI's torchvision does not load beside PyTorch's CPU build, and these fail with it.
    sys.path.append(support)
    __import__("model_libraries").import_torchvision()
outputs = []
for number in range(len(blocks)):
    namespace = {"__name__": "__main__"}
    for line, source in blocks[:1] + (blocks[number:number + 1] if number else []):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\\n" * line + source, page, "exec"), namespace)
    outputs.append(printed.getvalue())
with open(results, "w") as file:
    json.dump(outputs, file)
"""


class PageError(Exception):
    """A page whose code fails or prints to the error stream; the message is what it printed there."""


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    start: int
    end: int
    #: Lines of the page before its content.
    line: int
    source: str
    #: Whether it is Python to run.
    runs: bool
    #: Whether it shows what was printed before it.
    is_output: bool


def blocks_of(text: str) -> list[Block]:
    """The fenced blocks of a page."""
    return [
        Block(
            match.start(2),
            match.end(2),
            text.count("\n", 0, match.start(2)),
            match[2],
            match[1] == "python" and not NOT_RUN.search(text, 0, match.start()),
            OUTPUT.search(text, 0, match.start()) is not None,
        )
        for match in FENCE.finditer(text)
    ]


def printed_by(page: str, text: str) -> Iterator[tuple[Block, str]]:
    """Run a page; each block that shows output, with what it should show."""
    blocks = blocks_of(text)
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.json"
        code = json.dumps([(block.line, block.source) for block in blocks if block.runs])
        process = subprocess.run(
            [sys.executable, "-c", RUNNER, page, code, str(results), str(SUPPORT)],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        # A warning is something a reader would see too, and wonder about.
        if process.returncode or process.stderr:
            raise PageError(process.stderr)
        outputs = iter(json.loads(results.read_text()))
    printed = ""
    for block in blocks:
        if block.runs:
            printed = next(outputs)
        if block.is_output:
            yield block, printed


def rewritten(page: str, text: str) -> str:
    """A page with the output of its code brought up to date."""
    for block, printed in reversed(list(printed_by(page, text))):
        text = text[: block.start] + printed + text[block.end :]
    return text


if __name__ == "__main__":
    for name in sys.argv[1:] or PAGES:
        before = PAGES[name].read_text(encoding="utf-8")
        after = rewritten(name, before)
        if after != before:
            PAGES[name].write_text(after, encoding="utf-8")
            print(f"{name}: output rewritten")
