"""Word times of recordings from a forced aligner, matched to transcripts.

    alignments = Alignments.of(Path("words.jsonl"))
    timed = alignments.timed(utterance)     # of an utterance whose id is in alignments.offsets
    timed.text[: timed.ends[0]]             # the first word, spoken from timed.seconds[0, 0] to timed.seconds[0, 1]

The file is JSONL, one utterance per line, with times in seconds from the start of its audio:

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

from weft.errors import UserError
from weft.files import ContentId, Digest, state_of
from weft.records import Utterance
from weft.text.inputs import BOM, id_of, parse_json

_UNKNOWN = re.compile(r"[<\[].*[>\]]")  # <unk>, [noise]: a word outside the aligner's vocabulary


@dataclass(frozen=True)
class TimedText:
    """A transcript, the offsets in it where its N words end, and their times (N, 2) in seconds, NaN where unknown."""

    text: str
    ends: np.ndarray
    seconds: np.ndarray


@dataclass(frozen=True)
class Alignments:
    """A file of word times that is read one utterance at a time. `offsets` are the byte offsets of lines by id."""

    path: Path
    offsets: Mapping[str, int]
    identity: str

    @classmethod
    def of(cls, path: Path) -> Alignments:
        """Index a file. Raises UserError for a missing file and, with its number, for a line in another format."""
        if not path.is_file():
            raise UserError(f"{path} is not a file: give a .jsonl file of words with their times")
        offsets: dict[str, int] = {}
        total, offset, state = hashlib.sha256(), 0, state_of(path)
        with path.open("rb") as f:
            for number, line in enumerate(f, 1):
                if line.removeprefix(BOM).strip():
                    name = _row(line, f"{path} line {number}")["id"]
                    if name in offsets:
                        raise UserError(f"{path} line {number}: id {name!r} occurs twice: make ids unique")
                    offsets[name] = offset
                total.update(line)
                offset += len(line)
        digest = Digest(total.hexdigest(), state)
        return cls(path, offsets, ContentId(f"sha256:{digest[:16]}", {path: digest}))

    def timed(self, utterance: Utterance) -> TimedText:
        """Return the transcript of an utterance with the times of its words. The default transcript is the words.

        Raises UserError for times that are out of order and for words that differ from those of the transcript.
        """
        with self.path.open("rb") as f:
            f.seek(self.offsets[utterance.id])
            rows = _row(f.readline(), str(self.path))["words"]
        timed_words = [(row["word"], _times(row)) for row in rows if _chars(row["word"])]
        if not timed_words:
            raise UserError("it has no words: remove it from the alignments")
        words, seconds = [word for word, _ in timed_words], np.array([times for _, times in timed_words], np.float64)
        known = seconds[~np.isnan(seconds[:, 0])]
        if np.any(known[:, 1] < known[:, 0]) or np.any(np.diff(known, axis=0) < 0) or np.any(known < 0):
            raise UserError("its word times are out of order: give `start` and `end` in seconds, in order")
        text = (utterance.text or " ".join(words)).strip()
        return TimedText(text, _word_ends(text, words), seconds)


def _word_ends(text: str, words: Sequence[str]) -> np.ndarray:
    """Return the offset in `text` where each of the `words` ends, with the punctuation that follows it.

    Only letters and digits are compared, without case and accents: punctuation and word boundaries may differ. A word
    outside the aligner's vocabulary matches any text between two spaces.
    """
    chars, offsets = "", []  # of the text, with a space between words, and their offsets in the text
    for token in re.finditer(r"\S+", text):
        spelled = [(char, i) for i, c in enumerate(token[0], token.start()) for char in _chars(c)]
        if spelled and chars:
            spelled.insert(0, (" ", token.start()))
        chars += "".join(char for char, _ in spelled)
        offsets += [offset for _, offset in spelled]
    unknown = "(?<![^ ])([^ ]+)(?![^ ])"
    pattern = " ?".join(unknown if _UNKNOWN.fullmatch(w) else f"({' ?'.join(_chars(w))})" for w in words)
    if not (found := re.fullmatch(pattern, chars)):
        raise UserError("its aligned words differ from its transcript: align it again")
    return np.array([_after_punctuation(text, offsets[found.end(i + 1) - 1] + 1) for i in range(len(words))])


def _after_punctuation(text: str, offset: int) -> int:
    while offset < len(text) and not text[offset].isspace() and not _chars(text[offset]):
        offset += 1
    return offset


def _chars(text: str) -> str:
    """Return the letters and digits of a text, without case and accents."""
    return "".join(c for c in unicodedata.normalize("NFKD", text).casefold() if c.isalnum())


def _row(line: bytes, where: str) -> dict[str, Any]:
    """Parse a line. Raises UserError for another format."""
    try:
        row = parse_json(line)
        row["id"] = id_of(row["id"])
        has_strings = row["id"] is not None and all(isinstance(word["word"], str) for word in row["words"])
    except (ValueError, LookupError, TypeError) as e:
        raise UserError(f'{where} is not {{"id": ..., "words": [{{"word", "start", "end"}}, ...]}}: fix it') from e
    if not has_strings:
        raise UserError(f"{where} has an `id` or a `word` that is not a string: fix it")
    return row


def _times(word: Mapping[str, Any]) -> tuple[float, float]:
    """Return start and end of a word in seconds, NaN if they are unknown."""
    start, end = word.get("start"), word.get("end")
    if start is None or end is None:
        return float("nan"), float("nan")
    for sec in (start, end):
        if isinstance(sec, bool) or not isinstance(sec, int | float):
            raise UserError(f"the time of word {word['word']!r} is {sec!r}: give seconds, or leave it out")
    return float(start), float(end)
