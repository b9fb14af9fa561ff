"""The streams of a chained Ogg file, of which libsndfile decodes the first only.

Reference: RFC 3533, sections 4 and 6.
"""

from __future__ import annotations

from typing import BinaryIO

from weft.errors import UserError
from weft.sound_files.source import Source

_MAGIC = b"OggS"
_FIRST_PAGE = 2  # flag
_SEARCH_BYTES = 1 << 16


def streams(source: Source) -> list[tuple[int, int]]:
    """Return the byte range of each stream of a chained file; one range for an ordinary file.

    Raises UserError if the last page of a stream declares less audio than the pages before it.
    """
    starts, after_first_pages, last_granule, max_granule = [0], False, 0, 0
    with source.open() as f:
        size, place = f.seek(0, 2), 0
        while (found := _page(f, place, size)) is not None:
            place, num_bytes, flags, granule = found
            if flags & _FIRST_PAGE and after_first_pages:
                starts.append(place)
                _check(source, last_granule, max_granule)
                after_first_pages, last_granule, max_granule = False, 0, 0
            after_first_pages = after_first_pages or not flags & _FIRST_PAGE
            if granule >= 0:
                last_granule, max_granule = granule, max(granule, max_granule)
            place += num_bytes
    _check(source, last_granule, max_granule)
    return list(zip(starts, [*starts[1:], size], strict=True))


def _check(source: Source, last_granule: int, max_granule: int) -> None:
    if last_granule < max_granule:
        raise UserError(f"{source.name} declares a length that is less than its audio: export it again")


def _page(f: BinaryIO, place: int, size: int) -> tuple[int, int, int, int] | None:
    """Return the first page from `place`: its position, size in bytes, flags and granule position."""
    while place < size:
        f.seek(place)
        head = f.read(27)
        if head[:4] == _MAGIC and len(head) == 27:
            table = f.read(head[26])
            return place, 27 + len(table) + sum(table), head[5], int.from_bytes(head[6:14], "little", signed=True)
        f.seek(place + 1)
        block = f.read(_SEARCH_BYTES)
        offset = block.find(_MAGIC)
        place += 1 + (offset if offset >= 0 else max(1, len(block) - 3))
    return None
