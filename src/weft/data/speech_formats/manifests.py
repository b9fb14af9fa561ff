"""JSON Lines with one utterance per line, as weft, NeMo and Lhotse write them.

`id` and `audio`, a path relative to the manifest, are required; `text`, `speaker`, `language`, `seconds` and `source`
are optional. `offset` and `duration`, in seconds, select a part of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from weft import artifacts
from weft.data.speech_formats import lhotse
from weft.data.speech_formats.entries import Entry, Lost, audio_path, bad, checked_texts
from weft.data.speech_formats.json_lines import SUFFIXES, rows_of
from weft.errors import UserError
from weft.files import json_object
from weft.records import Utterance
from weft.sound_files.address import with_time_range
from weft.text.inputs import finite, id_of

__all__ = ["MANIFEST_NAME", "SUFFIXES", "read"]
MANIFEST_NAME = "manifest.jsonl"
_TEXTS = ("text", "speaker", "language", "source")
_ARTIFACT = b'{\n "kind": "'  # the beginning of a manifest.json that weft writes


def read(path: Path, name: str) -> Iterator[Entry | Lost]:
    """Yield the utterances of a manifest. Their ids do not depend on its `name`.

    Raises UserError for an empty manifest, and for an artifact whose files differ in name or size from its
    manifest.json, which is damaged or has been edited.
    """
    if path.name == MANIFEST_NAME and _is_artifact(path.parent):
        artifacts.read(path.parent)
    utterances_of: Callable[[Mapping[str, Any]], list[Utterance]] | None = None
    is_empty = True
    for where, row in rows_of(path):
        is_empty = False
        if isinstance(row, Entry | Lost):
            yield row
        elif not isinstance(row, Mapping):
            yield bad(where, "it is not a JSON object: write one per line, with `id` and `audio`")
        else:
            if utterances_of is None:
                utterances_of = lhotse.reader_of(path, row) if lhotse.is_lhotse(row) else _reader(path.parent)
            try:
                for utterance in utterances_of(row):
                    yield Entry(utterance, where)
            except ValueError as e:
                yield bad(where, str(e))
    if is_empty:
        raise UserError(f"{path} is empty: write one JSON object per line, with `id` and `audio`")


def _is_artifact(folder: Path) -> bool:
    """Whether a directory has a manifest.json of weft, intact, edited or truncated. Other files may have that name."""
    path = folder / artifacts.MANIFEST
    if not path.is_file():
        return False
    content = path.read_bytes()
    try:
        return {"kind", "fingerprint"} <= json_object(content, path.name).keys()
    except ValueError:
        return content.startswith(_ARTIFACT) or _ARTIFACT.startswith(content)


def _reader(folder: Path) -> Callable[[Mapping[str, Any]], list[Utterance]]:
    return lambda row: [_utterance(row, folder)]


def _utterance(row: Mapping[str, Any], folder: Path) -> Utterance:
    """Return the utterance of a line. Raises ValueError with the problem of an invalid one."""
    name, audio = id_of(row.get("id")), row.get("audio")
    if name is None:
        raise ValueError("it lacks `id`: give a string that is not empty")
    if not isinstance(audio, str) or not audio:
        raise ValueError("it lacks `audio`: give a string that is not empty")
    texts = checked_texts({field: row.get(field) for field in _TEXTS})
    seconds, offset, duration = (_number(row, field) for field in ("seconds", "offset", "duration"))
    audio = audio_path(folder, audio)
    if offset is not None:  # a part of a longer recording, as NeMo's manifests have them
        audio = with_time_range(audio, offset, None if duration is None else offset + duration)
    return Utterance(name, audio, seconds=duration if seconds is None else seconds, **texts)


def _number(row: Mapping[str, Any], name: str) -> float | None:
    value = row.get(name)
    if value is None:
        return None
    number = finite(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    if number is None or number < 0:
        raise ValueError(f"its `{name}` is {value!r}: give a number that is not negative, or leave it out")
    return number
