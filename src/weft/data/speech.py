"""Speech corpora: manifests, audio files and directories of either.

    utterances = read_manifest("speech/manifest.jsonl")
    identity = speech_id(utterances)                 # changes with the contents, not with the location

A manifest is JSONL with one utterance per line: `id`, `audio` (a path relative to the manifest) and optionally `text`,
`speaker`, `language`, `seconds` and `source`. `offset` and `duration`, in seconds, select a part of the file.

An invalid line, an id that occurs twice, or a link that leaves its directory is an utterance with a `problem`, so that
commands skip, count and list it like an unreadable file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from weft import artifacts, progress
from weft.audio import SAMPLE_RATE_HZ, load, num_samples
from weft.data.audio_folders import AUDIO_SUFFIXES, audio_files
from weft.data.lines import TOO_LONG, lines_of
from weft.data.skipped import Skipped
from weft.errors import UserError
from weft.files import content_id, file_digests, json_object
from weft.records import Utterance
from weft.sound_files.address import file_of, with_time_range
from weft.text.inputs import BOM, finite, id_of, parse_json

MANIFEST_NAME = "manifest.jsonl"
_TEXTS = ("text", "speaker", "language", "source")
_ARTIFACT = b'{\n "kind": "'  # the beginning of a manifest.json that weft writes


def read_manifest(*paths: str | Path) -> list[Utterance]:
    """Read the utterances of manifests, audio files and directories, with absolute audio paths.

    A directory stands for its manifest.jsonl, or for all audio files below it, with their relative paths without
    suffix as ids. Audio files are not opened. Raises UserError for a path without any utterance, and for an artifact
    whose files differ in name or size from its manifest.json, which is damaged or has been edited.
    """
    utterances: list[Utterance] = []
    seen: dict[str, str] = {}
    for path in paths:
        for utterance, where in _utterances(Path(path)):
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


def _utterances(path: Path) -> Iterator[tuple[Utterance, str]]:
    """Yield each utterance with the place where it was found."""
    if not path.exists():
        raise UserError(f"{path} does not exist: give a {MANIFEST_NAME}, an audio file, or a directory of them")
    manifest = path / MANIFEST_NAME if path.is_dir() else path
    if manifest.is_file() and manifest.suffix == ".jsonl":
        if manifest.name == MANIFEST_NAME and _is_artifact(manifest.parent):
            artifacts.read(manifest.parent)
        yield from _lines(manifest)
        return
    files: list[tuple[Path, str | None]] = [(path, None)] if path.suffix.lower() in AUDIO_SUFFIXES else []
    root = path.parent
    if path.is_dir():
        root, files = path, list(audio_files(path))
    if not files:
        found = f"contains neither {MANIFEST_NAME} nor" if path.is_dir() else "is neither a .jsonl manifest nor"
        raise UserError(f"{path} {found} audio: give a manifest or audio files ({' '.join(AUDIO_SUFFIXES)})")
    for file, problem in files:
        name = id_of(file.relative_to(root).with_suffix("").as_posix())
        assert name is not None
        audio = os.path.abspath(file) if problem is None else ""
        yield Utterance(name, audio, problem=problem), str(file)


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


def _lines(manifest: Path) -> Iterator[tuple[Utterance, str]]:
    is_empty = True
    with manifest.open("rb") as f:
        for number, line in enumerate(lines_of(f), 1):
            where = f"{manifest} line {number}"
            if line.content is None:
                is_empty = False
                yield Utterance(where, "", problem=TOO_LONG), where
                continue
            if not (content := line.content.removeprefix(BOM).strip()):
                continue
            is_empty = False
            try:
                yield _utterance(content, manifest.parent), where
            except ValueError as e:
                yield Utterance(where, "", problem=str(e)), where
    if is_empty:
        raise UserError(f"{manifest} is empty: write one JSON object per line, with `id` and `audio`")


def _utterance(line: bytes, folder: Path) -> Utterance:
    """Return the utterance of a line. Raises ValueError with the problem of an invalid one."""
    row = parse_json(line)
    if not isinstance(row, Mapping):
        raise ValueError("it is not a JSON object: write one per line, with `id` and `audio`")
    name, audio = id_of(row.get("id")), row.get("audio")
    if name is None:
        raise ValueError("it lacks `id`: give a string that is not empty")
    if not isinstance(audio, str) or not audio:
        raise ValueError("it lacks `audio`: give a string that is not empty")
    texts = {field: row.get(field) for field in _TEXTS}
    for field, text in texts.items():
        if not isinstance(text, str | None):
            raise ValueError(f"its `{field}` is {text!r}: give a string, or leave it out")
    texts["speaker"] = " ".join((texts["speaker"] or "").split()) or None
    seconds, offset, duration = (_number(row, field) for field in ("seconds", "offset", "duration"))
    audio = os.path.abspath(folder / audio)
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
