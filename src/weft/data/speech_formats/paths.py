"""The utterances of a path in any format.

    for utterance, where in read_path(Path("speech")): ...

A format of files is a module with SUFFIXES and `read(path, name)`, and an entry in _FORMATS.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from weft import progress
from weft.data.speech_formats import arrow, kaldi, lhotse, manifests, parquet, webdataset
from weft.data.speech_formats.entries import Entry, Lost, bad, with_lost
from weft.data.speech_formats.files import AUDIO_SUFFIXES, files_below, is_audio
from weft.errors import UserError
from weft.records import Utterance
from weft.text.inputs import id_of


@dataclass(frozen=True)
class _Format:
    """Files that one directory has for the same purpose. `read` gets a path and its name relative to the directory."""

    title: str
    matches: Callable[[Path], bool]
    read: Callable[[Path, str], Iterator[Entry | Lost]]


def _audio(path: Path, name: str) -> Iterator[Entry]:
    utterance_id = id_of(Path(name).with_suffix("").as_posix())
    assert utterance_id is not None
    yield Entry(Utterance(utterance_id, os.path.abspath(path)), str(path))


def _table(path: Path, name: str) -> Iterator[Entry | Lost]:
    return (parquet if _has(path, parquet.SUFFIXES) else arrow).read(path, name)


def _has(path: Path, suffixes: Sequence[str]) -> bool:
    return path.name.lower().endswith(tuple(suffixes))


def _is_table(path: Path) -> bool:
    """Whether a file is a table. Cache files of the `datasets` library are not."""
    is_cache = path.name.startswith("cache-") and path.suffix == ".arrow"
    return _has(path, (*parquet.SUFFIXES, *arrow.SUFFIXES)) and not is_cache


def _is_lhotse(kind: str) -> Callable[[Path], bool]:
    return lambda path: kind in path.name.lower() and _has(path, manifests.SUFFIXES)


# Of a directory, the files of the first format are read that it has.
_FORMATS = (
    _Format("audio files", is_audio, _audio),
    _Format("Parquet and Arrow files", _is_table, _table),
    _Format("tar files", lambda path: _has(path, webdataset.SUFFIXES), webdataset.read),
    *(_Format(f"Lhotse {kind}", _is_lhotse(kind), manifests.read) for kind in lhotse.NAMES),
)
_MANIFEST = _Format("manifests", lambda path: _has(path, manifests.SUFFIXES), manifests.read)
_NEEDED = (
    f"a {manifests.MANIFEST_NAME}, audio files ({' '.join(AUDIO_SUFFIXES)}), Parquet, Arrow or webdataset tar files, "
    "or a Kaldi or Lhotse directory"
)


def read_path(path: Path) -> Iterator[Entry]:
    """Yield each utterance of a file or directory. Raises UserError for a path without any."""
    is_empty = True
    for entry in _read_folder(path) if path.is_dir() else _read_file(path):
        is_empty = False
        yield entry
    if is_empty:
        raise UserError(f"{path} contains no utterances: give files with speech")


def _read_file(path: Path) -> Iterator[Entry]:
    if not path.exists():
        raise UserError(f"{path} does not exist: give {_NEEDED}")
    found = next((f for f in (*_FORMATS, _MANIFEST) if f.matches(path)), None)
    if found is None:
        if path.name.lower().endswith((".tar.gz", ".tgz", ".tar.zst")):
            raise UserError(f"{path} is compressed, so that sounds in it cannot be read one by one: decompress it")
        raise UserError(f"{path} is not speech that weft can read: give {_NEEDED}")
    yield from _read_files(found, [(path, None)], path.parent)


def _read_folder(folder: Path) -> Iterator[Entry]:
    if (folder / manifests.MANIFEST_NAME).is_file():
        yield from _read_files(_MANIFEST, [(folder / manifests.MANIFEST_NAME, None)], folder)
        return
    if (folder / kaldi.MARK).is_file():
        yield from kaldi.read(folder)
        return
    files = list(files_below(folder, lambda path: any(f.matches(path) for f in _FORMATS)))
    of_formats = [[file for file in files if f.matches(file[0]) or file[0].is_dir()] for f in _FORMATS]
    number = next((i for i, own in enumerate(of_formats) if any(not file.is_dir() for file, _ in own)), 0)
    if not of_formats[number]:
        raise UserError(f"{folder} contains no speech that weft can read: give {_NEEDED}")
    if others := [f.title for f, own in zip(_FORMATS, of_formats, strict=True) if set(own) - set(of_formats[number])]:
        title = _FORMATS[number].title
        progress.note(f"{folder}: its {title} are read, its {', '.join(others)} are ignored: give them by their names")
    yield from _read_files(_FORMATS[number], of_formats[number], folder)


def _read_files(form: _Format, files: Sequence[tuple[Path, str | None]], root: Path) -> Iterator[Entry]:
    """Yield the utterances of files, and bad entries for files with problems and for what files have lost."""

    def entries() -> Iterator[Entry | Lost]:
        for path, problem in files:
            name = path.relative_to(root).as_posix()
            if problem is not None:
                yield Entry(Utterance(id_of(name) or str(path), "", problem=problem), str(path))
            elif form.read is not _audio and not path.is_file():
                yield bad(str(path), "it does not exist, or is not a file")
            else:
                yield from form.read(path, name)

    sizes = (path.stat().st_size for path, problem in files if problem is None and path.is_file())
    yield from with_lost(entries(), 0 if form.read is _audio else sum(sizes))
