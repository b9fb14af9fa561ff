"""Datasets on disk: documents and coded utterances as Parquet, token shards in datatrove's tokenized layout.

    write_documents(folder, task, documents)        # one part of a dataset, whole or not at all
    rows = Rows.of(folder)                          # the parts of one or more datasets as one sequence of rows
    for document in rows.documents(share(len(rows), task, num_tasks)): ...

    write_tokens(folder, task, vocab_size, [(ids, loss), ...])
    shards = TokenShards(folder);  shards[i].ids, shards[i].loss      # numpy views of memory-mapped files

No file is ever seen half written; a task that has nothing to write leaves no file.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from weft.artifacts import Manifest, beside_of
from weft.errors import UserError
from weft.records import CODES_SCHEMA, DOCUMENT_SCHEMA, CodedUtterance, Document

R = TypeVar("R")
_ROWS_PER_GROUP = 1000
_DTYPES: dict[str, np.dtype] = {"2": np.dtype("<u2"), "4": np.dtype("<u4")}


def write_documents(folder: Path, task: int, documents: Iterable[Document]) -> int:
    """Write a task's part of a documents dataset and return its number of rows."""
    return _write_part(folder, task, (d.to_row() for d in documents), DOCUMENT_SCHEMA)


def write_codes(folder: Path, task: int, utterances: Iterable[CodedUtterance]) -> int:
    """Write a task's part of a codes dataset and return its number of rows."""
    return _write_part(folder, task, (u.to_row() for u in utterances), CODES_SCHEMA)


@dataclass(frozen=True)
class Rows:
    """The rows of datasets' parts, end to end. `ends[i]` is the number of rows up to the end of part i."""

    parts: tuple[Path, ...]
    ends: tuple[int, ...]

    @classmethod
    def of(cls, *folders: Path) -> Rows:
        """The rows of `folders`, in their order. Raises UserError for a part that is damaged."""
        parts = [part for folder in folders for part in sorted(Path(folder).glob("part-*.parquet"))]
        return cls(tuple(parts), tuple(accumulate(_open_part(part).metadata.num_rows for part in parts)))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def documents(self, rows: range | None = None) -> Iterator[Document]:
        """The documents in `rows` (None: all), in order. Raises UserError for rows that hold none."""
        return self._records(rows, DOCUMENT_SCHEMA, Document.from_row)

    def utterances(self, rows: range | None = None) -> Iterator[CodedUtterance]:
        """The coded utterances in `rows` (None: all), in order. Raises UserError for rows that hold none."""
        return self._records(rows, CODES_SCHEMA, CodedUtterance.from_row)

    def _records(self, rows: range | None, schema: pa.Schema, make: Callable[[dict[str, Any]], R]) -> Iterator[R]:
        for part, row in self._read(rows, schema):
            try:
                yield make(row)
            except ValueError as e:
                raise UserError(f"{part}: {e}: make its dataset again") from e

    def _read(self, rows: range | None, schema: pa.Schema) -> Iterator[tuple[Path, dict[str, Any]]]:
        rows = range(len(self)) if rows is None else rows
        for part, end in zip(self.parts, self.ends, strict=True):
            if end <= rows.start:
                continue
            file = _open_part(part)
            first = end - file.metadata.num_rows
            if first >= rows.stop:
                return
            for group in range(file.num_row_groups):
                stop = first + file.metadata.row_group(group).num_rows
                if first < rows.stop and rows.start < stop:
                    table = _read_group(part, file, group, schema)
                    wanted = table.slice(max(rows.start - first, 0), rows.stop - max(first, rows.start))
                    yield from ((part, row) for row in wanted.to_pylist())
                first = stop


def tokenizer_of(manifests: Mapping[str, Manifest]) -> dict[str, Manifest]:
    """The tokenizer whose codes artifacts hold, as a parent of what is made of them; {} where none holds codes.

    Raises UserError, with their names, for artifacts of different tokenizers: their codes do not mean the same sounds.
    """
    found = {name: m.parents["tokenizer"] for name, m in manifests.items() if "tokenizer" in m.parents}
    if len(set(found.values())) > 1:
        parts = ", ".join(f"{name} of {fingerprint}" for name, fingerprint in found.items())
        raise UserError(f"these hold the codes of different tokenizers ({parts}): make them with one tokenizer")
    return {"tokenizer": Manifest("tokenizer", min(found.values()))} if found else {}


def _write_part(folder: Path, task: int, rows: Iterator[dict[str, Any]], schema: pa.Schema) -> int:
    num_rows = 0
    with ExitStack() as stack:
        while group := list(islice(rows, _ROWS_PER_GROUP)):
            if num_rows == 0:
                file = stack.enter_context(_whole(folder / f"part-{task:05d}.parquet"))
                writer = pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True)
                stack.enter_context(writer)
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
            num_rows += len(group)
    return num_rows


def _open_part(part: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(part, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as e:
        raise UserError(f"{part} is damaged ({str(e).splitlines()[0]}): make its dataset again") from e


def _read_group(part: Path, file: pq.ParquetFile, group: int, schema: pa.Schema) -> pa.Table:
    try:
        return file.read_row_group(group).select(schema.names).cast(schema)
    except KeyError as e:
        raise UserError(f"{part} lacks columns ({e.args[0]}): give a dataset that weft made") from e
    except (OSError, pa.ArrowException) as e:
        raise UserError(f"{part} is damaged ({str(e).splitlines()[0]}): make its dataset again") from e


def write_tokens(folder: Path, task: int, vocab_size: int, documents: Iterable[tuple[np.ndarray, np.ndarray]]) -> int:
    """Write a task's token shard from (ids, loss mask) pairs and return its number of tokens.

    `00000.ds` holds the ids, little-endian uint16, or uint32 for over 65,536 ids; beside it `.ds.index` the end of
    each document in tokens (uint64), `.ds.loss` a byte a token, `.ds.metadata` the width. `.ds` is the last to appear.
    """
    dtype = _DTYPES["2" if vocab_size <= 1 << 16 else "4"]
    path, end = folder / f"{task:05d}.ds", 0
    ends: list[int] = []
    with ExitStack() as stack:
        for ids, loss in documents:
            if not ends:
                ids_file = stack.enter_context(_whole(path))
                loss_file = stack.enter_context(_whole(_beside(path, "loss")))
            ids_file.write(ids.astype(dtype).tobytes())
            loss_file.write(loss.astype(np.bool_).tobytes())
            end += len(ids)
            ends.append(end)
        if ends:
            stack.enter_context(_whole(_beside(path, "index"))).write(np.array(ends, "<u8").tobytes())
            about = f"weft|{dtype.itemsize}\n{end}\n{end} T\n"
            stack.enter_context(_whole(_beside(path, "metadata"))).write(about.encode())
    return end


@dataclass(frozen=True, slots=True)
class TokenDocument:
    """One document of N tokens: `ids` (N,) uint16 or uint32, `loss` (N,) bool, whether a model is trained on each."""

    ids: np.ndarray
    loss: np.ndarray


class TokenShards:
    """The documents of a folder's token shards, read through memory maps: `shards[i]`, `len(shards)`, `num_tokens`.

    Raises UserError, naming file and offset, for shards that are cut off, or whose index is out of order. Contents are
    looked at when they are read: an id of `vocab_size` or more raises UserError, with its offset, then.
    """

    def __init__(self, folder: Path, vocab_size: int | None = None) -> None:
        paths = sorted(Path(folder).glob("*.ds"))
        if not paths:
            raise UserError(f"{folder} holds no token shards (*.ds): give a dataset made by weft pack")
        self._shards = [_TokenShard(path, vocab_size) for path in paths]
        self._first = [0, *accumulate(len(shard.ends) for shard in self._shards)]
        self.num_tokens = sum(int(shard.ends[-1]) for shard in self._shards)

    def __len__(self) -> int:
        return self._first[-1]

    def __getitem__(self, i: int) -> TokenDocument:
        if not 0 <= i < len(self):
            raise IndexError(f"document {i} of {len(self)}")
        shard = bisect_right(self._first, i) - 1
        return self._shards[shard].document(i - self._first[shard])

    def lengths(self) -> np.ndarray:
        """Number of tokens of each document, int64."""
        return np.concatenate([np.diff(shard.ends.astype(np.int64), prepend=0) for shard in self._shards])


class _TokenShard:
    def __init__(self, path: Path, vocab_size: int | None) -> None:
        self._path, self._vocab_size = path, vocab_size
        width = _beside(path, "metadata")
        try:
            dtype = _DTYPES[width.read_text().split("\n")[0].split("|")[-1]]
        except (OSError, KeyError) as e:
            raise UserError(f"{width} does not tell the width of ids: pack the dataset again") from e
        self.ends = _map(_beside(path, "index"), np.dtype("<u8"))
        if (backward := np.flatnonzero(self.ends[1:] < self.ends[:-1])).size:
            i = int(backward[0]) + 1
            raise UserError(
                f"{_beside(path, 'index')} goes back from {self.ends[i - 1]} to {self.ends[i]} at byte {8 * i}: it is "
                "damaged, pack the dataset again"
            )
        num_tokens = int(self.ends[-1])
        self.ids = _map(path, dtype, num_tokens)
        self.loss = _map(_beside(path, "loss"), np.dtype(np.bool_), num_tokens)

    def document(self, i: int) -> TokenDocument:
        start, stop = int(self.ends[i - 1]) if i else 0, int(self.ends[i])
        ids = self.ids[start:stop]
        if self._vocab_size is not None and (ids >= self._vocab_size).any():
            at = start + int(np.argmax(ids >= self._vocab_size))
            raise UserError(
                f"{self._path} holds id {self.ids[at]} of {self._vocab_size} at byte {at * self.ids.itemsize}: it is "
                "damaged, pack the dataset again"
            )
        return TokenDocument(ids, self.loss[start:stop])


def _map(path: Path, dtype: np.dtype, length: int | None = None) -> np.ndarray:
    size_bytes = path.stat().st_size if path.is_file() else 0
    length = max(1, -(-size_bytes // dtype.itemsize)) if length is None else length
    if size_bytes != length * dtype.itemsize:
        raise UserError(
            f"{path} ends at byte {size_bytes}, not at {length * dtype.itemsize}: it is damaged, pack the dataset again"
        )
    return np.asarray(np.memmap(path, dtype, mode="r"))


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}.{suffix}")


@contextmanager
def _whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write, that appears under its name, synced to disk, when the block ends well, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = beside_of(path)
    try:
        with unfinished.open("wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
