"""What readers of speech formats yield: utterances, bad entries, and lost parts of files.

    for entry in read(path): ...        # an Entry, or a Lost part

A reader is a function of a path. It opens audio only if the format needs it, reads nothing that a row does not need,
and never executes or unpickles anything. An invalid row is an utterance with a `problem`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from weft.data.lines import MAX_DOCUMENT_BYTES, TOO_LONG
from weft.records import Utterance

MAX_LOST = 1 << 20  # entries for one damaged file

# Names of columns and fields, the preferred first: of weft, and of data sets on the Hugging Face Hub.
IDS = ("id", "utt_id", "utterance_id")
TEXTS = ("text", "transcription", "transcript", "sentence")
SPEAKERS = ("speaker", "speaker_id", "client_id")
LANGUAGES = ("language", "locale", "lang")


class Entry(NamedTuple):
    """An utterance, and the place where it was found."""

    utterance: Utterance
    where: str


@dataclass(frozen=True, slots=True)
class Lost:
    """A part of a file that cannot be read. It has an unknown number of utterances."""

    path: Path
    reason: str
    num_bytes: int


def bad(where: str, problem: str) -> Entry:
    """Return an entry that cannot be used."""
    return Entry(Utterance(where, "", problem=problem), where)


def named_fields(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return `text`, `speaker` and `language` of a row by the names of its fields.

    Raises ValueError for a value that is not a string. A speaker may be a number.
    """
    speaker = value_of(row, SPEAKERS)
    if isinstance(speaker, int) and not isinstance(speaker, bool):
        speaker = str(speaker)
    fields = {"text": value_of(row, TEXTS), "speaker": speaker, "language": value_of(row, LANGUAGES)}
    return checked_texts(fields)


def value_of(row: Mapping[str, Any], names: Iterable[str]) -> Any:
    """Return the first of some fields that a row has, or None."""
    return next((row[name] for name in names if row.get(name) is not None), None)


def checked_texts(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return text fields with single spaces in `speaker`. Raises ValueError for a value that is not a string."""
    for field, text in fields.items():
        if not isinstance(text, str | None):
            raise ValueError(f"its `{field}` is {text!r}: give a string, or leave it out")
        if text and len(text) > MAX_DOCUMENT_BYTES:
            raise ValueError(f"its `{field}` is {TOO_LONG}")
    return {**fields, "speaker": " ".join((fields.get("speaker") or "").split()) or None}


def with_lost(entries: Iterable[Entry | Lost], total_bytes: int) -> Iterator[Entry]:
    """Yield entries, and at the end bad entries in place of lost parts.

    Their number is estimated from the size of the parts and of the files, `total_bytes`, so that a job with much lost
    data fails.
    """
    lost, num_found = [], 0
    for entry in entries:
        if isinstance(entry, Lost):
            lost.append(entry)
        else:
            num_found += 1
            yield entry
    num_bytes = total_bytes - sum(part.num_bytes for part in lost)
    for part in lost:
        number = max(1, min(MAX_LOST, part.num_bytes * num_found // max(1, num_bytes)))
        for i in range(number):
            where = f"{part.path} damage" if number == 1 else f"{part.path} damage, utterance {i + 1} of about {number}"
            yield bad(where, f"{part.path.name} cannot be read completely: {part.reason}")


def audio_path(folder: Path, path: str) -> str:
    """Return the absolute path of an audio file that a manifest in `folder` names."""
    return os.path.abspath(folder / path)
