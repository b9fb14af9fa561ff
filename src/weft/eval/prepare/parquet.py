"""Rows of Parquet files, whose columns of audio become recordings that are not read.

for values, sounds in parquet_rows(Path("test-00000-of-00001.parquet"), ["prompt"]): ...
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from weft.data.compression import is_damage
from weft.data.tables import values_of
from weft.errors import UserError, reason_of
from weft.eval.prepare.sounds import Sound
from weft.parquet_pages import expands, page_problem
from weft.sound_files.address import row_address

_BATCH_ROWS, _BATCH_BYTES = 64, 16 << 20


def schema_of(path: Path) -> pa.Schema:
    """Return the schema of a file. Raises UserError if it is damaged."""
    try:
        return pq.read_schema(path)
    except (OSError, pa.ArrowException) as e:
        if not is_damage(e):
            raise
        raise UserError(f"{path} cannot be read ({reason_of(e)}): copy it again") from e


def parquet_rows(
    path: Path, columns: Collection[str] | None
) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Sound]]]:
    """Yield the values of some columns (None: all) and the recordings of each row, by column.

    Strings are bytes. Raises UserError for a damaged file, and for one that needs too much memory.
    """
    schema = schema_of(path)
    sounds = [f.name for f in schema if pa.types.is_struct(f.type) and f.type.get_field_index("bytes") >= 0]
    names = [name for name in schema.names if name not in sounds and (columns is None or name in columns)]
    first = 0
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as parquet:
            for group in range(parquet.num_row_groups):
                for values in _group_rows(path, parquet, group, names):
                    places = {name: Sound(row_address(str(path.absolute()), first, name)) for name in sounds}
                    yield values, places
                    first += 1
    except (OSError, pa.ArrowException, ValueError) as e:
        if not is_damage(e):
            raise
        raise UserError(f"{path} cannot be read ({reason_of(e)}): copy it again") from e


def _group_rows(path: Path, parquet: pq.ParquetFile, group: int, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the values of the rows of a row group. Raises ValueError for one that would need too much memory."""
    metadata = parquet.metadata.row_group(group)
    chunks = [c for c in map(metadata.column, range(metadata.num_columns)) if c.path_in_schema.split(".")[0] in names]
    with path.open("rb") as f:
        if problem := page_problem(f, chunks):
            raise ValueError(problem)
    if not names:
        yield from ({} for _ in range(metadata.num_rows))
        return
    batch_rows = 1 if any(expands(chunk, _BATCH_BYTES) for chunk in chunks) else _BATCH_ROWS
    for batch in parquet.iter_batches(batch_rows, [group], list(names), use_threads=False):
        for values in zip(*(values_of(batch.column(name)) for name in names), strict=True):
            yield dict(zip(names, values, strict=True))
