"""Byte-level text: what to read, what to hold out, and which windows each step trains on.

NumPy only, so that every framework's example trains on the same bytes in the same order.
"""

import hashlib
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SUFFIXES = (".md", ".py", ".rst", ".txt")
# Not the text of the standard library itself: installed packages, and the tests that some systems
# leave out, which would make the same Python version differ between machines.
SKIPPED_FOLDERS = frozenset({"__pycache__", "dist-packages", "site-packages", "test", "tests"})


class TextError(ValueError):
    """The text asked for is missing, unreadable or too small."""


@dataclass(frozen=True)
class Corpus:
    """Training and held-out bytes, each a 1-D uint8 array."""

    training: NDArray[np.uint8]
    held_out: NDArray[np.uint8]
    source: str

    @cached_property
    def fingerprint(self) -> str:
        """A short name for exactly these bytes, split exactly this way."""
        digest = hashlib.sha256(self.training.tobytes())
        digest.update(len(self.training).to_bytes(8, "little"))
        digest.update(self.held_out.tobytes())
        return digest.hexdigest()[:16]

    def require(self, window: int) -> None:
        """Refuse text in which not even one window fits on either side of the split."""
        for name, part in (("training", self.training), ("held-out", self.held_out)):
            if len(part) < window:
                raise TextError(
                    f"the {name} part of the text must hold at least --seq-len + 1 = {window} "
                    f"bytes, got {len(part)} from {self.source}"
                )

    def batch(self, step: int, *, seed: int, count: int, window: int) -> NDArray[np.int64]:
        """Training windows of one step, ``(count, window)``.

        They depend on the seed and the step number alone, so a run that resumes sees what it would
        have seen, and every optimizer sees the same.
        """
        generator = np.random.default_rng([seed, step])
        starts = generator.integers(0, len(self.training) - window + 1, size=count)
        return _windows(self.training, starts, window)

    def validation(self, *, count: int, window: int) -> NDArray[np.int64]:
        """Held-out windows spread evenly over the text, ``(count, window)``, always the same."""
        starts = np.linspace(0, len(self.held_out) - window, num=count).astype(np.int64)
        return _windows(self.held_out, np.unique(starts), window)


def _windows(text: NDArray[np.uint8], starts: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    return text[starts[:, None] + np.arange(length)].astype(np.int64)


def load(paths: Sequence[Path] = ()) -> Corpus:
    """Read the files and folders named, or the standard library's own sources, and split them.

    About one file in twenty is held out, chosen by the hash of what it contains: the choice does
    not depend on where the text lies, and copies of a file fall on the same side. Text that comes
    in too few files for that gives up its last tenth instead.
    """
    if paths:
        files = sorted({file for path in paths for file in _text_files(path)})
        source = ", ".join(str(path) for path in paths)
    else:
        root = Path(sysconfig.get_path("stdlib"))
        files = sorted(
            file
            for file in root.rglob("*.py")
            if not SKIPPED_FOLDERS.intersection(file.relative_to(root).parts)
            # Written when Python itself was built: it describes the machine.
            and not file.name.startswith("_sysconfigdata")
        )
        source = f"the standard library's sources ({root})"
        if not files:
            raise TextError(f"must be given: this Python comes without sources in {root}")

    training: list[bytes] = []
    held_out: list[bytes] = []
    for file in files:
        try:
            content = file.read_bytes()
        except OSError as error:
            raise TextError(f"must be readable, got {file} ({error.strerror})") from None
        chosen = hashlib.sha256(content).digest()[0] < 13  # of 256: about one in twenty
        (held_out if chosen else training).append(content)
    parts = [np.frombuffer(b"\n".join(part), dtype=np.uint8) for part in (training, held_out)]
    if min(map(len, parts)) * 50 < sum(map(len, parts)):
        whole = np.concatenate(parts)
        parts = np.split(whole, [len(whole) - len(whole) // 10])
    return Corpus(*parts, source=source)


def _text_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path.resolve()]
    if not path.is_dir():
        raise TextError(f"must name existing files or folders, got {path}")
    files = [
        file.resolve()
        for file in path.rglob("*")
        if file.suffix in SUFFIXES and file.is_file() and "__pycache__" not in file.parts
    ]
    if not files:
        endings = ", ".join(SUFFIXES)
        raise TextError(f"a folder must hold files ending in {endings}, got none in {path}")
    return files
