"""A byte range of a file as a file of its own, optionally with other bytes before it.

with View(path, 42, 1000, b"header") as view: soundfile.SoundFile(view)
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any


class View(io.RawIOBase):
    """The bytes `prefix`, then the bytes of a file from `start` to `stop`.

    libsndfile calls it from C, where exceptions are lost: after an OSError the view ends, and `error` has the reason.
    """

    def __init__(self, path: Path, start: int, stop: int, prefix: bytes = b"") -> None:
        """Open the file."""
        self._file = path.open("rb")
        self._start, self._prefix, self._position = start, prefix, 0
        self._size = len(prefix) + stop - start
        self.error: OSError | None = None

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
        if num_bytes <= 0 or self.error is not None:
            return b""
        try:
            self._file.seek(self._start + self._position - len(self._prefix))
            return self._file.read(num_bytes)
        except OSError as e:
            self.error = e
            return b""

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()
