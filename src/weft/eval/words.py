"""Word classes that are hard to speak: numbers, names and rare words.

    classify = Classifier(synthesizer.normalize, number_words("en"), Counter(words_in_training))
    words, classes = classify("Her Ann is 9.")      # ["her", "ann", "is", "9"], [{}, {"names"}, {}, {"numbers"}]

A number is a word with a digit, a word that text normalization made of one, or a word that num2words uses for whole
numbers. A name is capitalized and not at the start of a sentence or quotation; this includes German nouns. A rare word
occurred fewer than `RARE_BELOW` times in the transcripts that the model was trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import regex

from weft.errors import UserError
from weft.text.error_rate import align
from weft.text.normalize import comparison_form, text_normalizer
from weft.text.segment import sentence_ends

RARE_BELOW = 5
_NAME = regex.compile(r"\p{Lu}(?:['’]\p{Lu})?[\p{L}\p{M}]")  # noqa: RUF001 - O'Brien, but neither I nor I'm


def words_of(text: str, normalize: Callable[[str], str]) -> list[str]:
    """Return the words of a text as error rates count them, after the text normalization of synthesis."""
    return comparison_form(normalize(text)).split()


def number_words(language: str) -> frozenset[str]:
    """Return the words that num2words uses for whole numbers; empty if it is not installed or lacks the language."""
    try:
        normalize = text_normalizer("numbers", language)
    except UserError:
        return frozenset()
    below_thousand = (normalize(str(n)).strip() for n in range(1000))
    phrases = [p for p in below_thousand if " " not in p]  # without the "and" of a hundred and one
    phrases += [normalize(str(10**power)) for power in (2, 3, 6, 9)]
    return frozenset(word for phrase in phrases for word in comparison_form(phrase).split())


@dataclass(frozen=True)
class Classifier:
    """Assigns classes to the words of a text. Most words have none, and some have several."""

    normalize: Callable[[str], str]
    """Text normalization of synthesis."""
    numbers: frozenset[str] = frozenset()
    """Words that stand for numbers."""
    occurrences: Mapping[str, int] | None = None
    """Occurrences of words in training; None if unknown, and then no word is rare."""

    def __call__(self, text: str) -> tuple[list[str], list[frozenset[str]]]:
        """Return the words of a text, and the classes of each."""
        words = words_of(text, self.normalize)
        pieces = [(w, found) for written, found in _written(text) for w in words_of(written, self.normalize)]
        indices = align(words, [word for word, _ in pieces])
        return words, [
            frozenset(self._own_classes(word)).union(pieces[i][1] if i is not None else ())
            for word, i in zip(words, indices, strict=True)
        ]

    def notes(self) -> dict[str, str]:
        """Return the definition of each class."""
        return {
            "numbers": "has a digit" + (", or is a number word of num2words" if self.numbers else ""),
            "names": "capitalized, and not at the start of a sentence or quotation",
            "rare": "unknown: give the codes datasets that the model was trained on"
            if self.occurrences is None
            else f"occurs fewer than {RARE_BELOW} times in the transcripts that the model was trained on",
        }

    def _own_classes(self, word: str) -> Iterator[str]:
        """Yield the classes that follow from the word alone."""
        if word in self.numbers or _has_digit(word):
            yield "numbers"
        if self.occurrences is not None and self.occurrences.get(word, 0) < RARE_BELOW:
            yield "rare"


def _written(text: str) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield the words between spaces, with the classes that follow from their spelling."""
    has_lower = any(c.islower() for c in text)  # otherwise capitals mean nothing
    for start, stop in pairwise([0, *sentence_ends(text), len(text)]):
        words = [word for word in text[start:stop].split() if any(c.isalnum() for c in word)]
        for i, word in enumerate(words):
            is_name = has_lower and i > 0 and _NAME.match(word)
            yield word, [*(["names"] if is_name else ()), *(["numbers"] if _has_digit(word) else ())]


def _has_digit(word: str) -> bool:
    return any(c.isdigit() for c in word)
