"""Recordings of published evaluation sets: files, parts of files, and files in zip files, which are not extracted.

Sound("talks.parquet#row=17,audio").load()          # samples (S,) at 16 kHz
ZippedSound("stories.zip", "stories/1_a.wav").load()
"""

from __future__ import annotations

import tempfile
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from weft.audio import load
from weft.digests import state_of
from weft.errors import UserError
from weft.sound_files.address import file_of

MAX_MEMBER_BYTES = 1 << 30  # of a file in a zip file, decompressed


@dataclass(frozen=True)
class Sound:
    """A recording, by its address (`weft.sound_files.address`)."""

    address: str

    @property
    def path(self) -> Path:
        """The file that has the recording."""
        return file_of(self.address)

    @property
    def part(self) -> str:
        """Which part of the file is the recording."""
        return self.address[len(str(self.path)) :]

    def load(self) -> np.ndarray:
        """Return the samples (S,) at 16 kHz. Raises UserError as `weft.audio.load` does."""
        return load(self.address)


@dataclass(frozen=True)
class ZippedSound(Sound):
    """A recording in a zip file, whose path is the address."""

    name: str

    @property
    def part(self) -> str:
        """The name of the recording in the zip file."""
        return self.name

    def load(self) -> np.ndarray:
        """Return the samples (S,) at 16 kHz. Raises UserError as `weft.audio.load` does, and errors of `zipfile`."""
        with tempfile.NamedTemporaryFile(suffix=Path(self.name).suffix) as f:
            f.write(member(self.path, self.name))
            f.flush()
            return load(f.name)


@dataclass(frozen=True)
class AbsentSound(Sound):
    """A recording that a table, whose path is the address, names and that is not there."""

    name: str

    @property
    def part(self) -> str:
        """The name of the recording."""
        return self.name

    def load(self) -> np.ndarray:
        """Raise UserError."""
        raise UserError(f"{self.name} of {self.path} does not exist: copy it again")


def member(path: Path, name: str) -> bytes:
    """Return the content of a file in a zip file. Raises UserError if it is too long, and errors of `zipfile`."""
    archive = _archive(path, state_of(path))
    info = archive.getinfo(name)
    if info.file_size > MAX_MEMBER_BYTES:
        raise UserError(f"{name} in {path} has {info.file_size} bytes: unzip it")
    return archive.read(info)


@lru_cache(maxsize=1)
def _archive(path: Path, state: int) -> zipfile.ZipFile:
    """Return a zip file in a state, which stays open: its list of files is read once."""
    return zipfile.ZipFile(path)
