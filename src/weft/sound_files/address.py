"""Where the samples of an utterance are: a file, a sound in a container, or a time range of either.

address = address_of("talk.flac#t=30,58.4")               # a time range in seconds, as a W3C media fragment
address = address_of("talks.tar#bytes=512,90112")         # a sound in a tar or Arrow file
address = address_of("talks.parquet#row=17,audio#t=0,2")  # a value of a column, and a time range of it
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_SECONDS = r"\d+(?:\.\d+)?"
_ADDRESS = re.compile(
    r"(?P<file>.+?)(?P<part>#(?:bytes=\d+,\d+|row=\d+,[^#]+))?"
    rf"(?P<time>#t=(?P<start>{_SECONDS})?(?:,(?P<stop>{_SECONDS}))?)?",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Address:
    """A file, the part of it that is a sound ("" for all of it, "bytes=START,STOP" or "row=NUMBER,COLUMN"), and times.

    Times are in seconds, as they were written; None is the start or the end of the sound.
    """

    file: Path
    part: str = ""
    start: str | None = None
    stop: str | None = None
    has_times: bool = False

    @property
    def sound(self) -> str:
        """The address of the whole sound, without times."""
        return f"{self.file}#{self.part}" if self.part else str(self.file)


def address_of(audio: str | Path) -> Address:
    """Parse an address. The name of an existing file may look like a part or a time range."""
    text = str(audio)
    found = _ADDRESS.fullmatch(text) if "#" in text else None
    if found is None or os.path.isfile(text):
        return Address(Path(text))
    part, times = found["part"] or "", (found["start"], found["stop"], found["time"] is not None)
    if part and times[2] and os.path.isfile(found["file"] + part):
        return Address(Path(found["file"] + part), "", *times)
    return Address(Path(found["file"]), part[1:], *times)


def file_of(audio: str | Path) -> Path:
    """Return the file of an address."""
    return address_of(audio).file


def with_time_range(audio: str, start_sec: float, stop_sec: float | None) -> str:
    """Return the address of the time range from `start_sec` to `stop_sec`, or to the end, of `audio`."""
    address = address_of(audio)
    offset_sec = float(address.start or 0)
    stop = address.stop if stop_sec is None else f"{offset_sec + stop_sec:.5f}"
    return f"{address.sound}#t={offset_sec + start_sec:.5f}{f',{stop}' if stop else ''}"


def bytes_address(file: str, start: int, stop: int) -> str:
    """Return the address of a sound that is the bytes from `start` to `stop` of a file."""
    return f"{file}#bytes={start},{stop}"


def row_address(file: str, row: int, column: str) -> str:
    """Return the address of a sound that is the value of a column of a Parquet file. Rows count from 0."""
    return f"{file}#row={row},{column}"
