"""The files of a published set in a directory or a zip file.

    for file in files_in(request, (".wav", ".txt")): file.name, file.read(), file.sound

Nothing is extracted. Hidden files and those of macOS are ignored.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from weft.data.lines import MAX_DOCUMENT_BYTES, TOO_LONG
from weft.data.speech_formats.files import files_below
from weft.errors import UserError, reason_of
from weft.eval.prepare.items import Request
from weft.eval.prepare.sounds import Sound, ZippedSound, member
from weft.text.inputs import decode

_OF_MACOS = "__MACOSX"


@dataclass(frozen=True)
class File:
    """A file: its name relative to the directory or in the zip file, with slashes, and its path, or that of the zip."""

    name: str
    path: Path
    is_zipped: bool = False

    @property
    def base(self) -> str:
        """The name without its directory."""
        return PurePosixPath(self.name).name

    @property
    def folder(self) -> str:
        """The directory of the name; empty for a file that is not in one."""
        return self.name[: -len(self.base)].rstrip("/")

    @property
    def sound(self) -> Sound:
        """The file as a recording."""
        return ZippedSound(str(self.path), self.name) if self.is_zipped else Sound(str(self.path))

    @property
    def where(self) -> str:
        """The file in messages."""
        return f"{self.path} {self.name}" if self.is_zipped else str(self.path)

    def text(self) -> str:
        """Return the file as text. Raises ValueError if it is not UTF-8, or longer than 64 MiB."""
        try:
            content = member(self.path, self.name) if self.is_zipped else self.path.read_bytes()
        except (zipfile.BadZipFile, zlib.error) as e:
            raise ValueError(f"it is damaged: {reason_of(e)}") from e
        if len(content) > MAX_DOCUMENT_BYTES:
            raise ValueError(TOO_LONG)
        return decode(content)


def files_in(request: Request, suffixes: Sequence[str]) -> list[File]:
    """Return the files with some suffixes below a directory or in a zip file, by name.

    Links that leave the directory are added to the skipped items. Raises UserError for another path, and if there are
    no such files.
    """
    source = request.source
    if source.is_dir():
        found = list(_in_folder(request, suffixes))
    elif zipfile.is_zipfile(source):
        found = list(_in_zip(source, suffixes))
    else:
        raise UserError(f"{source} is not a directory or a complete zip file: give that of {request.name}")
    if not found:
        problem = next((f" that can be read ({where}: {why})" for where, why in request.skipped.bad), "")
        raise UserError(f"{source} has no {', '.join(suffixes)} file{problem}: give the directory of {request.name}")
    return sorted(found, key=lambda file: file.name)


def _in_folder(request: Request, suffixes: Sequence[str]) -> Iterator[File]:
    for path, problem in files_below(request.source, lambda p: p.suffix.lower() in suffixes):
        name = path.relative_to(request.source).as_posix()
        if problem is not None:
            request.skipped.add(str(path), problem)
        elif not _is_hidden(name):
            yield File(name, path)


def _in_zip(source: Path, suffixes: Sequence[str]) -> Iterator[File]:
    with zipfile.ZipFile(source) as archive:
        names = dict.fromkeys(info.filename for info in archive.infolist() if not info.is_dir())
    for name in names:
        if PurePosixPath(name).suffix.lower() in suffixes and not _is_hidden(name):
            yield File(name, source, is_zipped=True)


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == _OF_MACOS for part in name.split("/"))
