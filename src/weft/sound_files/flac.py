"""The length of a FLAC file: what its header declares, and whether its last frame ends there.

Reference: RFC 9639, sections 8.2 and 9.1.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from weft.sound_files.source import Source
from weft.sound_files.view import View

_TAIL_BYTES = 1 << 18  # searched if the header does not state the size of the largest frame
_TAG_BYTES = 4096  # after the last frame
_MAX_HEADER_BYTES = 16
_SYNC = re.compile(rb"\xff[\xf8\xf9]")


@dataclass(frozen=True)
class Flac:
    """Samples per channel by the header (0 if it does not say), and whether the last frame ends there."""

    start: int  # byte position of the header, after ID3 tags
    head: bytes
    size: int
    declared_frames: int
    is_exact: bool


def scan(source: Source) -> Flac | None:
    """Read the header and the last frame of a file; None if it is not FLAC."""
    with source.open() as f:
        size, start = f.seek(0, 2), 0
        f.seek(0)
        tag = f.read(10)
        if tag[:3] == b"ID3" and len(tag) == 10:
            start = 10 + (tag[6] << 21 | tag[7] << 14 | tag[8] << 7 | tag[9])
        f.seek(start)
        head = f.read(42)
        if len(head) < 42 or head[:4] != b"fLaC" or head[4] & 0x7F:
            return None
        largest = int.from_bytes(head[15:18], "big")
        f.seek(max(start + 42, size - (largest + _TAG_BYTES if largest else _TAIL_BYTES)))
        tail = f.read()
    block = int.from_bytes(head[8:10], "big")
    declared = int.from_bytes(head[18:26], "big") & (1 << 36) - 1
    ends = (_end_of_frame(tail[m.start() : m.start() + _MAX_HEADER_BYTES], block) for m in _SYNC.finditer(tail))
    last = max((end for end in ends if end is not None), default=0)  # rarely, other data look like a frame
    return Flac(start, head, size, declared, declared == last)


def without_length(source: Source, flac: Flac) -> View:
    """Return the file without the declared length, so that it is decoded to its end."""
    fields = int.from_bytes(flac.head[18:26], "big") >> 36 << 36
    head = flac.head[:18] + fields.to_bytes(8, "big") + flac.head[26:]
    return View(source.open(), flac.start + len(head), flac.size, head)


def _end_of_frame(head: bytes, block: int) -> int | None:
    """Return the number of the sample after the frame with the header `head`; None if it is not a header."""
    if len(head) < 6 or head[1] & 0xFE != 0xF8 or head[3] & 1 or head[2] & 0x0F == 0x0F or head[2] < 0x10:
        return None
    ones = f"{head[4]:08b}".find("0")  # the length of a number in extended UTF-8
    if ones < 0 or ones == 1:
        return None
    place = 4 + max(1, ones)
    number = head[4] & (0x7F >> ones)
    for byte in head[5:place]:
        number = number << 6 | byte & 0x3F
    size, rate = head[2] >> 4, head[2] & 0x0F
    size_bytes, rate_bytes = {6: 1, 7: 2}.get(size, 0), {12: 1, 13: 2, 14: 2}.get(rate, 0)
    end = place + size_bytes + rate_bytes
    if len(head) <= end or _crc8(head[:end]) != head[end]:
        return None
    if size_bytes:
        num_samples = int.from_bytes(head[place : place + size_bytes], "big") + 1
    else:
        num_samples = 192 if size == 1 else 576 << size - 2 if size < 6 else 256 << size - 8
    is_sample_number = head[1] & 1
    return (number if is_sample_number else number * block) + num_samples


def _crc8(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ 0x07) & 0xFF if crc & 0x80 else crc << 1
    return crc
