"""Text files as documents: .txt, .jsonl (also .gz and .zst), .parquet, .arrow.

    for document in read(Piece(path, name, start_byte, stop_byte, size_bytes), skipped): ...

Every format follows one rule, so that pieces that tile a file give each document once, whatever the cuts: a document
belongs to the piece in which it begins. A compressed file begins at its first byte and cannot be cut.
"""

from __future__ import annotations

import io
import mmap
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from weft.data.skipped import Skipped
from weft.errors import UserError

TXT_DOCUMENT_BYTES = 4096  # some 700 English words
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class TextDocument:
    """One text of a corpus. `id` is the corpus's own, or names the file and the place in it."""

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes [start, stop) of the `size_bytes` of a file; `name` tells files of a corpus apart, in ids."""

    path: Path
    name: str
    start: int
    stop: int
    size_bytes: int

    def rows(self, num_rows: int) -> range:
        """Which of the file's `num_rows` rows are this piece's, row i beginning at byte i * size_bytes // num_rows."""
        return range(-(-self.start * num_rows // self.size_bytes), -(-self.stop * num_rows // self.size_bytes))


Reader = Callable[[Piece, Skipped], Iterator[TextDocument]]


def read(piece: Piece, skipped: Skipped) -> Iterator[TextDocument]:
    """The documents that begin in `piece`, exact but for outer white space; bad ones go to `skipped`.

    Raises UserError for a file that is damaged as a whole, or whose table has no `text` column.
    """
    reader = _READERS[suffix_of(piece.path) or ""]
    try:
        yield from reader(piece, skipped)
    except (OSError, pa.ArrowException) as e:
        raise UserError(f"{piece.path} cannot be read ({str(e).splitlines()[0]}): is it whole?") from e


def suffix_of(path: Path) -> str | None:
    """The format of a text file, by its name; None for other files."""
    return next((suffix for suffix in _READERS if path.name.lower().endswith(suffix)), None)


# Where a .txt is cut: after the first blank line past each even mark, or failing one before the next mark, after the
# first line end, sentence or word, or (last) before any whole character.
_CUTS = [
    re.compile(p)
    for p in (
        rb"\n[ \t\r]*\n\s*",
        rb"\n\s*",
        rb"[.!?][\"')\]]*\s+|\xe3\x80\x82|\xef\xbc[\x81\x9f]",
        rb"\s+",
        rb"(?=[\x00-\x7f\xc0-\xff])",
    )
]


def _txt(piece: Piece, skipped: Skipped) -> Iterator[TextDocument]:
    """A file is cut into documents of about TXT_DOCUMENT_BYTES, between paragraphs: a book gives hundreds."""
    num = max(1, round(piece.size_bytes / TXT_DOCUMENT_BYTES))
    with piece.path.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        marks = [i * len(whole) // num for i in range(num + 1)]

        def begin(i: int) -> int:
            if i in (0, num):
                return marks[i]
            return next((m.end() for cut in _CUTS if (m := cut.search(whole, marks[i], marks[i + 1]))), marks[i])

        for i in piece.rows(num):
            document = whole[begin(i) : begin(i + 1)].removeprefix(_BOM).strip()
            name = piece.name if num == 1 else f"{piece.name}:{i}"
            if document or num == 1:
                yield from _checked(name, document, f"{piece.path} byte {begin(i)}", skipped)


def _jsonl(piece: Piece, skipped: Skipped) -> Iterator[TextDocument]:
    with piece.path.open("rb") as f:
        if piece.start:
            f.seek(piece.start - 1)
            f.readline()
        yield from _json_lines(f, f.tell(), piece.stop, piece, skipped)


def _packed_jsonl(piece: Piece, skipped: Skipped) -> Iterator[TextDocument]:
    if piece.start == 0:
        with pa.input_stream(str(piece.path), compression="detect") as f:
            yield from _json_lines(io.BufferedReader(f), 0, None, piece, skipped)


def _json_lines(lines: Any, offset: int, stop: int | None, piece: Piece, skipped: Skipped) -> Iterator[TextDocument]:
    """Documents of the lines that begin before byte `stop`; `lines` stands at byte `offset`."""
    while (stop is None or offset < stop) and (line := lines.readline()):
        where, name = f"{piece.path} byte {offset}", f"{piece.name}:{offset}"
        offset += len(line)
        if not (line := line.removeprefix(_BOM).strip()):
            continue
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as e:
            skipped.add(where, f"not JSON: {e}")
            continue
        row = row if isinstance(row, Mapping) else {}
        yield from _checked(_id(row, name), row.get("text"), where, skipped)


def _parquet(piece: Piece, skipped: Skipped) -> Iterator[TextDocument]:
    with pq.ParquetFile(piece.path) as file:
        names = _columns(file.schema_arrow, piece.path)
        rows, first = piece.rows(file.metadata.num_rows), 0
        for group in range(file.num_row_groups):
            stop = first + file.metadata.row_group(group).num_rows
            if first < rows.stop and rows.start < stop:
                yield from _table(file.read_row_group(group, names), first, rows, piece, skipped)
            first = stop


def _arrow(piece: Piece, skipped: Skipped) -> Iterator[TextDocument]:
    """What `datasets` saves to disk: an Arrow stream."""
    with pa.memory_map(str(piece.path)) as f:
        table = pa.ipc.open_stream(f).read_all()
        yield from _table(table.select(_columns(table.schema, piece.path)), 0, piece.rows(len(table)), piece, skipped)


def _columns(schema: pa.Schema, path: Path) -> list[str]:
    if "text" not in schema.names:
        raise UserError(f"{path} has no column `text` (it has {', '.join(schema.names)}): rename the one that holds it")
    return [name for name in ("id", "text") if name in schema.names]


def _table(table: pa.Table, first: int, rows: range, piece: Piece, skipped: Skipped) -> Iterator[TextDocument]:
    """Documents of those rows of `table`, whose first is row `first` of the file, that are in `rows`."""
    start, stop = max(rows.start - first, 0), min(rows.stop - first, len(table))
    for i, row in enumerate(table.slice(start, stop - start).to_pylist(), first + start):
        yield from _checked(_id(row, f"{piece.name}:{i}"), row["text"], f"{piece.path} row {i}", skipped)


def _id(row: Mapping[str, Any], otherwise: str) -> str:
    name = row.get("id")
    return otherwise if name is None else str(name)


def _checked(name: str, text: Any, where: str, skipped: Skipped) -> Iterator[TextDocument]:
    try:
        text = text.decode() if isinstance(text, bytes) else text
    except UnicodeDecodeError as e:
        skipped.add(where, f"not UTF-8: {e.reason} at byte {e.start} of the document")
        return
    if not isinstance(text, str) or not text.strip():
        skipped.add(where, "no `text`" if text is None else "empty" if isinstance(text, str) else "`text` is no string")
        return
    skipped.num_good += 1
    yield TextDocument(name, text.strip())


_READERS: dict[str, Reader] = {
    ".txt": _txt,
    ".jsonl": _jsonl,
    ".jsonl.gz": _packed_jsonl,
    ".jsonl.zst": _packed_jsonl,
    ".parquet": _parquet,
    ".arrow": _arrow,
}
