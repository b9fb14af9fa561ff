"""What users bring: manifests of speech, and text corpora.

    utterances = read_manifest("speech/manifest.jsonl")      # or a folder, or sound files
    for document in read_texts("books/", "web.jsonl.zst"): ...
    corpus = TextCorpus.of("books/"); corpus.read(share(corpus.size_bytes, task, num_tasks), skipped)

A manifest is JSONL, one utterance a line: `id`, `audio` (a path relative to the manifest), and where known `text`,
`speaker`, `language`, `seconds`, `source`. A text corpus is files and folders of .txt (cut between paragraphs into
documents of about 700 words), .jsonl, .jsonl.gz, .jsonl.zst, .parquet and .arrow (a field `text`, perhaps `id`).
"""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import orjson

from weft.data.files import File, files_under, identity_of, path_of
from weft.data.formats import Piece, TextDocument, read, suffix_of
from weft.data.skipped import Skipped
from weft.errors import UserError
from weft.records import Utterance

MANIFEST_NAME = "manifest.jsonl"
SOUND_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".aif", ".aiff", ".au", ".caf", ".w64")
_OPTIONAL = ("text", "speaker", "language", "source")


def read_manifest(*paths: str | Path) -> list[Utterance]:
    """The utterances of manifests, sound files, and folders of either, with `audio` made absolute.

    A folder is read by its manifest.jsonl, or else as all the sound files under it, whose ids are their paths without
    the suffix. The sound files themselves are not opened. Raises UserError naming file and line for a line that is not
    an utterance, and for ids that occur twice.
    """
    utterances: list[Utterance] = []
    seen: dict[str, str] = {}
    for path in paths:
        for utterance, where in _utterances(Path(path)):
            if utterance.id in seen:
                raise UserError(f"{where}: id {utterance.id!r} is also at {seen[utterance.id]}: make ids unique")
            seen[utterance.id] = where
            utterances.append(utterance)
    return utterances


def _utterances(path: Path) -> Iterator[tuple[Utterance, str]]:
    """Each utterance with the place it was found."""
    if path.is_dir():
        manifest = path / MANIFEST_NAME
        return _lines(manifest) if manifest.is_file() else _folder(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist: give a {MANIFEST_NAME}, a sound file, or a folder of them")
    return _lines(path) if path.suffix == ".jsonl" else _sound_files([path], path.parent)


def _folder(folder: Path) -> Iterator[tuple[Utterance, str]]:
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SOUND_SUFFIXES and p.is_file())
    if not files:
        raise UserError(f"{folder} has neither {MANIFEST_NAME} nor sound files ({' '.join(SOUND_SUFFIXES)})")
    return _sound_files(files, folder)


def _sound_files(files: list[Path], root: Path) -> Iterator[tuple[Utterance, str]]:
    for file in files:
        if file.suffix.lower() not in SOUND_SUFFIXES:
            raise UserError(f"{file} is neither a .jsonl manifest nor a sound file ({' '.join(SOUND_SUFFIXES)})")
        yield Utterance(file.relative_to(root).with_suffix("").as_posix(), os.path.abspath(file)), str(file)


def _lines(manifest: Path) -> Iterator[tuple[Utterance, str]]:
    empty = True
    with manifest.open("rb") as f:
        for number, line in enumerate(f, 1):
            if line := line.removeprefix(b"\xef\xbb\xbf").strip():
                empty = False
                where = f"{manifest} line {number}"
                yield _utterance(line, manifest.parent, where), where
    if empty:
        raise UserError(f"{manifest} is empty: write one JSON object a line, with `id` and `audio`")


def _utterance(line: bytes, folder: Path, where: str) -> Utterance:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as e:
        raise UserError(f"{where} is not JSON ({e}): write one JSON object a line, with `id` and `audio`") from e
    if not isinstance(row, Mapping):
        raise UserError(f"{where} is not a JSON object: write one a line, with `id` and `audio`")
    for name in ("id", "audio"):
        if not isinstance(row.get(name), str) or not row[name]:
            raise UserError(f"{where} lacks `{name}`: give it as a string that is not empty")
    return Utterance(
        id=row["id"], audio=os.path.abspath(folder / row["audio"]), seconds=_seconds(row, where), **_texts(row, where)
    )


def _texts(row: Mapping[str, Any], where: str) -> dict[str, str | None]:
    for name in _OPTIONAL:
        if not isinstance(row.get(name), str | None):
            raise UserError(f"{where}: `{name}` is {row[name]!r}: give a string, or leave it out")
    told = {name: row.get(name) for name in _OPTIONAL}
    return told | {"speaker": " ".join((told["speaker"] or "").split()) or None}


def _seconds(row: Mapping[str, Any], where: str) -> float | None:
    seconds = row.get("seconds")
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds < 0:
        raise UserError(f"{where}: `seconds` is {seconds!r}: give a number that is not negative, or leave it out")
    return float(seconds)


@dataclass(frozen=True)
class TextCorpus:
    """The files of a corpus, laid end to end: any range of their bytes is a share that can be read on its own."""

    files: tuple[Piece, ...]
    found: tuple[File, ...]
    """The same files, as they were found."""

    @classmethod
    def of(cls, *paths: str | Path) -> TextCorpus:
        """The text files among and under `paths`, in order. Raises UserError where there are none."""
        found = [file for path in paths for file in _text_files(path_of(path))]
        if twice := next((path for path, n in Counter(file.path for file in found).items() if n > 1), None):
            raise UserError(f"{twice} is given twice: give each text once")
        folders = [file.path.split("/")[:-1] for file in found]
        root = "/".join([*os.path.commonprefix(folders), ""])  # noqa: RUF071 - of lists, part by part
        found = [file for file in found if file.size_bytes]
        if not found:
            raise UserError(f"{', '.join(map(str, paths))}: every text file is empty")
        files = [Piece(f.path, f.path.removeprefix(root), 0, f.size_bytes, f.size_bytes) for f in found]
        return cls(tuple(files), tuple(found))

    @property
    def size_bytes(self) -> int:
        return self._ends[-1]

    @cached_property
    def _ends(self) -> list[int]:
        """Where each file ends in all of them laid end to end."""
        return list(accumulate(file.size_bytes for file in self.files))

    @property
    def identity(self) -> str:
        """Sixteen hex digits that change when the names or contents of the files do (see `files.identity_of`)."""
        told = [(f.name, f.size_bytes, identity_of(g)) for f, g in zip(self.files, self.found, strict=True)]
        return hashlib.sha256(repr(told).encode()).hexdigest()[:16]

    def read(self, share: range, skipped: Skipped) -> Iterator[TextDocument]:
        """The documents that begin in the bytes `share` of all files; bad ones go to `skipped`.

        Ranges that tile the corpus give each document once. Ids are the corpus's own, or `file:place`.
        """
        for i in range(bisect_right(self._ends, share.start), len(self.files)):
            file, first = self.files[i], self._ends[i] - self.files[i].size_bytes
            if first >= share.stop:
                return
            start, stop = max(share.start - first, 0), min(share.stop - first, file.size_bytes)
            yield from read(Piece(file.path, file.name, start, stop, file.size_bytes), skipped)


def read_texts(*paths: str | Path, max_bad_share: float = 0.01) -> Iterator[TextDocument]:
    """All documents of a corpus, in order. Raises UserError at the end where over `max_bad_share` of them are bad."""
    corpus, skipped = TextCorpus.of(*paths), Skipped()
    yield from corpus.read(range(corpus.size_bytes), skipped)
    skipped.check(max_bad_share)


def _text_files(path: str) -> list[File]:
    files = files_under(path, _is_text)
    if not files:
        what = "does not exist" if files is None else "holds no text"
        raise UserError(f"{path} {what}: give .txt, .jsonl (.gz, .zst), .parquet or .arrow files, or folders of them")
    return files


def _is_text(name: str) -> bool:
    """Whether a file is read; in a folder that `datasets` saved, not what it cached there later."""
    return suffix_of(name) is not None and not (name.startswith("cache-") and name.endswith(".arrow"))
