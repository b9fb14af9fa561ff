"""Files at local paths and at URLs that fsspec supports (s3://, gs://, hf://, https://, ...).

    for file in files_under("s3://bucket/books", wanted=lambda name: name.endswith(".txt")): file.path, file.size_bytes
    with open_file(file.path, file.size_bytes) as f: f.seek(start); f.readline()
    read_ranges([(StoredFile(url, size_bytes), 0, 100), ...])       # many small ranges at once

Files at URLs are fetched in ranges of a few MiB, as they are read. Failed requests are repeated.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import fsspec

from weft import progress
from weft.digests import file_digests
from weft.errors import UserError, reason_of, without_secrets

T = TypeVar("T")
_MAX_ATTEMPTS = 5
_WAIT_SEC = 1.0
_BUFFER_BYTES = 4 << 20
_MAX_REQUESTS = 32  # at once
_VERSIONS = ("ETag", "etag", "md5Hash", "blob_id")
_TIMES = ("Last-Modified", "mtime", "modificationTime", "modified")  # of HTTP, file systems and HDFS
_PERMANENT = (FileNotFoundError, NotADirectoryError, PermissionError, NotImplementedError, ImportError, ValueError)


@dataclass(frozen=True, slots=True)
class File:
    """A file: its absolute path or URL, its size, and at a URL the version that the store reports."""

    path: str
    size_bytes: int
    version: str = ""


def is_url(path: str) -> bool:
    return "://" in path


def name_of(path: str) -> str:
    """Return a path or URL to be named in artifacts and compared: without user information and signature."""
    return without_secrets(path) if path.lower().startswith(("http://", "https://")) else path


def path_of(path: str | Path) -> str:
    """Return an absolute path, or a URL unchanged."""
    return str(path) if is_url(str(path)) else os.path.abspath(path)


def files_under(path: str, wanted: Callable[[str], bool]) -> list[File] | None:
    """Return the file at `path`, or those below it, with `wanted` names, in order; None if nothing exists there.

    Hidden files and directories are left out. Raises UserError for a store that cannot be listed.
    """
    return _stored(path, wanted) if is_url(path) else _local(Path(path), wanted)


def open_file(path: str, size_bytes: int) -> BinaryIO:
    """Open a file for reading and seeking. Reading raises OSError, or UserError when a store keeps failing."""
    if not is_url(path):
        return open(path, "rb")
    return io.BufferedReader(_RemoteFile(path, size_bytes), _BUFFER_BYTES)  # type: ignore[return-value]


def identities_of(files: Sequence[File]) -> list[str]:
    """Return an identity of the contents of each file. At a URL, it is the version that the store reports."""
    digests = file_digests(Path(f.path) for f in files if not is_url(f.path))
    return [f.version if is_url(f.path) else digests[Path(f.path)] for f in files]


def _local(path: Path, wanted: Callable[[str], bool]) -> list[File] | None:
    if path.is_dir():
        found = [p for p in _files_in(path) if wanted(p.name) and p.is_file()]
    elif path.exists():
        found = [path] if wanted(path.name) else []
    else:
        return None
    return [File(str(p), p.stat().st_size) for p in sorted(found)]


def _files_in(folder: Path) -> Iterator[Path]:
    """Yield the files below a directory that are not hidden; report the directories that are not read."""

    def report(e: OSError) -> None:
        progress.note(f"{e.filename} is left out, because it cannot be read: {reason_of(e)}")

    for where, folders, names in os.walk(folder, onerror=report):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            if os.path.islink(path := os.path.join(where, name)):
                progress.note(f"{path} is left out, because it is a link to a directory: give its target as well")
        yield from (Path(where, name) for name in names if not name.startswith("."))


def _stored(url: str, wanted: Callable[[str], bool]) -> list[File] | None:
    store, root = _store(url)
    try:
        whole = _with_retries(url, lambda: store.info(root))
    except FileNotFoundError:
        return None
    if whole["type"] == "directory":
        listed = _with_retries(url, lambda: store.find(root, detail=True))
        top = store._strip_protocol(root).rstrip("/")
        found = {p: info for p, info in listed.items() if _is_wanted(p[len(top) :].strip("/").split("/"), wanted)}
    else:
        found = {root: whole} if wanted(name_of(root).rsplit("/", 1)[-1]) else {}
    files = [File(store.unstrip_protocol(p), info["size"], _version(info)) for p, info in found.items()]
    if unsized := next((f.path for f in files if f.size_bytes is None), None):
        raise UserError(f"{unsized}: the store does not report the size: copy the file to a disk")
    return sorted(files, key=lambda f: f.path.split("/"))


def _version(info: Mapping[str, Any]) -> str:
    """Return the version of a file in the listings of S3, Azure, Google and the Hub, or its time of modification."""
    found = [[str(info[name]) for name in names if info.get(name)] for names in (_VERSIONS, _TIMES)]
    return " ".join(found[0] or found[1])


def _is_wanted(parts: Sequence[str], wanted: Callable[[str], bool]) -> bool:
    return wanted(parts[-1]) and not any(part.startswith(".") for part in parts)


class StoredFile:
    """A file at a URL, of which ranges of bytes are requested."""

    def __init__(self, url: str, size_bytes: int) -> None:
        self.size_bytes, self._url = size_bytes, url
        self._store, self._path = _store(url)

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes of a range. Raises UserError for a file that is gone, and if the store keeps failing."""
        try:
            return _with_retries(self._url, lambda: self._fetch(start, stop)) if start < stop else b""
        except FileNotFoundError as e:
            raise UserError(f"{self._url} no longer exists: restore it") from e

    def _fetch(self, start: int, stop: int) -> bytes:
        content = self._store.cat_file(self._path, start=start, end=stop)
        if len(content) != stop - start:
            raise OSError(f"received {len(content)} of {stop - start} bytes")
        return content


def read_ranges(ranges: Sequence[tuple[StoredFile, int, int]]) -> list[bytes]:
    """Return the bytes of ranges (file, start, stop), by concurrent requests. Raises UserError as `StoredFile` does."""
    with ThreadPoolExecutor(_MAX_REQUESTS) as threads:
        return list(threads.map(lambda part: part[0].read(*part[1:]), ranges))


class _RemoteFile(io.RawIOBase):
    """A file at a URL, read in order or after seeking."""

    def __init__(self, url: str, size_bytes: int) -> None:
        self._file, self._position = StoredFile(url, size_bytes), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origins = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.size_bytes}
        self._position = offset + origins[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        start, stop = self._position, min(self._position + len(buffer), self._file.size_bytes)
        if start >= stop:
            return 0
        content = self._file.read(start, stop)
        buffer[: len(content)] = content
        self._position = stop
        return len(content)


def _store(url: str) -> tuple[Any, str]:
    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as e:
        raise UserError(f"{url} cannot be read ({e}): install the fsspec package for it, or copy it to a disk") from e


def _with_retries(url: str, request: Callable[[], T]) -> T:
    """Return the result of a request, repeated after 1, 2, 4 and 8 seconds. Raises FileNotFoundError unchanged."""
    for attempt in range(_MAX_ATTEMPTS):
        try:
            return request()
        except FileNotFoundError:
            raise
        except Exception as e:  # every store has its own exceptions
            reason = " ".join(f"{type(e).__name__}: {e}".split())
            if type(e).__name__ == "OfflineModeIsEnabled":
                raise UserError(
                    f"{url} is on the Hub, and HF_HUB_OFFLINE is set: remove it from the environment"
                ) from e
            if isinstance(e, _PERMANENT):
                raise UserError(f"{url} cannot be read ({reason}): check that you have access") from e
        if attempt + 1 < _MAX_ATTEMPTS:
            time.sleep(_WAIT_SEC * 2**attempt)
    raise UserError(f"{url} cannot be read after {_MAX_ATTEMPTS} attempts ({reason}): run the command again later")
