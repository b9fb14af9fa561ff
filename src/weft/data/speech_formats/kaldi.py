"""Speech in Kaldi data directories: wav.scp, and optionally text, utt2spk, utt2lang and segments.

A line of wav.scp with a command (`sph2pipe ... |`) is a bad entry, because data never run programs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from weft.data.lines import TOO_LONG, lines_of
from weft.data.speech_formats.entries import Entry, audio_path, bad, checked_texts
from weft.errors import UserError
from weft.records import Utterance
from weft.sound_files.address import with_time_range
from weft.text.inputs import decode

MARK = "wav.scp"
_FIELDS = {"text": "text", "speaker": "utt2spk", "language": "utt2lang"}
_ARCHIVE = re.compile(r".+:\d+(\[.*\])?")


def read(folder: Path) -> Iterator[Entry]:
    """Yield the utterances of a directory, in the order of segments, or else of wav.scp.

    Paths are relative to the directory. Raises UserError for an empty directory.
    """
    problems: list[Entry] = []
    recordings = _table(folder / MARK, problems)
    if not recordings and not problems:
        raise UserError(f"{folder / MARK} is empty: write one line per recording, with its id and path")
    fields = {field: _table(folder / name, problems) for field, name in _FIELDS.items()}
    has_segments = (folder / "segments").is_file()
    for where, name, rest in _lines(folder / ("segments" if has_segments else MARK), problems):
        texts = {field: table.get(name) for field, table in fields.items()}
        try:
            if has_segments:
                recording, audio = _segment(folder, recordings, rest)
            else:
                recording, audio = None, _audio(folder, rest)
            yield Entry(Utterance(name, audio, **checked_texts({**texts, "source": recording})), where)
        except ValueError as e:
            yield bad(where, str(e))
    yield from {entry.where: entry for entry in problems}.values()  # wav.scp may have been read twice


def _audio(folder: Path, value: str) -> str:
    if value.endswith("|"):
        raise ValueError(f"it is a command ({value}), which is not executed: run it, and give the path of its output")
    if not value or value == "-" or _ARCHIVE.fullmatch(value):
        raise ValueError(f"{value or 'nothing'!r} is not a path: give a sound file (write archives with wav-copy)")
    return audio_path(folder, value)


def _segment(folder: Path, recordings: dict[str, str], value: str) -> tuple[str, str]:
    """Return the recording and the address of a segment: `RECORDING START END`, with END -1 for the end."""
    parts = value.split()
    try:
        recording, start, stop = parts[0], float(parts[1]), float(parts[2])
        is_range = 0 <= start < (float("inf") if stop == -1 else stop) and stop != float("inf")
    except (IndexError, ValueError):
        is_range = False
    if not is_range:
        raise ValueError(f"{value!r} is not a segment: give a recording, and its start and end in seconds")
    if recording not in recordings:
        raise ValueError(f"{MARK} has no recording {recording!r}: add it")
    return recording, with_time_range(_audio(folder, recordings[recording]), start, None if stop == -1 else stop)


def _table(path: Path, problems: list[Entry]) -> dict[str, str]:
    """Return the values of a file by their keys; none if there is no file."""
    return {name: rest for _, name, rest in _lines(path, problems)} if path.is_file() else {}


def _lines(path: Path, problems: list[Entry]) -> Iterator[tuple[str, str, str]]:
    """Yield the place, the first word and the rest of each line; add bad lines to `problems`."""
    with path.open("rb") as f:
        for number, line in enumerate(lines_of(f), 1):
            where = f"{path} line {number}"
            try:
                if line.content is None:
                    raise ValueError(TOO_LONG)
                name, _, rest = decode(line.content).strip().partition(" ")
                if "\t" in name:
                    name, _, rest = decode(line.content).strip().partition("\t")
            except ValueError as e:
                problems.append(bad(where, str(e)))
                continue
            if name:
                yield where, name, rest.strip()
