"""Speech in Lhotse manifests: cuts, or supervisions with the recordings in a file beside them.

    is_lhotse(row)                                      # of the first line of a file
    read_row = reader_of(path, row); read_row(row)      # utterances of each line

The recordings of `x_supervisions_y.jsonl.gz` are in `x_recordings_y.jsonl.gz`. A supervision of a cut is an utterance.
Sources that are commands, URLs or bytes are not read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from weft.data.speech_formats.entries import audio_path, checked_texts
from weft.data.speech_formats.json_lines import rows_of
from weft.errors import UserError
from weft.records import Utterance
from weft.sound_files.address import with_time_range
from weft.text.inputs import finite, id_of

NAMES = ("cuts", "supervisions", "recordings")
_Rows = Mapping[str, Any]
_TOLERANCE_SEC = 1e-3  # by which the end of a cut may differ from that of the recording


def is_lhotse(row: _Rows) -> bool:
    """Whether a row is a cut, a supervision or a recording."""
    is_cut = isinstance(row.get("type"), str) and row["type"].endswith("Cut")
    return is_cut or "recording_id" in row or isinstance(row.get("sources"), list)


def reader_of(path: Path, first: _Rows) -> Callable[[_Rows], list[Utterance]]:
    """Return a function from a row of the file to its utterances, which raises ValueError for a bad row."""
    if "recording_id" in first and "recording" not in first and "type" not in first:
        recordings = _recordings_of(path)
        return lambda row: [_supervision(row, recordings, path.parent)]
    if "sources" in first:
        return lambda row: [Utterance(_id(row), _audio(row, path.parent, 0.0, None))]
    return lambda row: _cut(row, path.parent)


def _recordings_of(path: Path) -> dict[str, _Rows]:
    """Return the recordings of supervisions, by their ids."""
    file = path.with_name(path.name.replace("supervisions", "recordings"))
    if file == path or not file.is_file():
        raise UserError(f"{path} has Lhotse supervisions without recordings: add {file.name}, or give cuts")
    found = (row for _, row in rows_of(file) if isinstance(row, Mapping))
    return {name: row for row in found if (name := id_of(row.get("id")))}


def _supervision(row: _Rows, recordings: Mapping[str, _Rows], folder: Path) -> Utterance:
    recording = recordings.get(id_of(row.get("recording_id")) or "")
    if recording is None:
        raise ValueError(f"its recording {row.get('recording_id')!r} is not in the file with recordings: add it")
    audio = _audio(recording, folder, _number(row, "start"), _number(row, "duration"), row.get("channel"))
    return Utterance(_id(row), audio, **_texts(row), source=id_of(row.get("recording_id")))


def _cut(row: _Rows, folder: Path) -> list[Utterance]:
    """Return an utterance for each supervision of a cut, or one for a cut without any."""
    recording = row.get("recording")
    if row.get("type") not in (None, "MonoCut", "MultiCut") or not isinstance(recording, Mapping):
        raise ValueError(f"it is a {row.get('type')} without one recording: save its audio with `save_audios`")
    start, duration = _number(row, "start"), _number(row, "duration")
    supervisions = row.get("supervisions") or []
    if not isinstance(supervisions, list) or not all(isinstance(s, Mapping) for s in supervisions):
        raise ValueError("its `supervisions` are not a list of objects")
    if not supervisions:
        return [Utterance(_id(row), _audio(recording, folder, start, duration, row.get("channel")))]
    found = []
    for supervision in supervisions:
        begin = _number(supervision, "start", least=-math.inf)
        first, last = max(0.0, begin), min(duration, begin + _number(supervision, "duration"))
        if last <= first:
            raise ValueError(f"its supervision {supervision.get('id')!r} is outside of it")
        audio = _audio(recording, folder, start + first, last - first, row.get("channel"))
        name = _id(supervision) if len(supervisions) > 1 else _id(row)
        found.append(Utterance(name, audio, **_texts(supervision), source=id_of(recording.get("id"))))
    return found


def _audio(recording: _Rows, folder: Path, start_sec: float, duration_sec: float | None, channel: object = None) -> str:
    """Return the address of a part of a recording."""
    sources = recording.get("sources")
    if not isinstance(sources, list) or len(sources) != 1 or not isinstance(sources[0], Mapping):
        raise ValueError("its recording has not one source: save one file per recording")
    kind, source = sources[0].get("type"), sources[0].get("source")
    if kind != "file" or not isinstance(source, str) or not source:
        raise ValueError(f"the source of its recording is a {kind}, which is not read: save it as a file")
    if recording.get("transforms"):
        raise ValueError("its recording has transforms: save its audio with `save_audios`")
    channels = sources[0].get("channels")
    if isinstance(channel, int) and isinstance(channels, list) and len(channels) > 1:
        raise ValueError(f"it is channel {channel} of {len(channels)}: save each channel as a file")
    audio, whole_sec = audio_path(folder, source), _number(recording, "duration")
    if duration_sec is None or (not start_sec and abs(duration_sec - whole_sec) < _TOLERANCE_SEC):
        return audio
    stop_sec = start_sec + duration_sec
    return with_time_range(audio, start_sec, None if abs(stop_sec - whole_sec) < _TOLERANCE_SEC else stop_sec)


def _texts(row: _Rows) -> dict[str, Any]:
    return checked_texts({field: row.get(field) for field in ("text", "speaker", "language")})


def _id(row: _Rows) -> str:
    if (name := id_of(row.get("id"))) is None:
        raise ValueError("it lacks `id`: give a string that is not empty")
    return name


def _number(row: _Rows, field: str, least: float = 0.0) -> float:
    value = row.get(field)
    number = finite(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    if number is None or number < least:
        raise ValueError(f"its `{field}` is {value!r}: give seconds")
    return number
