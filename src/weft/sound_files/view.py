"""A byte range of a file as a file of its own, optionally with other bytes before it.

with View(path.open("rb"), 42, 1000, b"header") as view: soundfile.SoundFile(view)
"""

from __future__ import annotations

import io
from typing import Any, BinaryIO


class ByteRange(io.RawIOBase):
    """The bytes `prefix`, then the bytes of an open file from `start` to `stop`. Closing it closes the file."""

    def __init__(self, file: BinaryIO, start: int, stop: int, prefix: bytes = b"") -> None:
        self._file = file
        self._start, self._prefix, self._position = start, prefix, 0
        self._size = len(prefix) + stop - start

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Set the position, and return it."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        """Read up to as many bytes as `buffer` has, and return their number; 0 at the end."""
        if self._position < len(self._prefix):
            found = self._prefix[self._position : self._position + len(buffer)]
        else:
            found = self._read(min(len(buffer), self._size - self._position))
        buffer[: len(found)] = found
        self._position += len(found)
        return len(found)

    def _read(self, num_bytes: int) -> bytes:
        if num_bytes <= 0:
            return b""
        self._file.seek(self._start + self._position - len(self._prefix))
        return self._file.read(num_bytes)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


class View(ByteRange):
    """A byte range for libsndfile, which reads it from C, where exceptions are lost.

    After an OSError the view ends, and `error` has the reason.
    """

    error: OSError | None = None

    def _read(self, num_bytes: int) -> bytes:
        try:
            return b"" if self.error is not None else super()._read(num_bytes)
        except OSError as e:
            self.error = e
            return b""
