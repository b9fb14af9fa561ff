"""Lists of utterances of any length, as memory-mapped Arrow columns.

    utterances = utterances_of(entries)             # a Sequence[Utterance]; an id that occurs twice is a problem
    utterances[7], utterances[100:200]              # Utterance objects are created when they are accessed

A long list is in a file in the directory for temporary files (TMPDIR), about 0.4 kB per utterance. The file has no name
and its space is free when the list is gone. A list is pickled with its contents, or after `shared`, with the name of a
file that other processes map.
"""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa

from weft.data.speech_formats.entries import Entry, bad
from weft.files import atomic_writer
from weft.records import Utterance

_FIELDS = Utterance.__slots__
_WHERE = "where"
_SCHEMA = pa.schema({n: pa.float64() if n == "seconds" else pa.large_binary() for n in (*_FIELDS, _WHERE)})
_BATCH_ROWS = 1 << 14


class Utterances(Sequence[Utterance]):
    """Some rows of a list of utterances."""

    def __init__(self, batches: Sequence[pa.RecordBatch], rows: range, path: Path | None = None) -> None:
        """Use `rows` of batches of _BATCH_ROWS rows, which are in the file `path`, if any; the last may be shorter."""
        self._batches, self._rows, self._path = batches, rows, path

    def shared(self, path: Path) -> Utterances:
        """Return the same utterances as a list that is pickled as the name of the file `path`, which is written.

        A short list is not written, and pickled with its contents.
        """
        if len(self._batches) < 2:
            return self
        with atomic_writer(path) as f:
            _write(f, self._batches)
        return _mapped(path.absolute(), self._rows)

    def __reduce__(self) -> tuple[Callable[..., Utterances], tuple[Any, ...]]:
        return (_mapped, (self._path, self._rows)) if self._path else (Utterances, (self._batches, self._rows))

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Utterance: ...
    @overload
    def __getitem__(self, index: slice) -> Utterances: ...
    def __getitem__(self, index: int | slice) -> Utterance | Utterances:
        if isinstance(index, slice):
            return Utterances(self._batches, self._rows[index], self._path)
        number, row = divmod(self._rows[index], _BATCH_ROWS)
        return Utterance(*(column[0] for column in _columns(self._batches[number].slice(row, 1))[: len(_FIELDS)]))

    def __iter__(self) -> Iterator[Utterance]:
        position = 0
        while position < len(self._rows):
            number, row = divmod(self._rows[position], _BATCH_ROWS)
            step = self._rows.step
            num = 1 + (len(self._batches[number]) - 1 - row) // step if step > 0 else 1 + row // -step
            rows = range(row, row + min(num, len(self._rows) - position) * step, step)
            batch = self._batches[number]
            batch = batch.slice(row, len(rows)) if step == 1 else batch.take(pa.array(rows))
            for values in zip(*_columns(batch)[: len(_FIELDS)], strict=True):
                yield Utterance(*values)
            position += len(rows)


def utterances_of(entries: Iterable[Entry]) -> Utterances:
    """Return the utterances of entries. An entry with the id of one before it becomes one with a problem."""
    hashes = array("q")

    def hashed() -> Iterator[Entry]:
        for entry in entries:
            hashes.append(hash(entry.utterance.id))
            yield entry

    batches = _written(hashed())
    found = np.frombuffer(hashes, np.int64) if hashes else np.zeros(0, np.int64)
    ordered = np.sort(found)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(repeated):
        batches = _written(_with_unique_ids(batches, np.isin(found, repeated)))
    return Utterances(batches, range(len(found)))


def _with_unique_ids(batches: Sequence[pa.RecordBatch], may_repeat: np.ndarray) -> Iterator[Entry]:
    places: dict[str, str] = {}
    values = chain.from_iterable(zip(*_columns(batch), strict=True) for batch in batches)
    for repeats, (*fields, where) in zip(may_repeat, values, strict=True):
        utterance = Utterance(*fields)
        if repeats and utterance.id in places:
            problem = f"its id {utterance.id!r} also occurs in {places[utterance.id]}: make ids unique"
            yield bad(where, problem)
            continue
        if repeats:
            places[utterance.id] = where
        yield Entry(utterance, where)


def _written(entries: Iterable[Entry]) -> list[pa.RecordBatch]:
    """Return entries as batches of _BATCH_ROWS rows, which are in memory if there is one, else in a file."""
    batches = _batches(entries)
    first, second = next(batches, None), next(batches, None)
    if first is None or second is None:
        return [] if first is None else [first]
    with tempfile.NamedTemporaryFile(prefix="weft-utterances-") as f:
        _write(f, chain((first, second), batches))
        f.flush()
        return _batches_of(Path(f.name))


def _write(file: Any, batches: Iterable[pa.RecordBatch]) -> None:
    with pa.ipc.new_file(file, _SCHEMA) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _batches_of(path: Path) -> list[pa.RecordBatch]:
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    return [reader.get_batch(i) for i in range(reader.num_record_batches)]


def _mapped(path: Path, rows: range) -> Utterances:
    return Utterances(_batches_of(path), rows, path)


def _batches(entries: Iterable[Entry]) -> Iterator[pa.RecordBatch]:
    rows: list[tuple[Any, ...]] = []
    for utterance, where in entries:
        rows.append((*(getattr(utterance, name) for name in _FIELDS), where))
        if len(rows) == _BATCH_ROWS:
            yield _batch(rows)
            rows = []
    if rows:
        yield _batch(rows)


def _batch(rows: Sequence[tuple[Any, ...]]) -> pa.RecordBatch:
    columns = zip(zip(*rows, strict=True), _SCHEMA.types, strict=True)
    return pa.record_batch([_array(values, kind) for values, kind in columns], schema=_SCHEMA)


def _array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    if kind == pa.float64():
        return pa.array(values, kind)
    try:
        return pa.array(values, pa.large_string()).view(kind)
    except UnicodeEncodeError:  # names of files that are not UTF-8
        return pa.array([None if value is None else value.encode("utf-8", "surrogatepass") for value in values], kind)


def _columns(batch: pa.RecordBatch) -> list[Sequence[Any]]:
    """Return the values of each column of a batch."""
    return [_values(column) for column in batch.columns]


def _values(column: pa.Array) -> Sequence[Any]:
    if column.null_count == len(column):
        return [None] * len(column)
    if column.type == pa.float64():
        return list(column.to_pylist())
    values = column.to_pylist() if len(column) == 1 else column.to_numpy(zero_copy_only=False)
    return [None if value is None else value.decode("utf-8", "surrogatepass") for value in values]
