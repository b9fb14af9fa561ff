"""Speech in Parquet files.

Only the columns with ids, texts etc. are read here. The audio of a row is addressed by the number of the row.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from weft.data.compression import is_damage
from weft.data.speech_formats.columns import Columns, paths_of
from weft.data.speech_formats.entries import Entry, Lost, audio_path, bad
from weft.errors import reason_of
from weft.parquet_pages import expands, page_problem
from weft.sound_files.address import row_address

SUFFIXES = (".parquet",)
_BATCH_ROWS = 16
_BATCH_BYTES = 16 << 20
_BUFFER_BYTES = 1 << 20


def read(path: Path, name: str) -> Iterator[Entry | Lost]:
    """Yield the rows of a file; `name` is part of the ids of rows without one.

    Raises UserError for a file without an audio column.
    """
    try:
        metadata, schema = pq.read_metadata(path), pq.read_schema(path)
    except (OSError, pa.ArrowException) as e:
        if not is_damage(e):
            raise
        yield Lost(path, reason_of(e), path.stat().st_size)
        return
    columns, first = Columns.of(schema, path), 0
    for number in range(metadata.num_row_groups):
        group, found = metadata.row_group(number), 0
        try:
            for entry in _rows(path, name, columns, group, number, first):
                found += 1
                yield entry
            problem = "it has fewer rows than it claims"
        except (OSError, pa.ArrowException, ValueError) as e:
            if not is_damage(e):
                raise
            problem = f"it cannot be read: {reason_of(e)}"
        for row in range(first + found, first + group.num_rows):
            yield bad(f"{path} row {row}", problem)
        first += group.num_rows


def _rows(path: Path, name: str, columns: Columns, group: Any, number: int, first: int) -> Iterator[Entry]:
    """Yield the rows of a row group whose first row is row `first` of the file."""
    chunks = {chunk.path_in_schema: chunk for chunk in map(group.column, range(group.num_columns))}
    in_bytes, in_paths = columns.leaf("bytes"), columns.leaf("path")
    num_nulls = _num_nulls(chunks.get(in_bytes or ""), group.num_rows)
    names = list(columns.names)
    if in_paths and in_paths in chunks and num_nulls != 0:
        names.append(in_paths)
    if in_bytes and num_nulls is None:
        names.append(in_bytes)
    wanted = [chunk for name, chunk in chunks.items() if name in names or name.split(".")[0] in columns.names]
    with path.open("rb") as f:
        if problem := page_problem(f, wanted):
            raise ValueError(problem)
    batch_rows = 1 if any(expands(chunk, _BATCH_BYTES) for chunk in wanted) else _BATCH_ROWS
    if not names:
        names = [in_bytes or columns.audio]  # only the number of rows is needed
    with pq.ParquetFile(path, page_checksum_verification=True, buffer_size=_BUFFER_BYTES) as parquet:
        for batch in parquet.iter_batches(batch_rows, [number], names, use_threads=False):
            audio = _audio(batch, columns, path, first, num_nulls)
            yield from columns.entries(batch, audio, path, name, first)
            first += len(batch)


def _num_nulls(chunk: Any, num_rows: int) -> int | None:
    """Return the number of rows without bytes if it is none or all, else None: the bytes must be read to find out."""
    if chunk is None:
        return num_rows
    statistics = chunk.statistics
    known = statistics is not None and statistics.has_null_count and statistics.null_count in (0, num_rows)
    return statistics.null_count if known else None


def _audio(batch: pa.RecordBatch, columns: Columns, path: Path, first: int, num_nulls: int | None) -> list[str | None]:
    """Return the address of the bytes of each row, else the file that it names, or None."""
    rows = [row_address(str(path.absolute()), first + i, columns.audio) for i in range(len(batch))]
    if num_nulls == 0:
        return [*rows]
    audio = batch.column(columns.audio) if columns.audio in batch.schema.names else None
    has_bytes = [False] * len(batch)
    paths: list[str | None] = [None] * len(batch)
    if audio is not None:
        is_struct = pa.types.is_struct(audio.type)
        in_bytes = _field(audio, "bytes") if is_struct else audio if num_nulls is None else None
        in_paths = _field(audio, "path") if is_struct else audio if num_nulls is not None else None
        has_bytes = has_bytes if in_bytes is None else in_bytes.is_valid().to_pylist()
        if in_paths is not None:
            paths = [None if name is None else audio_path(path.parent, name) for name in paths_of(in_paths)]
    return [row if is_there else file for row, is_there, file in zip(rows, has_bytes, paths, strict=True)]


def _field(column: pa.StructArray, name: str) -> pa.Array | None:
    return column.field(name) if column.type.get_field_index(name) >= 0 else None
