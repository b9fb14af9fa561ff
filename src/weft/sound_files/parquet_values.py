"""Single values of a binary column of a Parquet file.

    content = value_of(Path("talks.parquet"), 17, "audio")

A row group is decoded from its first row to the wanted one, because Parquet has no random access within it. Rows that
are read in order are decoded once. Files with 100 rows per group, as the `datasets` library writes them, are fast in
any order. Memory is that of a few decoded pages, not of a row group.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from weft.digests import state_of
from weft.errors import UserError, reason_of
from weft.parquet_pages import page_problem

_BATCH_ROWS = 8
_KEPT_BYTES = 16 << 20  # of each open row group, for threads that read neighbouring rows
_OPEN_GROUPS = 8
_BUFFER_BYTES = 1 << 20


def value_of(path: Path, row: int, column: str) -> bytes:
    """Return the bytes in a row of a column, or of its field `bytes`. Raises UserError if there are none."""
    state = state_of(path)
    try:
        ends = _ends_of_groups(path, state)
        group = bisect_right(ends, row)
        if group == len(ends):
            raise UserError(f"{path} has no row {row}: fix the manifest that contains it")
        content = _group(path, state, group, column).value(row - (ends[group - 1] if group else 0))
    except (OSError, pa.ArrowException) as e:
        raise UserError(f"{path} row {row} cannot be read ({reason_of(e)}): check the file") from e
    if not isinstance(content, bytes):
        raise UserError(f"{path} row {row} has no bytes in the column {column}: fix the manifest that contains it")
    return content


@lru_cache(maxsize=64)
def _ends_of_groups(path: Path, state: tuple[int, ...]) -> list[int]:
    """Return the row after each row group of a file in a state."""
    metadata = pq.read_metadata(path)
    return list(accumulate(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)))


@lru_cache(maxsize=_OPEN_GROUPS)
def _group(path: Path, state: tuple[int, ...], group: int, column: str) -> _Group:
    return _Group(path, group, column)


class _Group:
    """A column of a row group, read forwards. The last values are kept."""

    def __init__(self, path: Path, group: int, column: str) -> None:
        self._path, self._group, self._column = path, group, column
        self._batches: Iterator[pa.Array] = iter(())
        self._stop = 0  # the row after the last batch
        self._kept, self._kept_bytes = deque[tuple[int, pa.Array]](), 0
        self._lock = threading.Lock()

    def value(self, row: int) -> object:
        with self._lock:
            for first, batch in self._kept:
                if first <= row < first + len(batch):
                    return batch[row - first].as_py()
            if row < self._stop or not self._stop:
                self._batches, self._stop = self._open(), 0
                self._kept.clear()
                self._kept_bytes = 0
            position, self._stop = self._stop, 0  # an error ends the iterator: the next call opens the file again
            while position <= row:
                batch = next(self._batches, None)
                if batch is None:
                    raise pa.ArrowInvalid("it has fewer rows than it claims")
                self._keep(position, batch)
                position += len(batch)
            self._stop = position
            return batch[row + len(batch) - position].as_py()

    def _keep(self, first: int, batch: pa.Array) -> None:
        self._kept.append((first, batch))
        self._kept_bytes += batch.nbytes
        while len(self._kept) > 1 and self._kept_bytes > _KEPT_BYTES:
            self._kept_bytes -= self._kept.popleft()[1].nbytes

    def _open(self) -> Iterator[pa.Array]:
        """Yield the values of the column in batches."""
        with pq.ParquetFile(self._path, page_checksum_verification=True, buffer_size=_BUFFER_BYTES) as parquet:
            group = parquet.metadata.row_group(self._group)
            names = (self._column, f"{self._column}.bytes")
            chunks = [c for c in map(group.column, range(group.num_columns)) if c.path_in_schema in names]
            if len(chunks) != 1:
                raise UserError(f"{self._path} has no column {self._column} of bytes: fix the manifest")
            with self._path.open("rb") as f:
                if problem := page_problem(f, chunks):
                    raise UserError(f"{self._path} cannot be read, its rows: {problem}: write smaller pages")
            columns = [chunks[0].path_in_schema]
            for batch in parquet.iter_batches(_BATCH_ROWS, [self._group], columns, use_threads=False):
                values = batch.column(0)
                values = values.field("bytes") if pa.types.is_struct(values.type) else values
                yield values
