"""A file's own checksum among its metadata: digits that stand for zeros while the rest of the file is added up."""

from __future__ import annotations

import os
import re
import zlib
from pathlib import Path
from typing import BinaryIO

#: What the metadata call it, and what stands there until the file has been written.
CHECKSUM, UNKNOWN = "checksum", "0" * 8
# As safetensors writes it. A name that an array has cannot look so: its quotation marks are written with a backslash.
_WRITTEN = re.compile(rb'"checksum":"([0-9a-f]{8})"')
# Bytes added up at a time, and bytes that say how long the header is.
_CHUNK, _LENGTH = 2**20, 8


def seal(path: Path) -> None:
    """Write the checksum of a safetensors file into its metadata, where `UNKNOWN` stands."""
    with path.open("rb+") as file:
        place, digits = _computed(file)
        file.seek(place)
        file.write(digits)


def is_sealed_right(path: str | os.PathLike[str]) -> bool:
    """Return whether a safetensors file is what was sealed; one without a checksum is not."""
    with Path(path).open("rb") as file:
        try:
            place, digits = _computed(file)
        except LookupError:
            return False
        file.seek(place)
        return file.read(len(digits)) == digits


def _computed(file: BinaryIO) -> tuple[int, bytes]:
    """Return where a file's checksum stands, and what it should be: a CRC-32 as hexadecimal digits."""
    size = file.read(_LENGTH)
    header = file.read(int.from_bytes(size, "little"))
    found = _WRITTEN.search(header)
    if found is None:
        raise LookupError("no checksum")
    start, end = found.span(1)
    total = zlib.crc32(size + header[:start] + UNKNOWN.encode() + header[end:])
    while chunk := file.read(_CHUNK):
        total = zlib.crc32(chunk, total)
    return _LENGTH + start, b"%08x" % total
