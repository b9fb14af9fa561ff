"""Digests of the contents of files, also of many millions of files.

digests = file_digests([Path("a.wav"), Path("b.wav")])
digests[Path("a.wav")]          # SHA-256 in hexadecimal
digests.are_current()           # whether no file has been written or replaced since
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np

MAX_HASHED_BYTES = 4 << 30  # of all files together; larger sets of files are sampled
_SAMPLE_BYTES = 4 << 10
_MAX_SAMPLES = 4096  # per file
_FILES_AT_ONCE = 4096


class FileDigests(Mapping[Path, str]):
    """Digests by path, with about 50 bytes of memory for each file; the empty string for one that cannot be read.

    Paths are found by a hash of 64 bits: of 100 million paths, two have the same with a probability of 0.03 %.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        """Read the files of `paths`, an iterable that can be read several times, such as a list."""
        self._paths = paths
        self._keys = np.unique(np.fromiter(map(_key, paths), np.uint64))
        self._states = np.zeros(len(self._keys), np.int64)
        self._digests = np.zeros((len(self._keys), 32), np.uint8)  # zeros: unreadable
        total_bytes = 0
        for i, path in self._numbered():
            if os.path.isfile(path):
                self._states[i], size_bytes = _state_and_size(path)
                total_bytes += size_bytes
        fraction = min(1.0, MAX_HASHED_BYTES / max(1, total_bytes))
        files = self._numbered()
        with ThreadPoolExecutor(4) as threads:
            while some := list(islice(files, _FILES_AT_ONCE)):  # a task for each file needs memory
                for (i, _), digest in zip(some, threads.map(lambda f: _digest(f[1], fraction), some), strict=True):
                    self._digests[i] = np.frombuffer(digest, np.uint8)

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[Path]:
        return (path for _, path in self._numbered())

    def __getitem__(self, path: Path) -> str:
        if (i := self._index(path)) is None:
            raise KeyError(path)
        digest = self._digests[i].tobytes()
        return digest.hex() if any(digest) else ""

    def are_current(self) -> bool:
        """Whether size, times and inode of every file are what they were before it was read."""
        return all(self._states[i] == state_of(path) for i, path in self._numbered())

    def _numbered(self) -> Iterator[tuple[int, Path]]:
        """Yield each path once, where it is first found, with the number of its row."""
        found = np.zeros(len(self._keys), np.bool)
        for path in self._paths:
            if (i := self._index(path)) is not None and not found[i]:
                found[i] = True
                yield i, path

    def _index(self, path: Path) -> int | None:
        key = _key(path)
        i = int(np.searchsorted(self._keys, np.uint64(key)))
        return i if i < len(self._keys) and int(self._keys[i]) == key else None


def file_digests(paths: Iterable[Path]) -> FileDigests:
    """Return a digest of the contents of each file; the empty string for one that cannot be read, such as a pipe.

    Up to 4 GiB in total, every byte is read (SHA-256). Of more, evenly spaced blocks of 4 KiB are read, about 4 GiB in
    total and at least one per file, so that small edits of very large data may go unnoticed.
    """
    return FileDigests(list(paths) if isinstance(paths, Iterator) else paths)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's contents, in hexadecimal."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def state_of(path: Path) -> int:
    """Return a number that changes when a file is written or replaced (of size, times, inode); 0 if there is none."""
    return _state_and_size(path)[0]


def _state_and_size(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return hash((found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)), found.st_size


def _key(path: Path) -> int:
    content = str(path).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest())


def _digest(path: Path, fraction: float) -> bytes:
    if not os.path.isfile(path):  # opening a named pipe would wait for a writer
        return bytes(32)
    try:
        if fraction == 1.0:
            return bytes.fromhex(sha256_of(path))
        size_bytes = path.stat().st_size
        total = hashlib.sha256(str(size_bytes).encode())
        num_samples = min(_MAX_SAMPLES, max(1, int(size_bytes * fraction) // _SAMPLE_BYTES))
        with path.open("rb") as f:
            for i in range(num_samples):
                f.seek((2 * i + 1) * max(0, size_bytes - _SAMPLE_BYTES) // (2 * num_samples))
                total.update(f.read(_SAMPLE_BYTES))
        return total.digest()
    except OSError:
        return bytes(32)
