"""Atomic writing of files, and identities of files by their contents.

write_json(path, {"wer": 0.1})
with atomic_writer(path) as f: f.write(...)
digests = file_digests([Path("a.wav"), Path("b.wav")])
identity = content_id([("a", digests[Path("a.wav")])])      # "sha256:1b4f0e9851971998"
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from weft.errors import UserError

_MAX_HASHED_BYTES = 4 << 30  # of all files together; larger sets of files are sampled
_SAMPLE_BYTES = 4 << 10
_MAX_SAMPLES = 4096  # per file


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with atomic_writer(path) as f:
        f.write(content)


@contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that appears as `path`, synced to disk, when the block ends without an exception.

    The name of the temporary file is unique to the process, because a cluster may run one task twice.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
    probe = path.with_name(path.name + ".tmp")
    probe.touch()
    probe.unlink()


def content_id(value: Any) -> str:
    """Return an identity of a value that `repr` describes completely: "sha256:" and 16 hexadecimal digits."""
    return f"sha256:{hashlib.sha256(repr(value).encode(errors='surrogatepass')).hexdigest()[:16]}"


def file_digests(paths: Iterable[Path]) -> dict[Path, str]:
    """Return a digest of the contents of each file; the empty string for a file that cannot be read.

    Up to 4 GiB in total, every byte is read. Of more, evenly spaced blocks of 4 KiB are read, about 4 GiB in total and
    at least one per file, so that small edits of very large data may go unnoticed.
    """
    sizes = {path: path.stat().st_size if path.is_file() else 0 for path in dict.fromkeys(paths)}
    fraction = min(1.0, _MAX_HASHED_BYTES / max(1, sum(sizes.values())))
    with ThreadPoolExecutor(4) as threads:
        return dict(zip(sizes, threads.map(lambda path: _digest(path, sizes[path], fraction), sizes), strict=True))


def _digest(path: Path, size_bytes: int, fraction: float) -> str:
    try:
        with path.open("rb") as f:
            if fraction == 1.0:
                return hashlib.file_digest(f, "sha256").hexdigest()
            total = hashlib.sha256(str(size_bytes).encode())
            num_samples = min(_MAX_SAMPLES, max(1, int(size_bytes * fraction) // _SAMPLE_BYTES))
            for i in range(num_samples):
                f.seek((2 * i + 1) * max(0, size_bytes - _SAMPLE_BYTES) // (2 * num_samples))
                total.update(f.read(_SAMPLE_BYTES))
            return total.hexdigest()
    except OSError:
        return ""
