"""Whether an answer contains one of the right answers, by a named rule.

    has_answer("It is Paris, I think.", ["Paris", "City of Light"])         # True
    normalized("He has twenty-five.", ["25"])                               # True

- "has_answer": the tokens of an alias are a part of those of the answer, after Unicode NFD and lower-casing. A token is
  a run of letters, digits and marks, or one other visible character. This is the rule of DPR and of UltraEval-Audio.
- "normalized": the words of an alias are a part of those of the answer after Whisper's English normalizer, which writes
  numbers as digits and removes punctuation and fillers, and without articles. In other languages, it is Whisper's basic
  normalizer.

Source: Karpukhin et al. 2020 (dense passage retrieval, has_answer).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import regex

from weft.text.normalize import comparison_form

_TOKEN = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")
_ARTICLES = {"a", "an", "the"}


def has_answer(text: str, answers: Sequence[str]) -> bool:
    """Whether the tokens of an answer are consecutive tokens of the text."""
    found = _tokens(text)
    return any(_contains(found, _tokens(answer)) for answer in answers)


def normalized(text: str, answers: Sequence[str], language: str | None = "en") -> bool:
    """Whether the words of an answer are consecutive words of the text, after normalization."""
    normalize = _english() if language in (None, "en") else comparison_form
    found = normalize(text).split()
    return any(_contains(found, normalize(answer).split()) for answer in answers)


def _tokens(text: str) -> list[str]:
    return _TOKEN.findall(unicodedata.normalize("NFD", text).lower())


def _contains(words: Sequence[str], part: Sequence[str]) -> bool:
    """Whether words that are not empty occur in this order, one after the other."""
    size = len(part)
    return bool(size) and any(words[i : i + size] == part for i in range(len(words) - size + 1))


@cache
def _english() -> Callable[[str], str]:
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    normalizer: Any = EnglishTextNormalizer({})

    def normalize(text: str) -> str:
        return " ".join(word for word in normalizer(text).split() if word not in _ARTICLES)

    return normalize
