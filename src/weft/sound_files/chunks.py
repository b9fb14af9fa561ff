"""Bytes of a file that the sizes in its header leave out.

A size that is too small loses audio without notice: libsndfile decodes the declared part, and ignores what follows.
"""

from __future__ import annotations

from typing import BinaryIO, Literal

from weft.sound_files.source import Source

_ByteOrder = Literal["little", "big"]
_FORMATS: dict[bytes, tuple[int, int, _ByteOrder]] = {  # position of the first chunk, bytes of a size, byte order
    b"RIFF": (12, 4, "little"),
    b"RIFX": (12, 4, "big"),
    b"RF64": (12, 4, "little"),
    b"FORM": (12, 4, "big"),
    b"caff": (8, 8, "big"),
}
UNKNOWN_BYTES = 0x7F000000  # a program that writes to a pipe puts about this size or more into the header
_AU = b".snd"


def undeclared_bytes(source: Source) -> int:
    """Return the number of bytes after the last chunk of a WAV, AIFF, CAF or AU file; 0 for other formats."""
    with source.open() as f:
        size = f.seek(0, 2)
        f.seek(0)
        head = f.read(12)
        if head[:4] == _AU:
            start, length = int.from_bytes(head[4:8], "big"), int.from_bytes(head[8:12], "big")
            return 0 if length >= UNKNOWN_BYTES else max(0, size - start - length)
        return _after_chunks(f, size, *_FORMATS[head[:4]]) if head[:4] in _FORMATS else 0


def _after_chunks(f: BinaryIO, size: int, place: int, size_bytes: int, order: _ByteOrder) -> int:
    data_bytes = None  # of RF64, which has no room for it in the header of the chunk
    while place + 4 + size_bytes <= size:
        f.seek(place)
        name, length = f.read(4), int.from_bytes(f.read(size_bytes), order)
        if not (name.isascii() and name.decode("ascii").isprintable()):
            break
        if name == b"ds64":
            data_bytes = int.from_bytes(f.read(16)[8:], order)
        elif name == b"data" and data_bytes is not None:
            length = data_bytes
        if name in (b"data", b"SSND") and length >= UNKNOWN_BYTES:
            return 0
        place += 4 + size_bytes + length + (length % 2 if size_bytes == 4 else 0)
    return max(0, size - place)
