"""Sizes of the pages of Parquet files, which pyarrow decompresses as a whole and does not give before that.

    page_problem(f, column_chunks)         # None, or why a row group cannot be read in bounded memory

A page header is a struct in Thrift's compact protocol: field 2 is the decompressed size of the page, 3 the size in the
file. Source: parquet.thrift of apache/parquet-format, and the specification of that protocol in apache/thrift.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, BinaryIO

from weft.errors import reason_of

_MAX_EXPANSION = 16  # by decompression, of most texts
_MAX_GROUP_BYTES = 256 << 20  # decompressed, of a row group that expands more and whose pages are not examined
_MAX_PAGE_BYTES = 384 << 20  # decompressed, in such a group; pyarrow holds two
_MAX_HEADER_BYTES = 1 << 20  # statistics contain values
_FIRST_READ_BYTES = 4096
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY = range(1, 9)
_STRUCT = 12
_UNPACKED, _PACKED = 2, 3


def expands(chunk: Any, min_bytes: int) -> bool:
    """Whether a column chunk has more than `min_bytes` and is much larger than in the file, which texts rarely are."""
    size_bytes: int = chunk.total_uncompressed_size
    return size_bytes > max(min_bytes, _MAX_EXPANSION * chunk.total_compressed_size)


def page_problem(f: BinaryIO, chunks: Sequence[Any]) -> str | None:
    """Return why column chunks cannot be read in bounded memory, or None. pyarrow decompresses a page as a whole."""
    for chunk in chunks:
        if not expands(chunk, _MAX_GROUP_BYTES):
            continue
        start = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
        try:
            largest = largest_page(f, start, chunk.total_compressed_size)
        except ValueError as e:
            return f"they cannot be read: {reason_of(e)}"
        if largest > _MAX_PAGE_BYTES:
            return f"they have a page that decompresses to {largest} bytes"
    return None


def largest_page(f: BinaryIO, start: int, size_bytes: int) -> int:
    """Return the largest decompressed size of the pages in a column chunk. Raises ValueError for a damaged header."""
    position, largest = start, 0
    while position < start + size_bytes:
        f.seek(position)
        header = f.read(_FIRST_READ_BYTES)
        try:
            reader = _Reader(header)
            fields = reader.struct()
        except IndexError:
            reader = _Reader(header + f.read(_MAX_HEADER_BYTES))
            try:
                fields = reader.struct()
            except IndexError:
                raise ValueError("a page header is damaged") from None
        if min(sizes := (fields.get(_UNPACKED, -1), fields.get(_PACKED, -1))) < 0:
            raise ValueError("a page header is damaged")
        largest = max(largest, sizes[0])
        position += reader.position + sizes[1]
    return largest


class _Reader:
    """Reads values of Thrift's compact protocol. Raises IndexError at the end of the content."""

    def __init__(self, content: bytes) -> None:
        self._content, self.position = content, 0

    def struct(self, depth: int = 0) -> dict[int, int]:
        """Read a struct and return its integers by field number."""
        if depth > 10:
            raise ValueError("a page header is damaged")
        found, number = dict[int, int](), 0
        while byte := self._byte():
            kind, delta = byte & 15, byte >> 4
            number = number + delta if delta else self._zigzag()
            if kind in (_I16, _I32, _I64):
                found[number] = self._zigzag()
            elif kind not in (_TRUE, _FALSE):  # the kind is the value
                self._skip(kind, depth)
        return found

    def _skip(self, kind: int, depth: int) -> None:
        if kind == _STRUCT:
            self.struct(depth + 1)
        elif kind in (_I16, _I32, _I64):
            self._varint()
        elif kind == _BINARY:
            self._move(self._varint())
        elif kind in (_TRUE, _FALSE, _BYTE, _DOUBLE):
            self._move(8 if kind == _DOUBLE else 1)
        else:  # page headers have no lists, sets or maps
            raise ValueError("a page header is damaged")

    def _move(self, num_bytes: int) -> None:
        self.position += num_bytes
        if self.position > len(self._content):
            raise IndexError

    def _byte(self) -> int:
        self.position += 1
        return self._content[self.position - 1]

    def _varint(self) -> int:
        value = shift = 0
        while (byte := self._byte()) & 128:
            if shift > 63:
                raise ValueError("a page header is damaged")
            value, shift = value | (byte & 127) << shift, shift + 7
        return value | byte << shift

    def _zigzag(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)
