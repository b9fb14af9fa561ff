"""Atomic writing of files, and identities of files by their contents.

write_json(path, {"wer": 0.1})
with atomic_writer(path) as f: f.write(...)
digests = file_digests([Path("a.wav"), Path("b.wav")])
identity = content_id([("a", digests[Path("a.wav")])], digests)     # "sha256:1b4f0e9851971998"
identity.changed_file()                                             # None, or a file that has changed since
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from weft.errors import UserError

MAX_HASHED_BYTES = 4 << 30  # of all files together; larger sets of files are sampled
_SAMPLE_BYTES = 4 << 10
_MAX_SAMPLES = 4096  # per file
_FILES_AT_ONCE = 4096


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises OSError, and ValueError for anything else."""
    return json_object(path.read_bytes(), path.name)


def json_object(content: bytes, name: str) -> dict[str, Any]:
    """Parse the JSON object of the file `name`. Raises ValueError for anything else."""
    try:
        value = json.loads(content.decode())
    except RecursionError as e:
        raise ValueError(f"{name} is nested too deeply") from e
    if not isinstance(value, dict):
        raise ValueError(f"{name} is not a JSON object")
    return value


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically. Raises OSError with the name of the file."""
    try:
        with atomic_writer(path) as f:
            f.write(content)
    except OSError as e:
        e.filename = e.filename or str(path)  # a failed write does not name its file
        raise


@contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that appears as `path`, synced to disk, when the block ends without an exception.

    The name of the temporary file is unique to the process, because a cluster may run one task twice.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        with temporary.open("wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    """Return a name beside `path` that is unique to this process."""
    return path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")


def remove_temporary_files(folder: Path) -> None:
    """Remove what killed processes have left of files that `atomic_writer` writes below `folder`."""
    for leftover in folder.rglob("*.tmp"):
        leftover.unlink()


def sync(path: Path) -> None:
    """Flush a file, or the entries of a directory, to disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_tree(folder: Path) -> None:
    """Flush a directory and everything below it to disk."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def check_writable(path: Path, suffix: str = "") -> None:
    """Raise UserError or OSError if `path` cannot be written. Call it before long work whose result goes there."""
    if path.is_dir():
        raise UserError(f"{path} is a directory: give a file name")
    if suffix and path.suffix.lower() != suffix:
        raise UserError(f"{path} must have the suffix {suffix}: rename it")
    path.parent.mkdir(parents=True, exist_ok=True)
    probe = _temporary(path)
    probe.touch()
    probe.unlink()


class Digest(str):
    """A digest of the contents of a file, with the file's state (size, times, inode) before it was read."""

    state: tuple[int, ...]

    def __new__(cls, digest: str, state: tuple[int, ...]) -> Digest:
        new = super().__new__(cls, digest)
        new.state = state
        return new


class ContentId(str):
    """An identity of contents, with the digests of the files that they were read from.

    A pickled or copied one is a plain string.
    """

    digests: Mapping[Path, str]

    def __new__(cls, identity: str, digests: Mapping[Path, str]) -> ContentId:
        new = super().__new__(cls, identity)
        new.digests = digests
        return new

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self),)

    def changed_file(self) -> Path | None:
        """Return a file whose contents have changed since the digests were computed, or None.

        Files are read again only if the size, a time or the inode of one of them has changed.
        """
        if all(isinstance(digest, Digest) and digest.state == state_of(p) for p, digest in self.digests.items()):
            return None
        now = file_digests(self.digests)
        return next((path for path, digest in self.digests.items() if now[path] != digest), None)


def content_id(value: Any, digests: Mapping[Path, str] | None = None) -> ContentId:
    """Return an identity of a value that `repr` describes completely: "sha256:" and 16 hexadecimal digits.

    `digests` are those of the files that the value was made from.
    """
    digest = hashlib.sha256(repr(value).encode(errors="surrogatepass")).hexdigest()
    return ContentId(f"sha256:{digest[:16]}", digests or {})


def rows_id(rows: Iterable[Any], digests: Mapping[Path, str] | None = None) -> ContentId:
    """Return `content_id` of a list with some rows, which need not be in memory together."""
    total = hashlib.sha256(b"[")
    for i, row in enumerate(rows):
        total.update(f"{', ' if i else ''}{row!r}".encode(errors="surrogatepass"))
    total.update(b"]")
    return ContentId(f"sha256:{total.hexdigest()[:16]}", digests or {})


def state_of(path: Path) -> tuple[int, ...]:
    """Return size, times and inode of a file, which change when it is written or replaced; () if there is none."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's contents, in hexadecimal."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def file_digests(paths: Iterable[Path]) -> dict[Path, str]:
    """Return a digest of the contents of each file; the empty string for one that cannot be read, such as a pipe.

    Up to 4 GiB in total, every byte is read (SHA-256). Of more, evenly spaced blocks of 4 KiB are read, about 4 GiB in
    total and at least one per file, so that small edits of very large data may go unnoticed.
    """
    states = {path: state_of(path) if os.path.isfile(path) else () for path in dict.fromkeys(paths)}
    fraction = min(1.0, MAX_HASHED_BYTES / max(1, sum(state[0] for state in states.values() if state)))
    digests, paths_left = dict[Path, str](), iter(states)
    with ThreadPoolExecutor(4) as threads:
        while some := list(islice(paths_left, _FILES_AT_ONCE)):  # a task for each file needs memory
            digests.update(zip(some, threads.map(lambda path: _digest(path, fraction), some), strict=True))
    return {path: Digest(digest, states[path]) for path, digest in digests.items()}


def _digest(path: Path, fraction: float) -> str:
    if not os.path.isfile(path):  # opening a named pipe would wait for a writer
        return ""
    try:
        if fraction == 1.0:
            return sha256_of(path)
        size_bytes = path.stat().st_size
        total = hashlib.sha256(str(size_bytes).encode())
        num_samples = min(_MAX_SAMPLES, max(1, int(size_bytes * fraction) // _SAMPLE_BYTES))
        with path.open("rb") as f:
            for i in range(num_samples):
                f.seek((2 * i + 1) * max(0, size_bytes - _SAMPLE_BYTES) // (2 * num_samples))
                total.update(f.read(_SAMPLE_BYTES))
        return total.hexdigest()
    except OSError:
        return ""
