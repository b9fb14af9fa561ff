"""Token shards in datatrove's tokenized layout, at a local path memory-mapped, and at a URL read in ranges.

write_tokens(folder, task, vocab_size, [(ids, loss), ...])
shards = TokenShards(folder);  shards[i].ids, shards[i].loss
shards.read([(i, slice(0, 512)), (j, slice(511, 1023))])          # parts of documents, requested at once
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from weft.data.array_files import ArrayFile, read_slices
from weft.data.storage import files_under, is_url
from weft.errors import UserError
from weft.files import atomic_writer

_DTYPES: dict[bytes, np.dtype] = {b"2": np.dtype("<u2"), b"4": np.dtype("<u4")}


def write_tokens(
    folder: Path, task: int, vocab_size: int, documents: Iterable[tuple[np.ndarray, np.ndarray]]
) -> list[Path]:
    """Write a task's token shard from (ids, loss mask) pairs; return the paths of its files.

    `00000.ds` holds the ids as little-endian uint16, or uint32 for a vocabulary of more than 65,536 ids. Beside it,
    `.ds.index` holds the end of each document in tokens (uint64), `.ds.loss` one byte per token, and `.ds.metadata` the
    width of an id. `.ds` appears last.
    """
    dtype = _DTYPES[b"2" if vocab_size <= 1 << 16 else b"4"]
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

    `folder` is a path or a URL, of which only the ends of the documents are kept in memory. Raises UserError for shards
    that are truncated or not in order, on reading an id of `vocab_size` or more, and if a store keeps failing.
    """

    def __init__(self, folder: str | Path, vocab_size: int | None = None) -> None:
        sizes = _sizes_in(folder)
        paths = sorted(path for path in sizes if path.endswith(".ds"))
        if not paths:
            raise UserError(f"{folder} contains no token shards (*.ds): give a dataset created by weft pack")
        heads = _contents([f"{path}.{suffix}" for path in paths for suffix in ("metadata", "index")], sizes)
        self._shards = [
            _TokenShard(path, sizes, metadata, index, vocab_size)
            for path, metadata, index in zip(paths, heads[::2], heads[1::2], strict=True)
        ]
        self._first = [0, *accumulate(len(shard.ends) for shard in self._shards)]
        self.num_tokens = sum(int(shard.ends[-1]) for shard in self._shards)

    def __len__(self) -> int:
        return self._first[-1]

    def __getitem__(self, i: int) -> TokenDocument:
        return self.read([(i, slice(None))])[0]

    def read(self, parts: Sequence[tuple[int, slice]]) -> list[TokenDocument]:
        """Return parts of documents, given by the index of a document and a slice of its ids."""
        located = [self._locate(i, part) for i, part in parts]
        values = read_slices([(column, at) for shard, at in located for column in (shard.ids, shard.loss)])
        columns = zip(located, values[::2], values[1::2], strict=True)
        return [shard.document(at.start, ids, loss) for (shard, at), ids, loss in columns]

    def lengths(self) -> np.ndarray:
        """Return the number of tokens of each document, int64."""
        return np.concatenate([np.diff(shard.ends.astype(np.int64), prepend=0) for shard in self._shards])

    def _locate(self, i: int, part: slice) -> tuple[_TokenShard, slice]:
        """Return the shard of a part of document i, and its place there."""
        if not 0 <= i < len(self):
            raise IndexError(f"document {i} of {len(self)}")
        number = bisect_right(self._first, i) - 1
        shard = self._shards[number]
        i -= self._first[number]
        first, end = int(shard.ends[i - 1]) if i else 0, int(shard.ends[i])
        start, stop, _ = part.indices(end - first)
        return shard, slice(first + start, first + stop)


class _TokenShard:
    """One shard: its ids, its loss mask, and the end of each of its documents."""

    def __init__(
        self, path: str, sizes: Mapping[str, int], metadata: np.ndarray, index: np.ndarray, vocab_size: int | None
    ) -> None:
        self._path, self._vocab_size = path, vocab_size
        width = metadata.tobytes().split(b"\n")[0].split(b"|")[-1]
        if width not in _DTYPES:
            raise UserError(f"{path}.metadata does not contain the width of ids: pack the dataset again")
        _check_size(f"{path}.index", len(index), max(1, -(-len(index) // 8)) * 8)
        self.ends = index.view("<u8")
        if (backward := np.flatnonzero(self.ends[1:] < self.ends[:-1])).size:
            i = int(backward[0]) + 1
            raise UserError(
                f"{path}.index decreases from {self.ends[i - 1]} to {self.ends[i]} at byte {8 * i}: it is "
                "damaged, pack the dataset again"
            )
        self.ids = self._column(path, _DTYPES[width], sizes)
        self.loss = self._column(f"{path}.loss", np.dtype(np.bool_), sizes)

    def document(self, start: int, ids: np.ndarray, loss: np.ndarray) -> TokenDocument:
        """Return (a part of) a document after a check of its ids, the first of which is token `start` of the shard."""
        if self._vocab_size is not None and (wrong := np.flatnonzero(ids >= self._vocab_size)).size:
            raise UserError(
                f"{self._path} contains id {ids[wrong[0]]} at byte {(start + wrong[0]) * ids.itemsize}, beyond the "
                f"vocabulary of {self._vocab_size}: it is damaged, pack the dataset again"
            )
        return TokenDocument(ids, loss)

    def _column(self, path: str, dtype: np.dtype, sizes: Mapping[str, int]) -> ArrayFile:
        _check_size(path, sizes.get(path, 0), int(self.ends[-1]) * dtype.itemsize)
        return ArrayFile(path, sizes[path], dtype)


def _sizes_in(folder: str | Path) -> dict[str, int]:
    """Return the sizes of the files of the shards in a directory by their paths or URLs."""
    if is_url(str(folder)):
        return {file.path: file.size_bytes for file in files_under(str(folder), lambda name: ".ds" in name) or ()}
    return {str(path): path.stat().st_size for path in Path(folder).glob("*.ds*")}


def _contents(paths: Sequence[str], sizes: Mapping[str, int]) -> list[np.ndarray]:
    """Return the bytes of files, none of one that is missing."""
    files = [ArrayFile(path, sizes[path], np.dtype(np.uint8)) if sizes.get(path) else None for path in paths]
    found = iter(read_slices([(file, slice(0, len(file))) for file in files if file]))
    return [next(found) if file else np.zeros(0, np.uint8) for file in files]


def _check_size(path: str, size_bytes: int, expected: int) -> None:
    if size_bytes != expected:
        raise UserError(f"{path} has {size_bytes} bytes, expected {expected}: it is damaged, pack the dataset again")


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}.{suffix}")
