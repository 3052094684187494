"""Files: what their format needs, and how they are written and read."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Windows has no such locks: two writers of one file are the caller's to keep apart there.
fcntl: Any = importlib.import_module("fcntl") if importlib.util.find_spec("fcntl") else None


@contextmanager
def needing_safetensors() -> Iterator[None]:
    """Turn a failed import of safetensors, in the block, into an error that says what it is needed for."""
    try:
        yield
    except ImportError as error:
        raise ImportError(
            "save_state and load_state need safetensors: pip install 'lowrank-core[safetensors]'"
        ) from error


def check_plain(path: str | os.PathLike[str]) -> None:
    """Raise ``OSError`` unless there is a file that can be read, ``ValueError`` if it is no plain one."""
    with _naming(path):
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise ValueError(f"path must be a plain file, got {os.fspath(path)}")
        with Path(path).open("rb"):
            pass


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give the name of a file to write aside, which then takes the place of ``path``, or of the file that it links to.

    It is in a folder beside the file, ``.NAME.part``. One that a process left behind when it was killed is cleared by
    the next, and of two writers of one file the second waits for the first. A file that is replaced gives its mode to
    the new one.

    Raises
    ------
    OSError
        If the file cannot be written; it names ``path``.
    ValueError
        If ``path`` is something else than a plain file.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise ValueError(f"path must be a plain file, got {os.fspath(path)}")
    with _naming(path):
        if target.exists() and not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        with _folder_beside(target) as folder:
            aside = folder / "new"
            yield aside
            # The folder was made under the process's mask, which cannot be read without being changed.
            mode = folder.stat().st_mode & 0o666
            if target.exists():
                mode = stat.S_IMODE(target.stat().st_mode)
            aside.chmod(mode)
            with aside.open("rb+") as file:
                # Or, after a power cut, the name might be there before the content is.
                os.fsync(file.fileno())
            aside.replace(target)


@contextmanager
def _naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Have errors of the file system in the block, and what safetensors makes of them, name ``path``."""
    name = os.fspath(path)
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, name) from error
    except Exception as error:
        if not type(error).__module__.startswith("safetensors"):
            raise
        if number := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1])), name) from error
        raise OSError(f"path cannot be written, {name}: {error}") from error


@contextmanager
def _folder_beside(target: Path) -> Iterator[Path]:
    """Make an empty folder that belongs to this writer of ``target`` alone, and remove it in the end."""
    folder = target.with_name(f".{target.name}.part")
    handle = _locked(folder)
    try:
        _clear(folder)
        yield folder
    finally:
        _clear(folder)
        folder.rmdir()
        if handle is not None:
            os.close(handle)


def _locked(folder: Path) -> int | None:
    """Make a folder, or wait until the writer that has made it is gone; return what holds it."""
    while True:
        # Not `exist_ok`, which looks again, when another writer may have removed it.
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
        if fcntl is None:
            return None
        try:
            handle = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue
        # Some file systems have no locks.
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        # The writer that was waited for has removed the folder; another may have made one.
        if folder.exists() and os.path.samestat(os.fstat(handle), folder.stat()):
            return handle
        os.close(handle)


def _clear(folder: Path) -> None:
    """Remove what is in a folder."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
