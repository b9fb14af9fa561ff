"""Readers of text files: .txt, .jsonl (also .gz and .zst, and as .json.gz and .json.zst), .parquet, .arrow.

    for document in read(FileRange(path, name, start_byte, stop_byte, size_bytes), skipped): ...

A document belongs to the byte range in which it begins, so that ranges that cover a file yield each document once.
A compressed file begins at its first byte. Of a damaged file, only the damaged row groups (Parquet) or everything after
the damage (other formats) are skipped.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from weft.data.skipped import Skipped
from weft.data.storage import is_url, open_file
from weft.errors import UserError
from weft.text.inputs import BOM, decode, id_of, parse_json, valid_text

TXT_DOCUMENT_BYTES = 4096  # about 700 English words
_TABLE_ROWS = 1000
# Places to split a .txt after an even boundary, in this order: a blank line, or before the next boundary the first end
# of a line, a sentence or a word, or the first character.
_SPLITS = [
    re.compile(pattern)
    for pattern in (
        rb"\n[ \t\r]*\n\s*",
        rb"\n\s*",
        rb"[.!?][\"')\]]*\s+|\xe3\x80\x82|\xef\xbc[\x81\x9f]",
        rb"\s+",
        rb"(?=[\x00-\x7f\xc0-\xff])",
    )
]


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
        """Open the file at the first byte of the range."""
        return open_file(self.path, self.size_bytes)


def read(file: FileRange, skipped: Skipped) -> Iterator[TextDocument]:
    """Yield the documents that begin in `file`, without outer white space; bad ones are added to `skipped`.

    Raises UserError for a file that cannot be read, and for a table without a column `text`.
    """
    try:
        yield from _READERS[suffix_of(file.path) or ""](file, skipped)
    except (OSError, pa.ArrowException) as e:
        if not _is_damage(e):
            raise UserError(f"{file.path} cannot be read ({_reason(e)}): check the file and run again") from e
        if file.start == 0:  # every range of the file has the same error
            skipped.add(file.path, f"cannot be read to its end: {_reason(e)}")


def suffix_of(path: str) -> str | None:
    """Return the suffix of a text file; None for other files."""
    return next((suffix for suffix in _READERS if path.lower().endswith(suffix)), None)


def _is_damage(e: Exception) -> bool:
    """Whether an error is due to a file's contents, not to the disk, the network or memory."""
    return not isinstance(e, MemoryError) and (not isinstance(e, OSError) or e.errno is None)


def _reason(e: Exception) -> str:
    return (str(e).splitlines() or [type(e).__name__])[0]


def _txt(file: FileRange, skipped: Skipped) -> Iterator[TextDocument]:
    """Split a file into documents of about TXT_DOCUMENT_BYTES, between paragraphs."""
    num_chunks = max(1, round(file.size_bytes / TXT_DOCUMENT_BYTES))
    rows = file.rows(num_chunks)
    document, start = b"", 0
    with file.open() as f:
        f.seek(rows.start * file.size_bytes // num_chunks)
        for i in range(rows.start, rows.stop + 1):  # the last document ends in the chunk after the last
            boundary = i * file.size_bytes // num_chunks
            chunk = f.read((i + 1) * file.size_bytes // num_chunks - boundary) if i < num_chunks else b""
            ends = (found.end() for pattern in _SPLITS if (found := pattern.search(chunk)))
            split = next(ends, 0) if 0 < i < num_chunks else 0
            if i > rows.start:
                text = (document + chunk[:split]).strip()
                if text or num_chunks == 1:
                    name = file.name if num_chunks == 1 else f"{file.name}:{i - 1}"
                    yield from _checked(name, text, f"{file.path} byte {start}", skipped)
            document, start = chunk[split:], boundary + split


def _jsonl(file: FileRange, skipped: Skipped) -> Iterator[TextDocument]:
    with file.open() as f:
        if file.start:
            f.seek(file.start - 1)
            if not f.readline(file.stop - file.start).endswith(b"\n"):
                return  # the range is inside one line
        yield from _json_lines(f, f.tell(), file.stop, file, skipped)


def _compressed_jsonl(file: FileRange, skipped: Skipped) -> Iterator[TextDocument]:
    if file.start == 0:
        with file.open() as f, unpacked(f, file.path) as lines:
            yield from _json_lines(lines, 0, None, file, skipped)


def unpacked(f: BinaryIO, path: str) -> BinaryIO:
    """Return a file that decompresses `f` if the suffix of `path` is .gz or .zst, or `f`."""
    method = {".gz": "gzip", ".zst": "zstd"}.get(os.path.splitext(path.lower())[1])
    if method is None:
        return f
    return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(f, "r"), method))  # type: ignore[arg-type]


def _json_lines(lines: Any, offset: int, stop: int | None, file: FileRange, skipped: Skipped) -> Iterator[TextDocument]:
    """Yield the documents of lines that begin before byte `stop`; the position of `lines` is `offset`."""
    while (stop is None or offset < stop) and (line := lines.readline()):
        where, name = f"{file.path} byte {offset}", f"{file.name}:{offset}"
        offset += len(line)
        if not (line := line.removeprefix(BOM).strip()):
            continue
        try:
            row = parse_json(line)
        except ValueError as e:
            skipped.add(where, str(e))
            continue
        row = row if isinstance(row, Mapping) else {}
        yield from _checked(id_of(row.get("id")) or name, row.get("text"), where, skipped)


def _parquet(file: FileRange, skipped: Skipped) -> Iterator[TextDocument]:
    with file.open() as f, pq.ParquetFile(f) as parquet:
        columns, metadata = _columns(parquet.schema_arrow, file.path), parquet.metadata
    rows, first = file.rows(metadata.num_rows), 0
    for group in range(metadata.num_row_groups):
        stop = first + metadata.row_group(group).num_rows
        if own := range(max(first, rows.start), min(stop, rows.stop)):
            try:
                table = _row_group(file.path, file.size_bytes, group, columns)
            except (OSError, pa.ArrowException) as e:
                if not _is_damage(e):
                    raise
                where = f"{file.path} rows {own.start} to {own.stop - 1}"
                skipped.add(where, f"their row group cannot be read: {_reason(e)}", len(own))
            else:
                yield from _table(table, first, own, file, skipped)
        first = stop


@lru_cache(maxsize=1)
def _row_group(path: str, size_bytes: int, group: int, columns: tuple[str, ...]) -> pa.Table:
    """Read a row group. It is cached because it can be longer than several ranges."""
    with open_file(path, size_bytes) as f, pq.ParquetFile(f, page_checksum_verification=True) as file:
        return file.read_row_group(group, columns)


def _arrow(file: FileRange, skipped: Skipped) -> Iterator[TextDocument]:
    """Read an Arrow stream, as saved by `datasets`. At a URL, the first range reads all of it."""
    if is_url(file.path):
        if file.start:
            return
        file = replace(file, stop=file.size_bytes)
    with file.open() if is_url(file.path) else pa.memory_map(file.path) as f:
        table = pa.ipc.open_stream(f).read_all()
        columns = _columns(table.schema, file.path)
        yield from _table(table.select(columns), 0, file.rows(len(table)), file, skipped)


def _columns(schema: pa.Schema, path: str) -> tuple[str, ...]:
    if "text" not in schema.names:
        raise UserError(f"{path} has no column `text` (it has {', '.join(schema.names)}): rename the column with texts")
    return tuple(name for name in ("id", "text") if name in schema.names)


def _table(table: pa.Table, first: int, rows: range, file: FileRange, skipped: Skipped) -> Iterator[TextDocument]:
    """Yield the documents of `rows` of a file. The first row of `table` is row `first` of the file."""
    for start in range(rows.start, rows.stop, _TABLE_ROWS):
        part = table.slice(start - first, min(_TABLE_ROWS, rows.stop - start))
        texts = _values(part["text"])
        ids = _values(part["id"]) if "id" in part.schema.names else [None] * len(texts)
        for i, (name, text) in enumerate(zip(ids, texts, strict=True), start):
            yield from _checked(id_of(name) or f"{file.name}:{i}", text, f"{file.path} row {i}", skipped)


def _values(column: pa.ChunkedArray) -> list[Any]:
    """Return the values of a column; strings as bytes, because they may not be valid UTF-8."""
    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    return (column.cast(pa.large_binary()) if is_text else column).to_pylist()


def _checked(name: str, text: Any, where: str, skipped: Skipped) -> Iterator[TextDocument]:
    """Yield the document if `text` is valid, or add it to `skipped`."""
    try:
        text = decode(text) if isinstance(text, bytes) else valid_text(text) if isinstance(text, str) else text
    except ValueError as e:
        skipped.add(where, str(e))
        return
    if isinstance(text, str) and text.strip():
        skipped.num_good += 1
        yield TextDocument(name, text.strip())
    else:
        problem = "empty" if isinstance(text, str) else "`text` is not a string"
        skipped.add(where, "no `text`" if text is None else problem)


_READERS: dict[str, Callable[[FileRange, Skipped], Iterator[TextDocument]]] = {
    ".txt": _txt,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
    ".arrow": _arrow,
    **dict.fromkeys((".jsonl.gz", ".jsonl.zst", ".json.gz", ".json.zst"), _compressed_jsonl),
}
