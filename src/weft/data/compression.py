"""Decompression of gzip and zstd that returns everything before a damage.

    f = io.BufferedReader(GzipFile(packed))
    f.readline(), f.raw.damage          # the file ends at a damage

Libraries raise an error at a damage and drop what they have decoded of the same block of input. Zeros after a gzip file
are ignored, as by `gzip -d`. The memory is bounded for any input.
"""

from __future__ import annotations

import io
import zlib
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa

from weft.errors import reason_of

_PIECE_BYTES = 64 << 10
_TRUNCATED = "it is truncated"


@dataclass(frozen=True, slots=True)
class Damage:
    """The reason of a damage, and the position in the compressed file from which data are lost (None: nothing is)."""

    reason: str
    position: int | None


class Unpacker(io.RawIOBase):
    """A readable file that decompresses another from its first byte."""

    damage: Damage | None = None

    def __init__(self, packed: BinaryIO) -> None:
        self._packed = packed

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def _read(self, size: int) -> bytes:
        """Return at most `size` bytes; none at the end or at a damage."""
        raise NotImplementedError


class GzipFile(Unpacker):
    """One or several gzip members. After a wrong checksum, the next member is read."""

    def __init__(self, packed: BinaryIO) -> None:
        super().__init__(packed)
        self._input, self._position = b"", 0  # what is not decompressed yet, and where it ends
        self._member: Any = None  # None between members
        self._num_members, self._num_to_skip = 0, 0

    def _read(self, size: int) -> bytes:
        while self.damage is None or self.damage.position is None:
            self._input = self._input or self._next_piece()
            if self._member is None and not self._begin_member():
                return b""
            if not self._input:
                self.damage = Damage(_TRUNCATED, self._position)
            elif self._member is not None and (content := self._decompress(size)):
                return content
        return b""

    def _next_piece(self) -> bytes:
        piece = self._packed.read(_PIECE_BYTES)
        self._position += len(piece)
        return piece

    def _begin_member(self) -> bool:
        """Begin a member if the input has one, or skip zeros. False at the end of the file."""
        while self._input:
            skipped = self._input[self._num_to_skip :]
            self._num_to_skip -= len(self._input) - len(skipped)
            self._input = skipped.lstrip(b"\0") if self._num_members else skipped
            if self._input:
                break
            self._input = self._next_piece()
        else:
            return False
        self._member = zlib.decompressobj(wbits=31)
        self._num_members += 1
        return True

    def _decompress(self, size: int) -> bytes:
        before = self._member.copy()
        try:
            content: bytes = self._member.decompress(self._input, size)
        except zlib.error as e:
            return self._up_to_damage(before, str(e))
        self._input = self._member.unconsumed_tail or self._member.unused_data
        if self._member.eof:
            self._member = None
        return content

    def _up_to_damage(self, member: Any, message: str) -> bytes:
        """Decompress smaller and smaller parts of the input, which are lost with the part in which the damage is."""
        found, part, start = [], self._input, 0
        for step in (1024, 32, 1):
            for begin in range(0, len(part), step):
                before = member.copy()
                try:
                    found.append(member.decompress(part[begin : begin + step]))
                except zlib.error:
                    member, part, start = before, part[begin : begin + step], start + begin
                    break
        try:
            while content := member.decompress(part, 1):
                found.append(content)
                part = member.unconsumed_tail
        except zlib.error:
            pass
        self._input = self._input[start + 1 :]
        position = self._position - len(self._input)
        reason = message.rsplit(": ", 1)[-1]
        if message.endswith(("incorrect data check", "incorrect length check")):
            self.damage = self.damage or Damage(f"wrong checksum: {reason}", None)
            self._member, self._num_to_skip = None, 4 if message.endswith("data check") else 0
        else:
            self.damage = Damage(reason, position)
        return b"".join(found)


class ZstdFile(Unpacker):
    """One or several zstd frames."""

    def __init__(self, packed: BinaryIO) -> None:
        super().__init__(packed)
        self._pieces = _Pieces(packed)
        self._stream, self._num_read = _zstd_stream(self._pieces), 0

    def _read(self, size: int) -> bytes:
        if self.damage is not None:
            return b""
        try:
            content: bytes = self._stream.read(size)
        except (OSError, pa.ArrowException) as e:
            if not is_damage(e):
                raise
            content = self._up_to_damage()
            reason = _TRUNCATED if "Truncated" in str(e) else reason_of(e)
            self.damage = Damage(reason, self._pieces.last)
        self._num_read += len(content)
        return content

    def _up_to_damage(self) -> bytes:
        """Read the file again, byte by byte from the piece with the damage on."""
        self._packed.seek(0)
        stream = _zstd_stream(_Pieces(self._packed, self._pieces.last))
        remaining, found = self._num_read, []
        while remaining:
            remaining -= len(stream.read(min(remaining, _PIECE_BYTES)))
        try:
            while content := stream.read(1):
                found.append(content)
        except (OSError, pa.ArrowException) as e:
            if not is_damage(e):
                raise
        return b"".join(found)


class _Pieces(io.RawIOBase):
    """A file that is read in pieces, of one byte from `single_from` on. The last piece begins at `last`."""

    def __init__(self, f: BinaryIO, single_from: int | None = None) -> None:
        self._f, self._single_from, self.last, self._position = f, single_from, 0, 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        size = _PIECE_BYTES if size < 0 else min(size, _PIECE_BYTES)
        if self._single_from is not None:
            size = min(size, max(1, self._single_from - self._position))
        piece = self._f.read(size)
        if piece:
            self.last = self._position
        self._position += len(piece)
        return piece


def _zstd_stream(pieces: _Pieces) -> pa.CompressedInputStream:
    return pa.CompressedInputStream(pa.PythonFile(pieces, "r"), "zstd")


def is_damage(e: Exception) -> bool:
    """Whether an error is due to a file's contents, not to the disk, the network or memory."""
    return not isinstance(e, MemoryError) and (not isinstance(e, OSError) or e.errno is None)
