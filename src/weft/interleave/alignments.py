"""Words of recordings and their times, as an aligner finds them, and where these words stand in a transcript.

    alignments = Alignments.of(Path("words.jsonl"))
    timed = alignments.timed(utterance)     # of an utterance of a manifest, where its id is in alignments.places
    timed.text[: timed.ends[0]]             # its first word, spoken from timed.seconds[0, 0] to timed.seconds[0, 1]

The file is JSONL, one utterance a line, with seconds from the start of its sound:

    {"id": "u1", "words": [{"word": "the", "start": 0.14, "end": 0.29}, {"word": "war", "start": 0.29, "end": 0.53}]}
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from weft.errors import UserError
from weft.records import Utterance

_UNKNOWN = re.compile(r"[<\[].*[>\]]")  # <unk>, [noise]: what aligners write for a word that they do not know


@dataclass(frozen=True)
class Timed:
    """A transcript, where its N aligned words end in it, and their seconds (N, 2), NaN for a word without times."""

    text: str
    ends: np.ndarray
    seconds: np.ndarray


@dataclass(frozen=True)
class Alignments:
    """A file of aligned words, read an utterance at a time. `places` are the bytes at which the lines of ids begin."""

    path: Path
    places: Mapping[str, int]
    identity: str

    @classmethod
    def of(cls, path: Path) -> Alignments:
        """Raises UserError, naming the line, for a file that is missing, or not alignments by its lines' shape."""
        if not path.is_file():
            raise UserError(f"{path} is no file: give a .jsonl of utterances' words and their times")
        places: dict[str, int] = {}
        total, place = hashlib.sha256(), 0
        with path.open("rb") as f:
            for number, line in enumerate(f, 1):
                if line.strip():
                    name = _row(line, f"{path} line {number}")["id"]
                    if name in places:
                        raise UserError(f"{path} line {number}: id {name!r} occurs twice: make ids unique")
                    places[name] = place
                total.update(line)
                place += len(line)
        return cls(path, places, total.hexdigest()[:16])

    def timed(self, utterance: Utterance) -> Timed:
        """The transcript of an utterance that is in `places`, with its words' times; without one, its words make it.

        Raises UserError for times that cannot be, and for words that are not those of the transcript.
        """
        with self.path.open("rb") as f:
            f.seek(self.places[utterance.id])
            rows = _row(f.readline(), str(self.path))["words"]
        words = [(row["word"], _times(row)) for row in rows if _letters(row["word"])]
        if not words:
            raise UserError("it has no words: leave it out of the alignments")
        said, seconds = [word for word, _ in words], np.array([times for _, times in words], np.float64)
        known = seconds[~np.isnan(seconds[:, 0])]
        if np.any(known[:, 1] < known[:, 0]) or np.any(np.diff(known, axis=0) < 0) or np.any(known < 0):
            raise UserError("its words' times do not go on: give `start` and `end` in seconds, in order")
        text = (utterance.text or " ".join(said)).strip()
        return Timed(text, _ends_in(text, said), seconds)


def _ends_in(text: str, words: Sequence[str]) -> np.ndarray:
    """Where each of the `words` ends in a text that they spell, with the punctuation behind it.

    Only letters and digits are compared, without case and accents, so that punctuation and where words are parted may
    differ. A word that the aligner did not know stands for what it may be between two white spaces of the text.
    """
    letters, places = "", []  # those of the text, with a space between its words, and where each of them stands
    for token in re.finditer(r"\S+", text):
        spelled = [(letter, i) for i, c in enumerate(token[0], token.start()) for letter in _letters(c)]
        if spelled and letters:
            spelled.insert(0, (" ", token.start()))
        letters += "".join(letter for letter, _ in spelled)
        places += [place for _, place in spelled]
    unknown = "(?<![^ ])([^ ]+)(?![^ ])"
    pattern = " ?".join(unknown if _UNKNOWN.fullmatch(w) else f"({' ?'.join(_letters(w))})" for w in words)
    if not (found := re.fullmatch(pattern, letters)):
        raise UserError("its aligned words are not those of its transcript: align them again")
    return np.array([_behind(text, places[found.end(i + 1) - 1] + 1) for i in range(len(words))])


def _behind(text: str, place: int) -> int:
    """The end of the punctuation at a place of a text."""
    while place < len(text) and not text[place].isspace() and not _letters(text[place]):
        place += 1
    return place


def _letters(text: str) -> str:
    """The letters and digits of a text, without case and accents."""
    return "".join(c for c in unicodedata.normalize("NFKD", text).casefold() if c.isalnum())


def _row(line: bytes, where: str) -> dict[str, Any]:
    """A line of alignments. Raises UserError for one of another shape."""
    try:
        row = orjson.loads(line)
        shaped = isinstance(row["id"], str) and all(isinstance(word["word"], str) for word in row["words"])
    except (orjson.JSONDecodeError, LookupError, TypeError) as e:
        raise UserError(f'{where} is not {{"id": ..., "words": [{{"word", "start", "end"}}, ...]}}: mend it') from e
    if not shaped:
        raise UserError(f"{where} has an `id` or a `word` that is no string: mend it")
    return row


def _times(word: Mapping[str, Any]) -> tuple[float, float]:
    """The seconds of a word, NaN where they are not known."""
    start, end = word.get("start"), word.get("end")
    if start is None or end is None:
        return float("nan"), float("nan")
    for sec in (start, end):
        if isinstance(sec, bool) or not isinstance(sec, int | float):
            raise UserError(f"word {word['word']!r} has {sec!r} for a time: give seconds, or leave it out")
    return float(start), float(end)
