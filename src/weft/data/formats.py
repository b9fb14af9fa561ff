"""Readers of text files: .txt, .jsonl (also .gz and .zst, and as .json.gz and .json.zst), .parquet, .arrow, .feather.

    for document in read(FileRange(path, name, start_byte, stop_byte, size_bytes), skipped): ...

A document belongs to the byte range in which it begins, so that ranges that cover a file yield each document once.
A compressed file begins at its first byte. Of a damaged file, everything before the damage is read. Documents of more
than 64 MiB are skipped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

import pyarrow as pa

from weft.data.compression import is_damage
from weft.data.file_range import TOO_LONG, FileRange, TextDocument, document_of
from weft.data.lines import Line, damage_of, lines_of, unpacked
from weft.data.skipped import Skipped
from weft.data.tables import read_arrow, read_parquet
from weft.errors import UserError, reason_of
from weft.text.inputs import BOM, id_of, parse_json

TXT_DOCUMENT_BYTES = 4096  # about 700 English words
_SKIPPED_BYTES = 1 << 20  # at a time
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


def read(file: FileRange, skipped: Skipped) -> Iterator[TextDocument]:
    """Yield the documents that begin in `file`, without outer white space; bad ones are added to `skipped`.

    Raises UserError for a file that cannot be read, and for a table without a column `text`.
    """
    skipped.total_bytes += file.stop - file.start
    try:
        yield from _READERS[suffix_of(file.name) or ""](file, skipped)
    except (OSError, pa.ArrowException) as e:
        if not is_damage(e):
            raise UserError(f"{file.path} cannot be read ({reason_of(e)}): check the file and run again") from e
        is_first = file.start == 0  # every range of the file has the same error
        skipped.add(file.path, f"cannot be read: {reason_of(e)}", int(is_first), file.stop - file.start)


def suffix_of(path: str) -> str | None:
    """Return the suffix of a text file; None for other files."""
    return next((suffix for suffix in _READERS if path.lower().endswith(suffix)), None)


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
                    where = f"{file.path} byte {start}"
                    if item := document_of(name, text, where, skipped, len(text)):
                        yield item
            document, start = chunk[split:], boundary + split


def _jsonl(file: FileRange, skipped: Skipped) -> Iterator[TextDocument]:
    with file.open() as f:
        if file.start:
            f.seek(file.start - 1)
            while not (piece := f.readline(min(_SKIPPED_BYTES, file.stop - f.tell()))).endswith(b"\n"):
                if not piece:
                    return  # the range is inside one line
        for line in lines_of(f, f.tell(), file.stop, with_empty=False):
            if document := _document(line, file, skipped, line.size_bytes):
                yield document


def _compressed_jsonl(file: FileRange, skipped: Skipped) -> Iterator[TextDocument]:
    if file.start:
        return
    num_bytes, num_bad_bytes = 0, 0  # decompressed
    with file.open() as packed, unpacked(packed, file.name) as f:
        for line in lines_of(f, with_empty=False):
            is_cut = line.content is not None and not line.content.endswith(b"\n") and damage_of(f) is not None
            num_bad = skipped.num_bad
            if document := _document(line, file, Skipped() if is_cut else skipped):
                skipped.num_good += is_cut
                yield document
            num_bytes += line.size_bytes
            num_bad_bytes += line.size_bytes * (skipped.num_bad > num_bad)
        damage = damage_of(f)
    if damage:
        lost = 0 if damage.position is None else file.size_bytes - damage.position
        problem = "is damaged" if damage.position is None else "cannot be read to its end"
        skipped.add(file.path, f"{problem}: {damage.reason}", num_bytes=lost)
    skipped.bad_bytes += num_bad_bytes * file.size_bytes // max(1, num_bytes)


def _document(line: Line, file: FileRange, skipped: Skipped, num_bytes: int = 0) -> TextDocument | None:
    """Return the document of a line of JSON, None if it is blank or bad."""
    where = f"{file.path} byte {line.offset}"
    if line.content is None:
        skipped.add(where, TOO_LONG, num_bytes=num_bytes)
        return None
    if not (content := line.content.removeprefix(BOM).strip()):
        return None
    try:
        row = parse_json(content)
    except ValueError as e:
        skipped.add(where, str(e), num_bytes=num_bytes)
        return None
    row = row if isinstance(row, Mapping) else {}
    name = id_of(row.get("id")) or f"{file.name}:{line.offset}"
    return document_of(name, row.get("text"), where, skipped, num_bytes)


_READERS: dict[str, Callable[[FileRange, Skipped], Iterator[TextDocument]]] = {
    ".txt": _txt,
    ".jsonl": _jsonl,
    ".parquet": read_parquet,
    **dict.fromkeys((".arrow", ".feather"), read_arrow),
    **dict.fromkeys((".jsonl.gz", ".jsonl.zst", ".json.gz", ".json.zst"), _compressed_jsonl),
}
