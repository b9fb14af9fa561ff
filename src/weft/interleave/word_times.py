"""Word times in the formats of aligners: TextGrid (Praat, Montreal Forced Aligner), CTM (NIST, Kaldi), rows of JSON.

    words_of_text_grid(path.read_bytes())                       # [TimedWord("the", 0.14, 0.29), ...]
    ctm_word("u1 1 0.14 0.15 the 0.98")                         # ("u1", TimedWord("the", 0.14, 0.29))
    json_word(["the", 0.14, 0.29])                              # or {"word": "the", "start": 0.14, "end": 0.29}

Each function raises ValueError, with the reason, for other contents.
"""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from weft.text.inputs import decode, finite, valid_text

_WORD_TIERS = ("words", "word", "orthography", "ort", "ort-mau")  # the first are of the Montreal Forced Aligner
_SILENCE = ("", "sil", "sp", "<eps>", "<sil>")
# A value of a TextGrid: a string, or a number or a flag that stands alone. All else, such as `xmin =`, are comments.
_VALUE = re.compile(r'"(?:[^"]|"")*+"|(?<!\S)[-+]?\d[\d.eE+-]*+(?!\S)|(?<!\S)<\w++>(?!\S)')


@dataclass(frozen=True, slots=True)
class TimedWord:
    """A word and its times in seconds, NaN if they are unknown."""

    text: str
    start: float = math.nan
    end: float = math.nan


def words_of_text_grid(content: bytes) -> list[TimedWord]:
    """Return the words of a TextGrid in long or short format, in UTF-8 or UTF-16.

    They are on the tier of intervals that is named `words` (or `NAME - words`), or on the only one.
    """
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = valid_text(content.decode("utf-16", "replace")) if is_utf16 else decode(content)
    values = (found[0] for found in _VALUE.finditer(text))
    try:
        if [next(values), next(values)] != ['"ooTextFile"', '"TextGrid"']:
            raise ValueError("it is not a TextGrid")
        _number(values), _number(values)
        if next(values) != "<exists>":
            raise ValueError("it has no tiers")
        tiers = [tier for _ in range(int(_number(values))) if (tier := _tier(values))]
    except (StopIteration, OverflowError) as e:
        raise ValueError("it ends before its last tier") from e
    named = [tier for tier in tiers if tier[0].lower().rsplit(" - ", 1)[-1] in _WORD_TIERS] or tiers
    if len(named) != 1:
        raise ValueError(f"it has the tiers {', '.join(name for name, _ in tiers) or 'none'}: name one of them `words`")
    return [word for word in named[0][1] if word.text.strip() not in _SILENCE]


def _tier(values: Iterator[str]) -> tuple[str, list[TimedWord]] | None:
    """Return the name and the intervals of a tier; None for a tier of points."""
    has_intervals, name = _string(values) == "IntervalTier", _string(values)
    _number(values), _number(values)
    words = []
    for _ in range(int(_number(values))):
        start = _number(values)
        end = _number(values) if has_intervals else start
        words.append(TimedWord(_string(values), start, end))
    return (name, words) if has_intervals else None


def _number(values: Iterator[str]) -> float:
    return float(next(values))


def _string(values: Iterator[str]) -> str:
    value = next(values)
    if value[0] != '"':
        raise ValueError(f"it has {value} in place of a string")
    return value[1:-1].replace('""', '"')


def ctm_word(line: str) -> tuple[str, TimedWord] | None:
    """Return the recording and the word of a line: recording, channel, start, duration, word and any other fields.

    None for a comment (`;;`).
    """
    if line.startswith(";;"):
        return None
    fields = line.split()
    try:
        name, _, start, duration, word = fields[:5]
        begin = float(start)
        return name, TimedWord(word, begin, begin + float(duration))
    except ValueError as e:
        raise ValueError("it is not `recording channel start duration word`") from e


def json_word(value: Any) -> TimedWord:
    """Return the word of an object or a row of JSON. A time that is missing or null is unknown."""
    if isinstance(value, Mapping):
        value = [value.get("word"), value.get("start"), value.get("end")]
    if not isinstance(value, list) or len(value) != 3 or not isinstance(value[0], str):
        raise ValueError("a word is not a string with its start and end")
    text, *times = value
    for sec in times:
        is_number = isinstance(sec, int | float) and not isinstance(sec, bool)
        if sec is not None and (not is_number or finite(sec) is None):
            raise ValueError(f"the time of word {text!r} is {sec!r}: give seconds, or leave it out")
    return TimedWord(text) if None in times else TimedWord(text, *map(float, times))
