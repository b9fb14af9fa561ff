"""Texts of tables: Parquet, Arrow streams, Arrow files and Feather (version 2).

Rows are read forwards in batches, so that the memory is bounded by a batch and not by a row group or a file. Rows
before a damage are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from weft.data.arrow_stream import batches_of, scan
from weft.data.compression import is_damage
from weft.data.file_range import FileRange, TextDocument, document_of
from weft.data.skipped import Skipped
from weft.data.storage import is_url, open_file
from weft.errors import UserError, reason_of
from weft.parquet_pages import expands, page_problem
from weft.text.inputs import id_of

_BATCH_ROWS = 16  # of Parquet; more are not read faster
_SLICE_BYTES = 16 << 20
_BUFFER_BYTES = 1 << 20
_STRINGS = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}
_OTHER = object()  # a value that is not text


@dataclass(frozen=True, slots=True)
class _Table:
    """A file of `num_rows` rows, or its row group of which the first row is row `first` of the file."""

    file: FileRange
    num_rows: int
    first: int
    rows: _Rows


def read_parquet(file: FileRange, skipped: Skipped) -> Iterator[TextDocument]:
    """Yield the documents of a Parquet file that begin in a range. A row group can be longer than several ranges."""
    with file.open() as f, pq.ParquetFile(f) as parquet:
        columns, metadata = _columns(parquet.schema_arrow, file.path), parquet.metadata
    own, first = file.rows(metadata.num_rows), 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        rows = range(max(first, own.start), min(first + group.num_rows, own.stop))
        if rows:
            chunks = [
                c for c in map(group.column, range(group.num_columns)) if c.path_in_schema.split(".")[0] in columns
            ]
            batch_rows = 1 if any(expands(chunk, _SLICE_BYTES) for chunk in chunks) else _BATCH_ROWS
            group_rows = _parquet_rows(file.path, file.size_bytes, number, columns, batch_rows)
            table = _Table(file, metadata.num_rows, first, group_rows)
            with file.open() as f:
                problem = page_problem(f, chunks)
            if problem:
                _skip(rows, problem, table, skipped)
            else:
                yield from _documents(table, rows, skipped)
        first += group.num_rows


def read_arrow(file: FileRange, skipped: Skipped) -> Iterator[TextDocument]:
    """Yield the documents of an Arrow stream or file. At a URL, the first range has all of them."""
    if is_url(file.path):
        if file.start:
            return
        file = replace(file, stop=file.size_bytes)
    with file.open() as f:
        found = scan(f, file.path, file.size_bytes)
    if found.num_rows:
        table = _Table(file, found.num_rows, 0, _arrow_rows(file.path, file.size_bytes))
        yield from _documents(table, file.rows(found.num_rows), skipped)
    if found.damage and file.start == 0:
        lost = file.size_bytes - found.stop
        skipped.add(file.path, f"cannot be read to its end: {found.damage}", num_bytes=lost)


class _Rows:
    """The rows of a table that is read forwards. Reading on where the last range ended reads nothing twice."""

    def __init__(self, open_batches: Callable[[], Iterator[pa.RecordBatch]]) -> None:
        self._open, self._batches = open_batches, iter(())
        self._batch: pa.RecordBatch | None = None
        self._first = self._stop = 0  # rows of the batch

    def read(self, rows: range) -> Iterator[pa.RecordBatch]:
        """Yield batches of consecutive rows."""
        if self._batch is None or rows.start < self._first:
            self._batches, self._first, self._stop = self._open(), 0, 0
        position = rows.start
        while position < rows.stop:
            batch = self._batch_of(position)
            batch = batch.slice(position - self._first, min(rows.stop, self._stop) - position)
            position += len(batch)
            yield batch

    def _batch_of(self, row: int) -> pa.RecordBatch:
        batch, self._batch = self._batch, None  # an error ends the iterator: the next range opens it again
        while row >= self._stop:
            batch = next(self._batches, None)
            if batch is None:
                raise pa.ArrowInvalid("it has fewer rows than it claims")
            self._first, self._stop = self._stop, self._stop + len(batch)
        self._batch = batch
        return batch


@lru_cache(maxsize=1)
def _parquet_rows(path: str, size_bytes: int, group: int, columns: tuple[str, ...], batch_rows: int) -> _Rows:
    def batches() -> Iterator[pa.RecordBatch]:
        # Dictionaries are expanded: pyarrow would copy all values before a batch into the dictionary of that batch.
        options: dict[str, Any] = {"page_checksum_verification": True, "buffer_size": _BUFFER_BYTES}
        with open_file(path, size_bytes) as f, pq.ParquetFile(f, **options) as parquet:
            yield from parquet.iter_batches(batch_rows, [group], columns, use_threads=False)

    return _Rows(batches)


@lru_cache(maxsize=1)
def _arrow_rows(path: str, size_bytes: int) -> _Rows:
    def batches() -> Iterator[pa.RecordBatch]:
        with open_file(path, size_bytes) if is_url(path) else pa.memory_map(path) as f:
            for batch in batches_of(f):
                batch = batch.select(_columns(batch.schema, path))
                for column in batch.columns:
                    check_column(column)
                yield batch

    return _Rows(batches)


def _columns(schema: pa.Schema, path: str) -> tuple[str, ...]:
    if "text" not in schema.names:
        raise UserError(f"{path} has no column `text` (it has {', '.join(schema.names)}): rename the column with texts")
    if twice := next((name for name in ("id", "text") if schema.names.count(name) > 1), None):
        raise UserError(f"{path} has several columns `{twice}`: rename all but one")
    return tuple(name for name in ("id", "text") if name in schema.names)


def _documents(table: _Table, rows: range, skipped: Skipped) -> Iterator[TextDocument]:
    """Yield the documents of rows of the file; those from a damage on are bad."""
    i, file = rows.start, table.file
    row_bytes = file.size_bytes // table.num_rows
    try:
        for batch in table.rows.read(range(rows.start - table.first, rows.stop - table.first)):
            has_ids = "id" in batch.schema.names
            ids = values_of(batch["id"]) if has_ids else iter([None] * len(batch))
            for name, text in zip(ids, _values(batch["text"]), strict=True):
                where = f"{file.path} row {i}"
                document = document_of(id_of(name) or f"{file.name}:{i}", text, where, skipped, row_bytes)
                i += 1
                if document:
                    yield document
    except (OSError, pa.ArrowException) as e:
        if not is_damage(e):
            raise
        _skip(range(i, rows.stop), f"they cannot be read: {reason_of(e)}", table, skipped)


def _skip(rows: range, reason: str, table: _Table, skipped: Skipped) -> None:
    num_bytes = len(rows) * table.file.size_bytes // table.num_rows
    skipped.add(f"{table.file.path} rows {rows.start} to {rows.stop - 1}", reason, len(rows), num_bytes)


def values_of(column: pa.Array) -> Iterator[Any]:
    """Yield the values of a column; strings as bytes, because they may not be valid UTF-8.

    None for a value that Python cannot represent, such as a time in year 0.
    """
    done = 0
    try:
        for value in _values(column, text=False):
            yield value
            done += 1
    except (ValueError, ArithmeticError, pa.ArrowException):
        for scalar in column.slice(done):
            with suppress(ValueError, ArithmeticError, pa.ArrowException):
                yield scalar.as_py()
                continue
            yield None


def _values(column: pa.Array, text: bool = True) -> Iterator[Any]:
    """Yield the values of a column; strings as bytes, because they may not be valid UTF-8.

    Texts of another type are _OTHER. Values of a dictionary are not expanded.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        if not _is_small(column):
            yield from _values_of_dictionary(column, text)
            return
        column = column.dictionary_decode()
    values = _binary(column)
    if text and not (_is_binary(values.type) or pa.types.is_null(kind)):
        yield from [_OTHER] * len(values)
        return
    step = max(1, len(values) * _SLICE_BYTES // max(_SLICE_BYTES, values.nbytes))
    for start in range(0, len(values), step):
        yield from values.slice(start, step).to_pylist()


def _is_small(column: pa.DictionaryArray) -> bool:
    """Whether the values of a dictionary need little memory when they are expanded."""
    values = _binary(column.dictionary)
    longest = pc.max(pc.binary_length(values)).as_py() if values.type in (pa.binary(), pa.large_binary()) else None
    return len(column) * (values.nbytes if longest is None else longest) <= _SLICE_BYTES


def _values_of_dictionary(column: pa.DictionaryArray, text: bool) -> Iterator[Any]:
    values = _binary(column.dictionary)
    is_other = text and not _is_binary(values.type)
    for index in column.indices.to_pylist():
        yield None if index is None else _OTHER if is_other else values[index].as_py()


def _binary(column: pa.Array) -> pa.Array:
    """Return strings as bytes, or another column unchanged."""
    binary = _STRINGS.get(column.type)
    return column if binary is None else column.view(binary)


def check_column(column: pa.Array) -> None:
    """Raise ArrowInvalid for offsets or indices that are not in a column. Strings may be invalid UTF-8."""
    if pa.types.is_dictionary(column.type):
        check_column(column.dictionary)
        pa.DictionaryArray.from_arrays(column.indices, _binary(column.dictionary))
    else:
        _binary(column).validate(full=True)


def _is_binary(kind: pa.DataType) -> bool:
    return kind in _STRINGS.values()
