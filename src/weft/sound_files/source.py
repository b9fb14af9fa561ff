"""The bytes of a sound: a file, a byte range of a file, or a value of a Parquet file.

source = source_of(address_of("talks.tar#bytes=512,90112"))
with source.open() as f: f.read(4)
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from weft.errors import UserError
from weft.sound_files.address import Address
from weft.sound_files.parquet_values import value_of
from weft.sound_files.view import ByteRange


@dataclass(frozen=True)
class Source:
    """A sound file. `name` describes it in messages; `path` is the file that contains it."""

    name: str
    path: Path

    @property
    def is_file(self) -> bool:
        """Whether the sound is a whole file, which libsndfile can open by its name."""
        return type(self) is Source

    def open(self) -> BinaryIO:
        """Open the sound at its first byte."""
        return self.path.open("rb")

    @property
    def size_bytes(self) -> int:
        return self.path.stat().st_size


@dataclass(frozen=True)
class _Range(Source):
    start: int
    stop: int

    def open(self) -> BinaryIO:
        return io.BufferedReader(ByteRange(self.path.open("rb"), self.start, self.stop))

    @property
    def size_bytes(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class _Value(Source):
    row: int
    column: str

    @cached_property
    def _content(self) -> bytes:
        return value_of(self.path, self.row, self.column)

    def open(self) -> BinaryIO:
        return io.BytesIO(self._content)

    @property
    def size_bytes(self) -> int:
        return len(self._content)


def source_of(address: Address) -> Source:
    """Return the source of the whole sound of an address. Raises UserError for a range that is not in the file."""
    kind, _, numbers = address.part.partition("=")
    if kind == "row":
        row, column = numbers.split(",", 1)
        return _Value(address.sound, address.file, int(row), column)
    if kind == "bytes":
        start, stop = map(int, numbers.split(","))
        if not start <= stop <= address.file.stat().st_size:
            raise UserError(f"{address.sound} is outside of the file: copy the file again, or fix the manifest")
        return _Range(address.sound, address.file, start, stop)
    return Source(address.sound, address.file)
