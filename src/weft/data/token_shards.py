"""Token shards in datatrove's tokenized layout, memory-mapped for reading.

write_tokens(folder, task, vocab_size, [(ids, loss), ...])
shards = TokenShards(folder);  shards[i].ids, shards[i].loss      # numpy views
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from weft.errors import UserError
from weft.files import atomic_writer

_DTYPES: dict[str, np.dtype] = {"2": np.dtype("<u2"), "4": np.dtype("<u4")}


def write_tokens(
    folder: Path, task: int, vocab_size: int, documents: Iterable[tuple[np.ndarray, np.ndarray]]
) -> list[Path]:
    """Write a task's token shard from (ids, loss mask) pairs; return the paths of its files.

    `00000.ds` holds the ids as little-endian uint16, or uint32 for a vocabulary of more than 65,536 ids. Beside it,
    `.ds.index` holds the end of each document in tokens (uint64), `.ds.loss` one byte per token, and `.ds.metadata` the
    width of an id. `.ds` appears last.
    """
    dtype = _DTYPES["2" if vocab_size <= 1 << 16 else "4"]
    path, end = folder / f"{task:05d}.ds", 0
    ends: list[int] = []
    with ExitStack() as stack:
        for ids, loss in documents:
            if not ends:
                ids_file = stack.enter_context(atomic_writer(path))
                loss_file = stack.enter_context(atomic_writer(_beside(path, "loss")))
            ids_file.write(ids.astype(dtype).tobytes())
            loss_file.write(loss.astype(np.bool_).tobytes())
            end += len(ids)
            ends.append(end)
        if ends:
            stack.enter_context(atomic_writer(_beside(path, "index"))).write(np.array(ends, "<u8").tobytes())
            about = f"weft|{dtype.itemsize}\n{end}\n{end} T\n"
            stack.enter_context(atomic_writer(_beside(path, "metadata"))).write(about.encode())
    return [path, *(_beside(path, suffix) for suffix in ("loss", "index", "metadata"))] if ends else []


@dataclass(frozen=True, slots=True)
class TokenDocument:
    """One document of N tokens: `ids` (N,) uint16 or uint32, and `loss` (N,) bool, the ids to train on."""

    ids: np.ndarray
    loss: np.ndarray


class TokenShards:
    """The documents of the token shards in a directory: `shards[i]`, `len(shards)`, `num_tokens`.

    Raises UserError for shards that are truncated or not in order, and on reading an id of `vocab_size` or more.
    """

    def __init__(self, folder: Path, vocab_size: int | None = None) -> None:
        paths = sorted(Path(folder).glob("*.ds"))
        if not paths:
            raise UserError(f"{folder} contains no token shards (*.ds): give a dataset created by weft pack")
        self._shards = [_TokenShard(path, vocab_size) for path in paths]
        self._first = [0, *accumulate(len(shard.ends) for shard in self._shards)]
        self.num_tokens = sum(len(shard.ids) for shard in self._shards)

    def __len__(self) -> int:
        return self._first[-1]

    def __getitem__(self, i: int) -> TokenDocument:
        if not 0 <= i < len(self):
            raise IndexError(f"document {i} of {len(self)}")
        shard = bisect_right(self._first, i) - 1
        return self._shards[shard].document(i - self._first[shard])

    def lengths(self) -> np.ndarray:
        """Return the number of tokens of each document, int64."""
        return np.concatenate([np.diff(shard.ends.astype(np.int64), prepend=0) for shard in self._shards])


class _TokenShard:
    """One shard: its ids, its loss mask, and the end of each of its documents."""

    def __init__(self, path: Path, vocab_size: int | None) -> None:
        self._path, self._vocab_size = path, vocab_size
        width = _beside(path, "metadata")
        try:
            dtype = _DTYPES[width.read_text().split("\n")[0].split("|")[-1]]
        except (OSError, KeyError) as e:
            raise UserError(f"{width} does not contain the width of ids: pack the dataset again") from e
        self.ends = _map(_beside(path, "index"), np.dtype("<u8"))
        if (backward := np.flatnonzero(self.ends[1:] < self.ends[:-1])).size:
            i = int(backward[0]) + 1
            raise UserError(
                f"{_beside(path, 'index')} decreases from {self.ends[i - 1]} to {self.ends[i]} at byte {8 * i}: it is "
                "damaged, pack the dataset again"
            )
        self.ids = _map(path, dtype, int(self.ends[-1]))
        self.loss = _map(_beside(path, "loss"), np.dtype(np.bool_), len(self.ids))

    def document(self, i: int) -> TokenDocument:
        start, stop = int(self.ends[i - 1]) if i else 0, int(self.ends[i])
        ids = self.ids[start:stop]
        if self._vocab_size is not None and (wrong := np.flatnonzero(ids >= self._vocab_size)).size:
            raise UserError(
                f"{self._path} contains id {ids[wrong[0]]} at byte {(start + wrong[0]) * ids.itemsize}, beyond the "
                f"vocabulary of {self._vocab_size}: it is damaged, pack the dataset again"
            )
        return TokenDocument(ids, self.loss[start:stop])


def _map(path: Path, dtype: np.dtype, length: int | None = None) -> np.ndarray:
    """Memory-map a file of `length` values (None: any number but 0)."""
    size_bytes = path.stat().st_size if path.is_file() else 0
    length = max(1, -(-size_bytes // dtype.itemsize)) if length is None else length
    if size_bytes != length * dtype.itemsize:
        raise UserError(
            f"{path} has {size_bytes} bytes, expected {length * dtype.itemsize}: it is damaged, pack the dataset again"
        )
    return np.asarray(np.memmap(path, dtype, mode="r"))


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}.{suffix}")
