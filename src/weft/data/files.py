"""Files of a corpus, wherever they lie: local paths, and URLs that fsspec knows (s3://, gs://, hf://, https://, ...).

    for file in files_under("s3://bucket/books", wanted=lambda name: name.endswith(".txt")): file.path, file.size_bytes
    with open_file(file.path, file.size_bytes) as f: f.seek(start); f.readline()

Of a file at a URL only what is read is fetched, some MiB at a time, and asked for again when the store fails.
"""

from __future__ import annotations

import hashlib
import io
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import fsspec

from weft.errors import UserError

T = TypeVar("T")
_TRIES = 5
_WAIT_SEC = 1.0
_FETCHED_BYTES = 4 << 20
_SAMPLES, _SAMPLE_BYTES = 256, 16 << 10
_LASTING = (FileNotFoundError, NotADirectoryError, PermissionError, NotImplementedError, ImportError, ValueError)


@dataclass(frozen=True, slots=True)
class File:
    """An absolute path or a URL, how long what lies there is, and at a URL what its store tells of the version."""

    path: str
    size_bytes: int
    version: str = ""


def is_url(path: str) -> bool:
    return "://" in path


def path_of(path: str | Path) -> str:
    """A path that means the same in every process: absolute, unless it is a URL."""
    return str(path) if is_url(str(path)) else os.path.abspath(path)


def files_under(path: str, wanted: Callable[[str], bool]) -> list[File] | None:
    """The file at `path`, or those under it, whose names are `wanted`, in order; None where there is nothing at all.

    What is hidden (`.cache`, `.git`) is left out. Raises UserError for a store that cannot be listed.
    """
    return _stored(path, wanted) if is_url(path) else _local(Path(path), wanted)


def open_file(path: str, size_bytes: int) -> BinaryIO:
    """A file to read, that can seek. Reading raises OSError, or UserError where a store fails time and again."""
    if not is_url(path):
        return open(path, "rb")
    return io.BufferedReader(_Fetched(path, size_bytes), _FETCHED_BYTES)  # type: ignore[return-value]


def identity_of(file: File) -> str:
    """Sixteen hex digits that change with the bytes of a file: of all up to 4 MiB, of samples beyond, which a change of
    a few words may escape. At a URL, of what its store tells of the version, if anything."""
    if is_url(file.path):
        return hashlib.sha256(file.version.encode()).hexdigest()[:16]
    num = _SAMPLES if file.size_bytes > _SAMPLES * _SAMPLE_BYTES else 1
    length = _SAMPLE_BYTES if num > 1 else file.size_bytes
    found = hashlib.sha256()
    with open(file.path, "rb") as f:
        for i in range(num):
            f.seek(i * (file.size_bytes - length) // max(1, num - 1))
            found.update(f.read(length))
    return found.hexdigest()[:16]


def _local(path: Path, wanted: Callable[[str], bool]) -> list[File] | None:
    if path.is_dir():
        found = [p for p in path.rglob("*") if _is_wanted(p.relative_to(path).parts, wanted) and p.is_file()]
    elif path.exists():
        found = [path] if wanted(path.name) else []
    else:
        return None
    return [File(str(p), p.stat().st_size) for p in sorted(found)]


def _stored(url: str, wanted: Callable[[str], bool]) -> list[File] | None:
    store, root = _store(url)
    try:
        whole = _patiently(url, lambda: store.info(root))
    except FileNotFoundError:
        return None
    if whole["type"] == "directory":
        listed = _patiently(url, lambda: store.find(root, detail=True))
        top = store._strip_protocol(root).rstrip("/")
        found = {p: about for p, about in listed.items() if _is_wanted(p[len(top) :].strip("/").split("/"), wanted)}
    else:
        found = {root: whole} if wanted(root.rsplit("/", 1)[-1]) else {}
    files = [File(store.unstrip_protocol(p), about["size"], _version(about)) for p, about in found.items()]
    if nameless := next((f.path for f in files if f.size_bytes is None), None):
        raise UserError(f"{nameless}: its store does not tell how long it is: copy it to a disk first")
    return sorted(files, key=lambda f: f.path.split("/"))


def _version(about: Mapping[str, Any]) -> str:
    """What a store's listing tells of a file's version, by the names that S3, Azure, Google and the Hub give it."""
    told = [about.get(name) for name in ("ETag", "etag", "md5Hash", "blob_id")]
    return " ".join(str(value) for value in told if value)


def _is_wanted(parts: Any, wanted: Callable[[str], bool]) -> bool:
    return wanted(parts[-1]) and not any(part.startswith(".") for part in parts)


class _Fetched(io.RawIOBase):
    """A file at a URL; each read is a request for a range of its bytes."""

    def __init__(self, url: str, size_bytes: int) -> None:
        self._url, self._size_bytes, self._place = url, size_bytes, 0
        self._store, self._path = _store(url)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size_bytes}[whence]
        return self._place

    def readinto(self, buffer: Any) -> int:
        start, stop = self._place, min(self._place + len(buffer), self._size_bytes)
        if start >= stop:
            return 0
        try:
            content = _patiently(self._url, lambda: self._fetch(start, stop))
        except FileNotFoundError as e:
            raise UserError(f"{self._url} does not exist any more: put it back") from e
        buffer[: len(content)] = content
        self._place = stop
        return len(content)

    def _fetch(self, start: int, stop: int) -> bytes:
        content = self._store.cat_file(self._path, start=start, end=stop)
        if len(content) != stop - start:
            raise OSError(f"{len(content)} bytes came of {stop - start}")
        return content


def _store(url: str) -> tuple[Any, str]:
    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as e:
        raise UserError(f"{url} cannot be read ({e}): install what fsspec needs for it, or copy it to a disk") from e


def _patiently(url: str, ask: Callable[[], T]) -> T:
    """What a store answers, asked again after 1, 2, 4 and 8 seconds. Raises FileNotFoundError as it is."""
    for attempt in range(_TRIES):
        try:
            return ask()
        except FileNotFoundError:
            raise
        except Exception as e:  # every store has its own
            reason = " ".join(f"{type(e).__name__}: {e}".split())
            if type(e).__name__ == "OfflineModeIsEnabled":
                raise UserError(f"{url} is on the Hub, which weft leaves alone: run with HF_HUB_OFFLINE=0") from e
            if isinstance(e, _LASTING):
                raise UserError(f"{url} cannot be read ({reason}): see that you may read it") from e
        if attempt + 1 < _TRIES:
            time.sleep(_WAIT_SEC * 2**attempt)
    raise UserError(f"{url} cannot be read, tried {_TRIES} times ({reason}): run again when its store answers")
