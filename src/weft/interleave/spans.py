"""Which words of a text are spoken: Poisson spans over the whole document, to an exact share of its words.

    parts = draw(text, speech_ratio=0.3, mean_span_words=10, rng=np.random.default_rng(hash64(seed, document_id)))
    "".join(part.text for part in parts) == text

Source: section 3 of arXiv 2411.17607 (Poisson span lengths, non-overlapping, a share eta of the text).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

# Where a text can be cut is after a word. Words stand between white space; in Chinese and Japanese each character is
# one, with the punctuation behind it. Grouped digits ("10 000"), and numerals of several characters, are one word, so
# that no number is cut, and neither is anything else without a space in it, such as a URL.
_HAN = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_HAN_NUMERALS = "〇零一二两三四五六七八九十百千万亿"
_HAN_CLOSING = "，。！？；：、”’》）】」』…"  # noqa: RUF001
_WORD = re.compile(
    rf"[^\s\d{_HAN}]*\d{{1,3}}(?:[ \u00a0\u202f]\d{{3}})+(?!\d)[^\s{_HAN}]*"
    rf"|[{_HAN_NUMERALS}]+[{_HAN_CLOSING}]*|[{_HAN}][{_HAN_CLOSING}]*|[^\s{_HAN}]+"
)
_SENTENCE_END = re.compile(r"[.!?。！？…][\"'”’)\]》」』]*$")  # noqa: RUF001
_LONGEST_SENTENCE = 3.0  # in mean spans: what the text-to-token model rarely sees more than


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of a document: its exact text, with the white space before each word, and whether it is spoken."""

    text: str
    num_words: int
    spoken: bool


def hash64(*parts: object) -> int:
    """A stable 64-bit hash, for seeds that depend on what is drawn for and not on the order of work."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


def num_words(text: str) -> int:
    """Number of words of a text, as spans count them."""
    return sum(1 for _ in _WORD.finditer(text))


def draw(text: str, speech_ratio: float, mean_span_words: float, rng: np.random.Generator) -> list[Part]:
    """Cut `text` into written and spoken parts that join to it exactly; written ones never follow one another.

    The spoken share of the words is `speech_ratio` up to less than a word, and on average exactly that at any length
    of document. At 1.0 everything is spoken, sentence by sentence.
    """
    words = list(_WORD.finditer(text))
    if speech_ratio >= 1:
        spans = list(_sentences(text, words, max(1, round(_LONGEST_SENTENCE * mean_span_words))))
    else:
        spans = place(len(words), speech_ratio, mean_span_words, rng)
    ends = [0, *(word.end() for word in words)]
    ends[-1] = len(text)
    ranges = _fill(spans, len(words))
    return [Part(text[ends[a] : ends[b]], b - a, spoken) for a, b, spoken in ranges] or [Part(text, 0, False)]


def place(
    num_words: int, speech_ratio: float, mean_span_words: float, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Non-overlapping (start, stop) ranges of words, in order, uniform over all their placements.

    Lengths are Poisson draws without zeros; the last drawn is trimmed so that the share is met. Where the share leaves
    room, at least one word stays between spans.
    """
    target = int(num_words * speech_ratio + rng.random())  # rounded at random: no bias on short documents
    if target == 0:
        return []
    lengths = _lengths(target, mean_span_words, rng)
    num_free = num_words - target
    gap = 1 if num_free >= len(lengths) - 1 else 0
    num_free -= gap * (len(lengths) - 1)
    places = np.sort(rng.choice(num_free + len(lengths), len(lengths), replace=False))
    starts = places + np.arange(len(lengths)) * (gap - 1) + np.cumsum(lengths) - lengths
    return [(int(start), int(start + length)) for start, length in zip(starts, lengths, strict=True)]


def _lengths(total: int, mean: float, rng: np.random.Generator) -> np.ndarray:
    """Span lengths that sum to `total`, in random order."""
    lengths: list[int] = []
    left = total
    while left > 0:
        if length := min(int(rng.poisson(mean)), left):
            lengths.append(length)
            left -= length
    return rng.permutation(lengths)


def _sentences(text: str, words: list[re.Match[str]], longest: int) -> Iterator[tuple[int, int]]:
    """Ranges of words that cover all of them: up to the end of a sentence or a paragraph, or `longest` words."""
    start = 0
    for i, word in enumerate(words, 1):
        behind = text[word.end() : words[i].start()] if i < len(words) else "\n\n"
        if "\n\n" in behind or i - start == longest or _SENTENCE_END.search(word[0]):
            yield start, i
            start = i


def _fill(spans: list[tuple[int, int]], num_words: int) -> Iterator[tuple[int, int, bool]]:
    """The spans with what lies between them, as (start, stop, spoken)."""
    done = 0
    for start, stop in spans:
        if done < start:
            yield done, start, False
        yield start, stop, True
        done = stop
    if done < num_words:
        yield done, num_words, False
