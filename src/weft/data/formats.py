"""Text files as documents: .txt, .jsonl (also .gz and .zst, and as .json.gz and .json.zst), .parquet, .arrow.

    for document in read(Piece(path, name, start_byte, stop_byte, size_bytes), skipped): ...

Every format follows one rule, so that pieces that tile a file give each document once, whatever the cuts: a document
belongs to the piece in which it begins. A compressed file begins at its first byte and cannot be cut. What of a file
cannot be read is skipped: a damaged row group of Parquet, or all that follows damage in other formats.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, BinaryIO

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from weft.data.files import is_url, open_file
from weft.data.skipped import Skipped
from weft.errors import UserError

TXT_DOCUMENT_BYTES = 4096  # some 700 English words
_ROWS_AT_ONCE = 1000
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class TextDocument:
    """One text of a corpus. `id` is the corpus's own, or names the file and the place in it."""

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes [start, stop) of the `size_bytes` of a file, an absolute path or a URL; `name` tells files apart in ids."""

    path: str
    name: str
    start: int
    stop: int
    size_bytes: int

    def rows(self, num_rows: int) -> range:
        """Which of the file's `num_rows` rows are this piece's, row i beginning at byte i * size_bytes // num_rows."""
        return range(-(-self.start * num_rows // self.size_bytes), -(-self.stop * num_rows // self.size_bytes))

    def open(self) -> BinaryIO:
        return open_file(self.path, self.size_bytes)


Reader = Callable[[Piece, Skipped], Iterator[TextDocument]]


def read(piece: Piece, skipped: Skipped) -> Iterator[TextDocument]:
    """The documents that begin in `piece`, exact but for outer white space; bad ones go to `skipped`.

    Raises UserError for a file that is not there or may not be read, and for a table without a column `text`.
    """
    try:
        yield from _READERS[suffix_of(piece.path) or ""](piece, skipped)
    except (OSError, pa.ArrowException) as e:
        if not _is_damage(e):
            raise UserError(f"{piece.path} cannot be read ({_reason(e)}): see that it is there, and run again") from e
        if piece.start == 0:  # every piece of the file meets it
            skipped.add(piece.path, f"cannot be read to its end: {_reason(e)}")


def suffix_of(path: str) -> str | None:
    """The format of a text file, by its name; None for other files."""
    return next((suffix for suffix in _READERS if path.lower().endswith(suffix)), None)


def _is_damage(e: Exception) -> bool:
    """Whether an error is of what a file holds, and not of the disk, the network or memory, which may pass."""
    return not isinstance(e, MemoryError) and (not isinstance(e, OSError) or e.errno is None)


def _reason(e: Exception) -> str:
    return (str(e).splitlines() or [type(e).__name__])[0]


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
    mine = piece.rows(num)
    document, start = b"", 0
    with piece.open() as f:
        f.seek(mine.start * piece.size_bytes // num)
        for i in range(mine.start, mine.stop + 1):  # the head of the last stretch ends the last document
            mark = i * piece.size_bytes // num
            stretch = f.read((i + 1) * piece.size_bytes // num - mark) if i < num else b""
            cut = _first_cut(stretch) if 0 < i < num else 0
            if i > mine.start and ((whole := (document + stretch[:cut]).removeprefix(_BOM).strip()) or num == 1):
                name = piece.name if num == 1 else f"{piece.name}:{i - 1}"
                yield from _checked(name, whole, f"{piece.path} byte {start}", skipped)
            document, start = stretch[cut:], mark + cut


def _first_cut(stretch: bytes) -> int:
    return next((found.end() for cut in _CUTS if (found := cut.search(stretch))), 0)


def _jsonl(piece: Piece, skipped: Skipped) -> Iterator[TextDocument]:
    with piece.open() as f:
        if piece.start:
            f.seek(piece.start - 1)
            if not f.readline(piece.stop - piece.start).endswith(b"\n"):
                return  # all of it is inside one line
        yield from _json_lines(f, f.tell(), piece.stop, piece, skipped)


def _packed_jsonl(piece: Piece, skipped: Skipped) -> Iterator[TextDocument]:
    if piece.start == 0:
        with piece.open() as f, unpacked(f, piece.path) as lines:
            yield from _json_lines(lines, 0, None, piece, skipped)


def unpacked(f: BinaryIO, path: str) -> BinaryIO:
    """What a file holds, which is compressed where its name says so: .gz or .zst."""
    method = {".gz": "gzip", ".zst": "zstd"}.get(os.path.splitext(path.lower())[1])
    if method is None:
        return f
    return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(f, "r"), method))  # type: ignore[arg-type]


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
        yield from _checked(_id(row.get("id"), name), row.get("text"), where, skipped)


def _parquet(piece: Piece, skipped: Skipped) -> Iterator[TextDocument]:
    with piece.open() as f, pq.ParquetFile(f) as file:
        names, about = _columns(file.schema_arrow, piece.path), file.metadata
    rows, first = piece.rows(about.num_rows), 0
    for group in range(about.num_row_groups):
        stop = first + about.row_group(group).num_rows
        mine = range(max(first, rows.start), min(stop, rows.stop))
        if mine:
            try:
                table = _row_group(piece.path, piece.size_bytes, group, names)
            except (OSError, pa.ArrowException) as e:
                if not _is_damage(e):
                    raise
                where = f"{piece.path} rows {mine.start} to {mine.stop - 1}"
                skipped.add(where, f"their row group cannot be read: {_reason(e)}", len(mine))
            else:
                yield from _table(table, first, mine, piece, skipped)
        first = stop


@lru_cache(maxsize=1)
def _row_group(path: str, size_bytes: int, group: int, names: tuple[str, ...]) -> pa.Table:
    """A row group, kept for the pieces that follow: it can be many times longer than one."""
    with open_file(path, size_bytes) as f, pq.ParquetFile(f, page_checksum_verification=True) as file:
        return file.read_row_group(group, names)


def _arrow(piece: Piece, skipped: Skipped) -> Iterator[TextDocument]:
    """What `datasets` saves to disk: an Arrow stream. At a URL it is not cut: each piece would fetch all of it."""
    if is_url(piece.path):
        if piece.start:
            return
        piece = replace(piece, stop=piece.size_bytes)
    with piece.open() if is_url(piece.path) else pa.memory_map(piece.path) as f:
        table = pa.ipc.open_stream(f).read_all()
        names = _columns(table.schema, piece.path)
        yield from _table(table.select(names), 0, piece.rows(len(table)), piece, skipped)


def _columns(schema: pa.Schema, path: str) -> tuple[str, ...]:
    if "text" not in schema.names:
        raise UserError(f"{path} has no column `text` (it has {', '.join(schema.names)}): rename the one that holds it")
    return tuple(name for name in ("id", "text") if name in schema.names)


def _table(table: pa.Table, first: int, rows: range, piece: Piece, skipped: Skipped) -> Iterator[TextDocument]:
    """Documents of the `rows` of a file, of which `table` begins with row `first`."""
    for start in range(rows.start, rows.stop, _ROWS_AT_ONCE):
        some = table.slice(start - first, min(_ROWS_AT_ONCE, rows.stop - start))
        texts = _values(some["text"])
        ids = _values(some["id"]) if "id" in some.schema.names else [None] * len(texts)
        for i, (name, text) in enumerate(zip(ids, texts, strict=True), start):
            yield from _checked(_id(name, f"{piece.name}:{i}"), text, f"{piece.path} row {i}", skipped)


def _values(column: pa.ChunkedArray) -> list[Any]:
    """The values of a column; strings as bytes, which may turn out to be none."""
    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    return (column.cast(pa.large_binary()) if is_text else column).to_pylist()


def _id(name: Any, otherwise: str) -> str:
    if isinstance(name, bytes):
        return name.decode(errors="backslashreplace")
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
    ".json.gz": _packed_jsonl,
    ".json.zst": _packed_jsonl,
    ".parquet": _parquet,
    ".arrow": _arrow,
}
