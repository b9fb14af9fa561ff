"""Lines of files that may be compressed (.gz, .zst), of bounded length, up to the first damage.

with open(path, "rb") as packed, unpacked(packed, path) as f:
    for line in lines_of(f): line.offset, line.content        # None for a line that is too long
    damage_of(f)                                              # why the file ended early, or None
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from weft.data.compression import Damage, GzipFile, Unpacker, ZstdFile

MAX_DOCUMENT_BYTES = 64 << 20
"""Longest document. A longer one is skipped, so that damaged and malicious files do not fill the memory."""
TOO_LONG = f"longer than {MAX_DOCUMENT_BYTES >> 20} MiB: split it"
_BUFFER_BYTES = 256 << 10
_UNPACKERS: dict[str, type[Unpacker]] = {".gz": GzipFile, ".zst": ZstdFile}


@dataclass(frozen=True, slots=True)
class Line:
    """A line with its position in the decompressed file. `content` is None if it is too long."""

    offset: int
    size_bytes: int
    content: bytes | None


def unpacked(f: BinaryIO, path: str) -> BinaryIO:
    """Return a file that decompresses `f` if the suffix of `path` is .gz or .zst, or `f`.

    It ends where the data are damaged, after everything that decodes before that.
    """
    kind = _UNPACKERS.get(os.path.splitext(path.lower())[1])
    return f if kind is None else io.BufferedReader(kind(f), _BUFFER_BYTES)  # type: ignore[return-value]


def damage_of(f: BinaryIO) -> Damage | None:
    """Return where and why an unpacked file ended before its end. Call it after reading."""
    raw = getattr(f, "raw", None)
    return raw.damage if isinstance(raw, Unpacker) else None


def lines_of(f: BinaryIO, offset: int = 0, stop: int | None = None, with_empty: bool = True) -> Iterator[Line]:
    """Yield the lines that begin before byte `stop`; the position of `f` is `offset`."""
    while (stop is None or offset < stop) and (content := f.readline(MAX_DOCUMENT_BYTES)):
        if content == b"\n" and not with_empty:  # at the speed of readline: a small file can decompress to very many
            offset += 1
            continue
        size_bytes, is_long = len(content), False
        if size_bytes == MAX_DOCUMENT_BYTES and not content.endswith(b"\n"):
            while (rest := f.readline(_BUFFER_BYTES)) and not rest.endswith(b"\n"):
                size_bytes, is_long = size_bytes + len(rest), True
            size_bytes, is_long = size_bytes + len(rest), is_long or bool(rest)
        yield Line(offset, size_bytes, None if is_long else content)
        offset += size_bytes
