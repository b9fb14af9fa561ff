"""Ranges of text files, and the documents in them.

document = document_of("a.jsonl:0", "A text. ", "a.jsonl byte 0", skipped)       # None if it is bad
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, BinaryIO

from weft.data.lines import MAX_DOCUMENT_BYTES, TOO_LONG
from weft.data.skipped import Skipped
from weft.data.storage import open_file
from weft.text.inputs import decode


@dataclass(frozen=True, slots=True)
class TextDocument:
    """A text of a corpus. `id` is the corpus's, or the name of the file and the position in it."""

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class FileRange:
    """Bytes [start, stop) of a file of `size_bytes`. `path` is absolute or a URL; `name` identifies the file in ids."""

    path: str
    name: str
    start: int
    stop: int
    size_bytes: int

    def rows(self, num_rows: int) -> range:
        """Return the rows that begin in this range, if row i of `num_rows` begins at byte i * size_bytes / num_rows."""
        return range(-(-self.start * num_rows // self.size_bytes), -(-self.stop * num_rows // self.size_bytes))

    def open(self) -> BinaryIO:
        """Open the file at its first byte."""
        return open_file(self.path, self.size_bytes)


def document_of(name: str, text: Any, where: str, skipped: Skipped, num_bytes: int = 0) -> TextDocument | None:
    """Return a document without outer white space, or add its `num_bytes` to `skipped` and return None.

    `text` is UTF-8, or a value of `parse_json`.
    """
    try:
        if isinstance(text, bytes | str) and len(text) > MAX_DOCUMENT_BYTES:
            raise ValueError(TOO_LONG)
        text = decode(text) if isinstance(text, bytes) else text
        if not isinstance(text, str):
            raise ValueError("no `text`" if text is None else "`text` is not a string")
        if not (text := text.strip()):
            raise ValueError("empty")
    except ValueError as e:
        skipped.add(where, str(e), num_bytes=num_bytes)
        return None
    skipped.num_good += 1
    return TextDocument(name, text)
