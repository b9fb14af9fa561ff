"""Record batches of Arrow streams and files, checked before they are decompressed.

    found = scan(f, path, size_bytes)                # ArrowScan(num_rows, stop, damage)
    for batch in batches_of(f): ...                  # with found.num_rows rows before the damage

An Arrow file (Feather version 2) is a stream between two marks. pyarrow decompresses a batch as a whole, and does not
give its number of rows before that, so the headers of messages (Flatbuffers) are read here. Source: "Serialization and
Interprocess Communication" of the Arrow columnar format.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa

from weft.errors import UserError

_FILE_MARK, _FEATHER_1_MARK = b"ARROW1", b"FEA1"
_CONTINUATION = -1
_DICTIONARY, _RECORD_BATCH = 2, 3  # kinds of messages
_MAX_BATCH_BYTES = 1 << 30  # decompressed
_MAX_HEADER_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class ArrowScan:
    """The number of rows that can be read, the position where the last of them ends, and why the others cannot."""

    num_rows: int
    stop: int
    damage: str | None


class _DamageError(Exception):
    pass


def scan(f: BinaryIO, path: str, size_bytes: int) -> ArrowScan:
    """Read the headers of a file. Raises UserError for a file of Feather version 1."""
    mark = f.read(len(_FILE_MARK))
    if mark.startswith(_FEATHER_1_MARK):
        raise UserError(f"{path} is Feather version 1, which pyarrow no longer reads: convert it to Parquet")
    position = 8 if mark == _FILE_MARK else 0
    num_rows, is_file = 0, position > 0
    try:
        while (message := _message(f, position, size_bytes)) is not None:
            num_rows, position = num_rows + message[0], message[1]
    except (_DamageError, struct.error) as e:
        return ArrowScan(num_rows, position, str(e) if isinstance(e, _DamageError) else "a header is damaged")
    if position == size_bytes and is_file:
        return ArrowScan(num_rows, position, "it is truncated")
    return ArrowScan(num_rows, position, None)


def batches_of(f: Any) -> Iterator[pa.RecordBatch]:
    """Yield the record batches of an open file. Raises pyarrow's exceptions."""
    f.seek(8 if f.read(len(_FILE_MARK)) == _FILE_MARK else 0)
    yield from pa.ipc.open_stream(f)


def _message(f: BinaryIO, position: int, size_bytes: int) -> tuple[int, int] | None:
    """Return the rows of the message at `position` and where it ends; None at the end of the stream."""
    f.seek(position)
    if len(prefix := f.read(8)) < 4:
        return None
    (length,) = struct.unpack("<i", prefix[:4])
    header = position + 4
    if length == _CONTINUATION:
        length, header = struct.unpack("<i", prefix[4:])[0], position + 8
    if length == 0:
        return None
    if not 0 < length <= _MAX_HEADER_BYTES:
        raise _DamageError("a header is damaged")
    f.seek(header)
    table = _Table.root(f.read(length))
    kind, content, body_bytes = table.number(1, "B"), table.table(2), table.number(3, "q")
    body = header + length
    if body_bytes < 0 or body + body_bytes > size_bytes:
        raise _DamageError("it is truncated")
    batch = content.table(1) if kind == _DICTIONARY and content else content
    if batch is None or kind not in (_DICTIONARY, _RECORD_BATCH):
        return 0, body + body_bytes
    if batch.table(3) and (unpacked := _unpacked_bytes(f, body, batch)) > _MAX_BATCH_BYTES:
        raise _DamageError(f"a record batch of {body_bytes} bytes decompresses to {unpacked}")
    if (num_rows := batch.number(0, "q")) < 0:
        raise _DamageError("a header is damaged")
    return num_rows if kind == _RECORD_BATCH else 0, body + body_bytes


def _unpacked_bytes(f: BinaryIO, body: int, batch: _Table) -> int:
    """Return the size of the decompressed buffers of a record batch, each of which begins with its size."""
    total = 0
    for offset, length in batch.pairs(2):
        if length >= 8:
            f.seek(body + offset)
            total += max(0, struct.unpack("<q", f.read(8))[0])
    return total


@dataclass(frozen=True, slots=True)
class _Table:
    """A table of a Flatbuffer at a position."""

    content: bytes
    position: int

    @classmethod
    def root(cls, content: bytes) -> _Table:
        return cls(content, struct.unpack_from("<I", content)[0])

    def _field(self, number: int) -> int:
        """Return the position of a field, 0 for its default value."""
        fields = self.position - struct.unpack_from("<i", self.content, self.position)[0]
        entry = 4 + 2 * number
        if fields < 0 or entry >= struct.unpack_from("<H", self.content, fields)[0]:
            return 0
        offset: int = struct.unpack_from("<H", self.content, fields + entry)[0]
        return offset and self.position + offset

    def number(self, field: int, kind: str) -> int:
        position = self._field(field)
        return int(struct.unpack_from(f"<{kind}", self.content, position)[0]) if position else 0

    def table(self, field: int) -> _Table | None:
        position = self._field(field)
        return _Table(self.content, position + self.number(field, "I")) if position else None

    def pairs(self, field: int) -> Iterator[tuple[int, int]]:
        """Yield the elements of a vector of pairs of int64."""
        if position := self._field(field):
            position += self.number(field, "I")
            for i in range(struct.unpack_from("<I", self.content, position)[0]):
                yield struct.unpack_from("<qq", self.content, position + 4 + 16 * i)
