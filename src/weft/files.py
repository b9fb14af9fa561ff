"""Atomic writing of files, and identities of files by their contents.

write_json(path, {"wer": 0.1})
with atomic_writer(path) as f: f.write(...)
digests = file_digests([Path("a.wav"), Path("b.wav")])              # of weft.digests
identity = content_id([("a", digests[Path("a.wav")])], digests)     # "sha256:1b4f0e9851971998"
identity.changed_file()                                             # None, or a file that has changed since
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from weft.digests import FileDigests, file_digests
from weft.errors import UserError


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
        if isinstance(self.digests, FileDigests) and self.digests.are_current():
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
