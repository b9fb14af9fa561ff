"""Word times of recordings from a forced aligner, matched to transcripts.

    alignments = Alignments.of(Path("words.jsonl"))
    timed = alignments.timed(utterance)     # of an utterance whose id is in alignments.places
    timed.text[: timed.ends[0]]             # the first word, spoken from timed.seconds[0, 0] to timed.seconds[0, 1]

The file is JSONL, one utterance per line, with times in seconds from the start of its audio:

    {"id": "u1", "words": [{"word": "the", "start": 0.14, "end": 0.29}, ["war", 0.29, 0.53]]}

or CTM, or a TextGrid named like the utterance, or a directory of such files (`weft.interleave.word_times`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import numpy as np

from weft.data.lines import TOO_LONG, lines_of
from weft.digests import file_digests
from weft.errors import UserError
from weft.files import ContentId, content_id
from weft.interleave.word_times import TimedWord, ctm_word, json_word, words_of_text_grid
from weft.records import Utterance
from weft.text.inputs import BOM, decode, id_of, parse_json
from weft.text.recase import recased

_SUFFIXES = (".jsonl", ".ctm", ".textgrid")
_UNKNOWN = re.compile(r"[<\[].*[>\]]")  # <unk>, [noise]: a word outside the aligner's vocabulary


@dataclass(frozen=True)
class TimedText:
    """A transcript, the offsets in it where its N words end, and their times (N, 2) in seconds, NaN where unknown."""

    text: str
    ends: np.ndarray
    seconds: np.ndarray


@dataclass(frozen=True)
class Alignments:
    """Files of word times that are read one utterance at a time.

    `places` are by id: a file, and the number of the byte at which the lines of the utterance begin.
    """

    places: Mapping[str, tuple[Path, int]]
    identity: str

    @classmethod
    def of(cls, path: Path) -> Alignments:
        """Index a file or a directory. Raises UserError for a missing one and, with its number, for an invalid line."""
        files = (
            sorted(f for f in path.rglob("*") if f.suffix.lower() in _SUFFIXES and f.is_file())
            if path.is_dir()
            else [path]
        )
        if not files or not files[0].is_file() or files[0].suffix.lower() not in _SUFFIXES:
            raise UserError(f"{path} has no word times: give a file or a directory of files, {', '.join(_SUFFIXES)}")
        places: dict[str, tuple[Path, int]] = {}
        digests = file_digests(files)
        for file in files:
            found = [(file.stem, 0, file.name)] if file.suffix.lower() == ".textgrid" else _lines(file)
            for name, offset, where in found:
                if name in places:
                    raise UserError(f"{where}: id {name!r} occurs twice: make ids unique, with their words together")
                places[name] = file, offset
        if path.is_dir():
            identity = content_id([(str(f.relative_to(path)), digests[f]) for f in files], digests)
        else:
            identity = ContentId(f"sha256:{digests[path][:16]}", digests)
        return cls(places, identity)

    def timed(self, utterance: Utterance, recase: bool = False) -> TimedText:
        """Return the transcript of an utterance with the times of its words. The default transcript is the words.

        With `recase`, an upper-case transcript becomes sentence case.

        Raises UserError for times that are out of order and for words that differ from those of the transcript.
        """
        timed_words = [word for word in self._words(utterance.id) if _chars(word.text)]
        if not timed_words:
            raise UserError("it has no words: remove it from the alignments")
        words = [word.text for word in timed_words]
        seconds = np.array([(word.start, word.end) for word in timed_words], np.float64)
        known = seconds[~np.isnan(seconds[:, 0])]
        if np.any(known[:, 1] < known[:, 0]) or np.any(np.diff(known, axis=0) < 0) or np.any(known < 0):
            raise UserError("its word times are out of order: give `start` and `end` in seconds, in order")
        text = (utterance.text or " ".join(words)).strip()
        if recase:
            text = recased(text, utterance.language)
        return TimedText(text, _word_ends(text, words), seconds)

    def _words(self, name: str) -> list[TimedWord]:
        file, offset = self.places[name]
        try:
            if file.suffix.lower() == ".textgrid":
                return words_of_text_grid(file.read_bytes())
            with file.open("rb") as f:
                f.seek(offset)
                if file.suffix.lower() == ".jsonl":
                    return [json_word(word) for word in parse_json(f.readline())["words"]]
                found = (ctm_word(line.decode().strip()) for line in f if line.strip())
                return [word for _, word in takewhile(lambda pair: pair[0] == name, filter(None, found))]
        except ValueError as e:
            raise UserError(f"{file.name}: {e}") from e


def _lines(file: Path) -> Iterator[tuple[str, int, str]]:
    """Yield the id of each utterance of a .jsonl or .ctm file, its first byte, and the place in words."""
    last = None
    with file.open("rb") as f:
        for number, line in enumerate(lines_of(f), 1):
            where = f"{file} line {number}"
            if line.content is None:
                raise UserError(f"{where} is {TOO_LONG}")
            if line.content.removeprefix(BOM).strip():
                name = _id_of_line(line.content, file.suffix.lower() == ".jsonl", where)
                if name is not None and (name != last or file.suffix.lower() == ".jsonl"):
                    yield name, line.offset, where
                    last = name


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


def _id_of_line(line: bytes, is_json: bool, where: str) -> str | None:
    """Return the id of a line, None for a comment. Raises UserError for a line in another format."""
    try:
        if not is_json:
            found = ctm_word(decode(line).strip())
            return found and found[0]
        row = parse_json(line)
        if not isinstance(row, Mapping) or not isinstance(row.get("words"), list) or id_of(row.get("id")) is None:
            raise ValueError('it is not {"id": ..., "words": [...]}')
    except ValueError as e:
        raise UserError(f"{where}: {e}: fix it") from e
    return id_of(row["id"])
