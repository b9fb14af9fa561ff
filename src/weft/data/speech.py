"""Speech corpora: manifests, audio files and directories of either.

    utterances = read_manifest("speech/manifest.jsonl")
    identity = speech_id(utterances)                 # changes with the contents, not with the location

A manifest is JSONL with one utterance per line: `id`, `audio` (a path relative to the manifest) and optionally `text`,
`speaker`, `language`, `seconds` and `source`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import orjson

from weft import progress
from weft.audio import file_of, num_samples
from weft.data.skipped import Skipped
from weft.errors import UserError
from weft.files import content_id, file_digests
from weft.records import Utterance

MANIFEST_NAME = "manifest.jsonl"
AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".aif", ".aiff", ".au", ".caf", ".w64")
_OPTIONAL = ("text", "speaker", "language", "source")


def read_manifest(*paths: str | Path) -> list[Utterance]:
    """Read the utterances of manifests, audio files and directories, with absolute audio paths.

    A directory stands for its manifest.jsonl, or for all audio files below it, with their relative paths without
    suffix as ids. Audio files are not opened. Raises UserError for an invalid line and for an id that occurs twice.
    """
    utterances: list[Utterance] = []
    seen: dict[str, str] = {}
    for path in paths:
        for utterance, where in _utterances(Path(path)):
            if utterance.id in seen:
                raise UserError(f"{where}: id {utterance.id!r} also occurs in {seen[utterance.id]}: make ids unique")
            seen[utterance.id] = where
            utterances.append(utterance)
    return utterances


def speech_id(utterances: Sequence[Utterance]) -> str:
    """Return an identity of utterances: of the fields of the manifest but `seconds`, and the contents of the audio."""
    files = {u.audio: file_of(u.audio) for u in utterances}
    digests = file_digests(files.values())
    rows = []
    for u in utterances:
        file = files[u.audio]
        segment = u.audio[len(str(file)) :]  # "#t=10,20", or nothing
        rows.append((u.id, u.text, u.speaker, u.language, u.source, segment, digests[file]))
    return content_id(rows)


def audio_lengths(utterances: Sequence[Utterance]) -> list[int | str]:
    """Return the number of 16 kHz samples of each utterance, or the error message. Compressed audio is decoded."""

    def length_of(utterance: Utterance) -> int | str:
        problem = Skipped()
        with problem.on_error(utterance.id):
            return num_samples(utterance.audio)
        return problem.bad[0][1]

    found = []
    with ThreadPoolExecutor(8) as threads, progress.bar("lengths", len(utterances)) as advance:
        for length in threads.map(length_of, utterances):
            advance()
            found.append(length)
    return found


def _utterances(path: Path) -> Iterator[tuple[Utterance, str]]:
    """Yield each utterance with the place where it was found."""
    if not path.exists():
        raise UserError(f"{path} does not exist: give a {MANIFEST_NAME}, an audio file, or a directory of them")
    manifest = path / MANIFEST_NAME if path.is_dir() else path
    if manifest.is_file() and manifest.suffix == ".jsonl":
        yield from _lines(manifest)
        return
    found = sorted(path.rglob("*")) if path.is_dir() else [path]
    files = [p for p in found if p.suffix.lower() in AUDIO_SUFFIXES and p.is_file()]
    if not files:
        problem = f"contains neither {MANIFEST_NAME} nor" if path.is_dir() else "is neither a .jsonl manifest nor"
        raise UserError(f"{path} {problem} audio: give a manifest or audio files ({' '.join(AUDIO_SUFFIXES)})")
    root = path if path.is_dir() else path.parent
    for file in files:
        yield Utterance(file.relative_to(root).with_suffix("").as_posix(), os.path.abspath(file)), str(file)


def _lines(manifest: Path) -> Iterator[tuple[Utterance, str]]:
    is_empty = True
    with manifest.open("rb") as f:
        for number, line in enumerate(f, 1):
            if line := line.removeprefix(b"\xef\xbb\xbf").strip():
                is_empty = False
                where = f"{manifest} line {number}"
                yield _utterance(line, manifest.parent, where), where
    if is_empty:
        raise UserError(f"{manifest} is empty: write one JSON object per line, with `id` and `audio`")


def _utterance(line: bytes, folder: Path, where: str) -> Utterance:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as e:
        raise UserError(f"{where} is not valid JSON ({e}): write one object per line, with `id` and `audio`") from e
    if not isinstance(row, Mapping):
        raise UserError(f"{where} is not a JSON object: write one per line, with `id` and `audio`")
    for name in ("id", "audio"):
        if not isinstance(row.get(name), str) or not row[name]:
            raise UserError(f"{where} lacks `{name}`: give a string that is not empty")
    texts = {name: row.get(name) for name in _OPTIONAL}
    for name, text in texts.items():
        if not isinstance(text, str | None):
            raise UserError(f"{where}: `{name}` is {text!r}: give a string, or leave it out")
    texts["speaker"] = " ".join((texts["speaker"] or "").split()) or None
    seconds = row.get("seconds")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float | None) or (seconds or 0) < 0:
        raise UserError(f"{where}: `seconds` is {seconds!r}: give a number that is not negative, or leave it out")
    seconds = None if seconds is None else float(seconds)
    return Utterance(row["id"], os.path.abspath(folder / row["audio"]), seconds=seconds, **texts)
