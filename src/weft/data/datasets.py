"""Datasets of documents and of coded utterances: Parquet files with one row per record.

written = write_document_part(folder, task, documents)      # one part of a dataset; no file without documents
rows = Rows.of(folder)                          # the parts of one or more datasets as one sequence of rows
for document in rows.documents(task_range(len(rows), task, num_tasks)): ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from weft.artifacts import MANIFEST, Manifest, read, read_parent, require_parent
from weft.errors import UserError
from weft.files import atomic_writer
from weft.records import CODES_SCHEMA, DOCUMENT_SCHEMA, CodedUtterance, Document

R = TypeVar("R")
_ROWS_PER_GROUP = 1000
_BYTES_PER_GROUP = 64 << 20  # which are in memory about three times


def write_document_part(folder: Path, task: int, documents: Iterable[Document]) -> list[Path]:
    """Write a task's part of a documents dataset; return the paths of its files."""
    return _write_part(folder, task, (d.to_row() for d in documents), DOCUMENT_SCHEMA)


def write_codes_part(folder: Path, task: int, utterances: Iterable[CodedUtterance]) -> list[Path]:
    """Write a task's part of a codes dataset; return the paths of its files."""
    return _write_part(folder, task, (u.to_row() for u in utterances), CODES_SCHEMA)


@dataclass(frozen=True)
class Rows:
    """The rows of the parts of datasets as one sequence. `ends[i]` is the number of rows up to the end of part i."""

    parts: tuple[Path, ...]
    ends: tuple[int, ...]

    @classmethod
    def of(cls, *folders: Path) -> Rows:
        """Open the parts of `folders`, in this order.

        Raises UserError for an artifact that was changed, and for a damaged part, also if it is complete Parquet with
        another number of rows than its manifest lists.
        """
        parts: list[Path] = []
        num_rows: list[int] = []
        for folder in map(Path, folders):
            listed = read(folder).files if (folder / MANIFEST).is_file() else {}
            for part in sorted(folder.glob("part-*.parquet")):
                parts.append(part)
                num_rows.append(_open_part(part).metadata.num_rows)
                if (expected := listed.get(part.name, {}).get("rows", num_rows[-1])) != num_rows[-1]:
                    raise UserError(f"{part} has {num_rows[-1]} rows, expected {expected}: create the dataset again")
        return cls(tuple(parts), tuple(accumulate(num_rows)))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def documents(self, rows: range | None = None) -> Iterator[Document]:
        """Yield the documents of `rows` (None: all), in order. Raises UserError for rows that are not documents."""
        return self._records(rows, DOCUMENT_SCHEMA, Document.from_row)

    def utterances(self, rows: range | None = None) -> Iterator[CodedUtterance]:
        """Yield the coded utterances of `rows` (None: all), in order. Raises UserError for other rows."""
        return self._records(rows, CODES_SCHEMA, CodedUtterance.from_row)

    def _records(self, rows: range | None, schema: pa.Schema, make: Callable[[dict[str, Any]], R]) -> Iterator[R]:
        """Yield the records of `rows`, which `make` creates from rows of `schema`."""
        rows = range(len(self)) if rows is None else rows
        for part, first, end in zip(self.parts, (0, *self.ends), self.ends, strict=False):
            if first < rows.stop and rows.start < end:
                for row in _read_part(part, range(max(rows.start - first, 0), rows.stop - first), schema):
                    try:
                        yield make(row)
                    except ValueError as e:
                        raise UserError(f"{part}: {e}: create the dataset again") from e


def codes_parents(codes: Sequence[Path], tokenizer: Path) -> dict[str, Manifest]:
    """Return the manifests of codes datasets and their tokenizer, by the names of parents.

    Raises UserError for codes of another tokenizer.
    """
    parents = {f"codes {i}": read_parent(folder, "codes") for i, folder in enumerate(codes)}
    manifest = read_parent(tokenizer, "tokenizer")
    for folder, codes_manifest in zip(codes, parents.values(), strict=True):
        require_parent(codes_manifest, "tokenizer", manifest, folder)
    return {**parents, "tokenizer": manifest}


def tokenizer_parent(manifests: Mapping[str, Manifest]) -> dict[str, Manifest]:
    """Return the tokenizer of the codes in artifacts as {"tokenizer": manifest}; {} if there are no codes.

    Raises UserError for artifacts of different tokenizers.
    """
    found = {name: m.parents["tokenizer"] for name, m in manifests.items() if "tokenizer" in m.parents}
    if len(set(found.values())) > 1:
        parts = ", ".join(f"{name}: {fingerprint}" for name, fingerprint in found.items())
        raise UserError(f"the codes are of different tokenizers ({parts}): use one tokenizer for all")
    return {"tokenizer": Manifest("tokenizer", min(found.values()))} if found else {}


def _write_part(folder: Path, task: int, rows: Iterator[dict[str, Any]], schema: pa.Schema) -> list[Path]:
    path = folder / f"part-{task:05d}.parquet"
    written: list[Path] = []
    with ExitStack() as stack:
        for group in _groups(rows):
            if not written:
                written = [path]
                file = stack.enter_context(atomic_writer(path))
                writer = pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True)
                stack.enter_context(writer)
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
    return written


def _groups(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of each row group."""
    group: list[dict[str, Any]] = []
    size_bytes = 0
    for row in rows:
        group.append(row)
        size_bytes += _size_bytes(row)
        if len(group) == _ROWS_PER_GROUP or size_bytes >= _BYTES_PER_GROUP:
            yield group
            group, size_bytes = [], 0
    if group:
        yield group


def _size_bytes(value: Any) -> int:
    """Return about how much memory the texts and codes of a row need."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_size_bytes, value.values()))
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return sum(map(_size_bytes, value))
    return 8 * len(value) if isinstance(value, Sized) else 8


def _open_part(part: Path) -> pq.ParquetFile:
    with _damage_as_user_error(part):
        return pq.ParquetFile(part, page_checksum_verification=True)


def _read_part(part: Path, rows: range, schema: pa.Schema) -> Iterator[dict[str, Any]]:
    """Yield `rows` of a part."""
    file, first = _open_part(part), 0
    for group in range(file.num_row_groups):
        stop = first + file.metadata.row_group(group).num_rows
        if first < rows.stop and rows.start < stop:
            with _damage_as_user_error(part):
                table = file.read_row_group(group).select(schema.names).cast(schema)
            yield from table.slice(max(rows.start - first, 0), rows.stop - max(first, rows.start)).to_pylist()
        first = stop


@contextmanager
def _damage_as_user_error(part: Path) -> Iterator[None]:
    try:
        yield
    except KeyError as e:
        raise UserError(f"{part} lacks columns ({e.args[0]}): give a dataset that weft created") from e
    except (OSError, pa.ArrowException) as e:
        raise UserError(f"{part} is damaged ({str(e).splitlines()[0]}): create the dataset again") from e
