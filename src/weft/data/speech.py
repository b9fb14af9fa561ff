"""Speech corpora: utterances in any format, and the identity of their contents.

    utterances = read_manifest("speech/manifest.jsonl")
    identity = speech_id(utterances)                 # changes with the contents, not with the location

`weft.data.speech_formats` reads the formats. An invalid line, an id that occurs twice, or a link that leaves its
directory is an utterance with a `problem`, so that commands skip, count and list it like an unreadable file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import overload

import numpy as np

from weft import progress
from weft.audio import SAMPLE_RATE_HZ, load, num_samples
from weft.data.skipped import MAX_LISTED, Skipped
from weft.data.speech_formats.entries import Entry
from weft.data.speech_formats.paths import read_path
from weft.data.utterances import Utterances, utterances_of
from weft.digests import file_digests
from weft.errors import UserError
from weft.files import ContentId, rows_id
from weft.records import Utterance
from weft.sound_files.address import file_of
from weft.text.recase import recased

_LENGTHS_AT_ONCE = 4096
_UNLISTED = "it cannot be read, like many others"


def read_manifest(*paths: str | Path, recase: bool = False, language: str | None = None) -> Utterances:
    """Read the utterances of files and directories of any format, with absolute addresses of their audio.

    With `recase`, upper-case transcripts become sentence case. `language` is that of utterances without one.

    A directory stands for its manifest.jsonl, or for the files below it: audio files, with their relative paths without
    suffix as ids, or tables, tar files or manifests. Audio is not decoded. Raises UserError for a path without any
    utterance, and for an artifact whose files differ in name or size from its manifest.json, which is damaged or has
    been edited.
    """
    entries = (entry for path in paths for entry in read_path(Path(path)))
    return utterances_of(_recased(entries, language) if recase else entries)


def _recased(entries: Iterable[Entry], language: str | None) -> Iterator[Entry]:
    for u, where in entries:
        yield Entry(replace(u, text=u.text and recased(u.text, u.language or language)), where)


def speech_id(utterances: Sequence[Utterance]) -> ContentId:
    """Return an identity of utterances: of the fields of the manifest but `seconds`, and the contents of the audio."""
    digests = file_digests(_Files(utterances))

    def rows() -> Iterator[tuple[str | None, ...]]:
        last, digest = None, ""
        for u, file in _with_files(utterances):
            if file is None:
                yield ("bad entry",)
                continue
            if file is not last:
                last, digest = file, digests[file]
            part = u.audio[len(str(file)) :]  # "#t=10,20", or nothing
            yield u.id, u.text, u.speaker, u.language, u.source, part, digest

    return rows_id(rows(), digests)


class _Files(Iterable[Path]):
    """The audio files of utterances; one with several consecutive utterances is there once."""

    def __init__(self, utterances: Iterable[Utterance]) -> None:
        self._utterances = utterances

    def __iter__(self) -> Iterator[Path]:
        last = None
        for _, file in _with_files(self._utterances):
            if file is not None and file is not last:
                last = file
                yield file


def _with_files(utterances: Iterable[Utterance]) -> Iterator[tuple[Utterance, Path | None]]:
    """Yield utterances with the file of their audio, None for bad entries."""
    last: Path | None = None
    for u in utterances:
        if u.problem is not None:
            yield u, None
            continue
        if last is None or not u.audio.startswith(f"{last}#"):  # else another part of the same file
            last = file_of(u.audio)
        yield u, last


class AudioLengths(Sequence[int | str]):
    """The number of 16 kHz samples of each utterance, or the error message. `samples` are -1 for errors."""

    def __init__(self, samples: np.ndarray, problems: Mapping[int, str]) -> None:
        self.samples, self.problems = samples, problems

    def __len__(self) -> int:
        return len(self.samples)

    @overload
    def __getitem__(self, index: int) -> int | str: ...
    @overload
    def __getitem__(self, index: slice) -> list[int | str]: ...
    def __getitem__(self, index: int | slice) -> int | str | list[int | str]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        found = int(self.samples[index])
        return found if found >= 0 else self.problems.get(index % len(self), _UNLISTED)


def audio_lengths(utterances: Sequence[Utterance]) -> AudioLengths:
    """Return the number of 16 kHz samples of each utterance, or the error message. Compressed audio is decoded."""

    def length_of(utterance: Utterance) -> int | str:
        problem = Skipped()
        with problem.on_error(utterance.id):
            if utterance.problem is not None:
                raise UserError(utterance.problem)
            return num_samples(utterance.audio)
        return problem.bad[0][1]

    samples, problems = np.full(len(utterances), -1, np.int64), dict[int, str]()
    with ThreadPoolExecutor(8) as threads, progress.bar("lengths", len(utterances)) as advance:
        for first in range(0, len(utterances), _LENGTHS_AT_ONCE):
            lengths = threads.map(length_of, utterances[first : first + _LENGTHS_AT_ONCE])
            for i, length in enumerate(lengths, first):
                advance()
                if isinstance(length, int):
                    samples[i] = length
                elif len(problems) < MAX_LISTED:
                    problems[i] = length
    return AudioLengths(samples, problems)


def load_speech(utterance: Utterance, sample_rate_hz: int = SAMPLE_RATE_HZ) -> np.ndarray:
    """Return the samples (S,) of an utterance. Raises UserError as `weft.audio.load` does, and for a bad entry."""
    if utterance.problem is not None:
        raise UserError(utterance.problem)
    return load(utterance.audio, sample_rate_hz)


def readable(utterances: Iterable[Utterance], skipped: Skipped) -> list[Utterance]:
    """Return the utterances whose audio can be read, which is read once to find out; others are added to `skipped`."""
    found = []
    for u in utterances:
        with skipped.on_error(u.id):
            load_speech(u)
            found.append(u)
            skipped.num_good += 1
    return found
