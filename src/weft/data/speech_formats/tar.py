"""The regular files in an uncompressed tar file, with the places of their contents.

    for member in members(f, size_bytes): member.name, member.start, member.stop     # a Member, or a Damage at the end

Nothing is extracted, and links and devices are ignored. `tarfile` ends at some damages without an error, and keeps all
members in memory. Reference: POSIX.1-2001, "pax Interchange Format"; GNU tar manual, "Basic Tar Format".
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from weft.data.compression import Damage

_BLOCK = tarfile.BLOCKSIZE
_MAX_NAME_BYTES = 1 << 20  # of a header with a long name, or other extensions
_PIECE_BYTES = 1 << 20


class Member(NamedTuple):
    """A file and the range of bytes of its content."""

    name: str
    start: int
    stop: int


def members(f: BinaryIO, size_bytes: int) -> Iterator[Member | Damage]:
    """Yield the files in order. If the tar file is damaged, or not complete, a Damage is the last item."""
    position, name, size = 0, None, None  # name and size by an extension before the header
    try:
        while (header := _header(f, position, size_bytes)) is not None:
            start = position + _BLOCK
            kind, num_bytes = header.type, header.size if size is None else size
            stop = start + num_bytes
            if not start <= stop <= size_bytes:
                raise ValueError("a header is damaged" if stop < start else "it is truncated")
            if kind in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
                if num_bytes > _MAX_NAME_BYTES:
                    raise ValueError("a header is damaged")
                f.seek(start)
                content = f.read(num_bytes)
                if kind == tarfile.GNUTYPE_LONGNAME:
                    name = _text(content.rstrip(b"\0"))
                else:
                    records = dict(_records(content))
                    name = _text(records[b"path"]) if b"path" in records else name
                    size = int(records[b"size"]) if b"size" in records else size
            elif kind not in (tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE):
                if kind in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE):
                    yield Member(header.name if name is None else name, start, stop)
                name = size = None
            position = start + -(-num_bytes // _BLOCK) * _BLOCK
    except (ValueError, tarfile.HeaderError) as e:
        yield Damage(str(e) if type(e) is ValueError else "a header is damaged", position)


def _header(f: BinaryIO, position: int, size_bytes: int) -> tarfile.TarInfo | None:
    """Return the header at a position, None for the end mark. Raises ValueError or HeaderError if there is neither."""
    f.seek(position)
    block = f.read(_BLOCK)
    if len(block) < _BLOCK:
        raise ValueError("it is truncated" if position else "it is empty")
    if block.strip(b"\0"):
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    while piece := f.read(_PIECE_BYTES):
        if piece.strip(b"\0"):
            raise ValueError("it has data after its end: it is several tar files in one")
    return None


def _records(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keywords and values of an extended header. Raises ValueError for a damaged one."""
    position = 0
    while position < len(content) and content[position]:
        length, _, _ = content[position : position + 20].partition(b" ")
        if not length.isdigit() or not len(length) + 2 < int(length) <= len(content) - position:
            raise ValueError("a header is damaged")
        keyword, _, value = content[position + len(length) + 1 : position + int(length) - 1].partition(b"=")
        yield keyword, value
        position += int(length)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
