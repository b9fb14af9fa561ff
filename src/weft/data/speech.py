"""Speech corpora: utterances in any format, and the identity of their contents.

    utterances = read_manifest("speech/manifest.jsonl")
    identity = speech_id(utterances)                 # changes with the contents, not with the location

`weft.data.speech_formats` reads the formats. An invalid line, an id that occurs twice, or a link that leaves its
directory is an utterance with a `problem`, so that commands skip, count and list it like an unreadable file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from weft import progress
from weft.audio import SAMPLE_RATE_HZ, load, num_samples
from weft.data.skipped import Skipped
from weft.data.speech_formats.paths import read_path
from weft.errors import UserError
from weft.files import content_id, file_digests
from weft.records import Utterance
from weft.sound_files.address import file_of


def read_manifest(*paths: str | Path) -> list[Utterance]:
    """Read the utterances of files and directories of any format, with absolute addresses of their audio.

    A directory stands for its manifest.jsonl, or for the files below it: audio files, with their relative paths without
    suffix as ids, or tables, tar files or manifests. Audio is not decoded. Raises UserError for a path without any
    utterance, and for an artifact whose files differ in name or size from its manifest.json, which is damaged or has
    been edited.
    """
    utterances: list[Utterance] = []
    seen: dict[str, str] = {}
    for path in paths:
        for utterance, where in read_path(Path(path)):
            if utterance.id in seen:
                problem = f"its id {utterance.id!r} also occurs in {seen[utterance.id]}: make ids unique"
                utterance = Utterance(where, "", problem=problem)
            seen[utterance.id] = where
            utterances.append(utterance)
    return utterances


def speech_id(utterances: Sequence[Utterance]) -> str:
    """Return an identity of utterances: of the fields of the manifest but `seconds`, and the contents of the audio."""
    files = {u.audio: file_of(u.audio) for u in utterances if u.problem is None}
    digests = file_digests(files.values())
    rows: list[tuple[str | None, ...]] = []
    for u in utterances:
        if u.problem is not None:
            rows.append(("bad entry",))
            continue
        file = files[u.audio]
        segment = u.audio[len(str(file)) :]  # "#t=10,20", or nothing
        rows.append((u.id, u.text, u.speaker, u.language, u.source, segment, digests[file]))
    return content_id(rows, digests)


def audio_lengths(utterances: Sequence[Utterance]) -> list[int | str]:
    """Return the number of 16 kHz samples of each utterance, or the error message. Compressed audio is decoded."""

    def length_of(utterance: Utterance) -> int | str:
        problem = Skipped()
        with problem.on_error(utterance.id):
            if utterance.problem is not None:
                raise UserError(utterance.problem)
            return num_samples(utterance.audio)
        return problem.bad[0][1]

    found = []
    with ThreadPoolExecutor(8) as threads, progress.bar("lengths", len(utterances)) as advance:
        for length in threads.map(length_of, utterances):
            advance()
            found.append(length)
    return found


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
