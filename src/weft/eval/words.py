"""Words that are hard to say: numbers, names and rare words, found in a text as it is compared with a transcript.

    classify = Classifier(synthesizer.normalize, number_words("en"), Counter(words_of_training))
    words, classes = classify("Her Ann is 9.")      # ["her", "ann", "is", "9"], [{}, {"names"}, {}, {"numbers"}]

A number is a word with a digit, or made of one when numbers turn into words, or that num2words uses for whole numbers.
A name is capitalised, and not where a sentence or a quotation begins: German nouns are too. A rare word occurred fewer
than `RARE_BELOW` times in the transcripts that the model was trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import regex

from weft.errors import UserError
from weft.sentences import sentence_ends
from weft.text_to_token.model import spoken_form
from weft.text_to_token.normalize import normalizer
from weft.wer import matches, normalize

RARE_BELOW = 5
_NAME = regex.compile(r"\p{Lu}(?:['’]\p{Lu})?[\p{L}\p{M}]")  # noqa: RUF001 - O'Brien, and neither I nor I'm


def words_of(text: str, say: Callable[[str], str]) -> list[str]:
    """The words of a text as word errors count them, after what becomes of it before it is spoken."""
    return normalize(spoken_form(say(text))).split()


def number_words(language: str) -> frozenset[str]:
    """The words of whole numbers, as num2words has them; none where it is not installed or lacks the language."""
    try:
        say = normalizer("numbers", language)
    except UserError:
        return frozenset()
    below_thousand = (say(str(n)).strip() for n in range(1000))
    phrases = [p for p in below_thousand if " " not in p]  # without the "and" of a hundred and one
    phrases += [say(str(10**power)) for power in (2, 3, 6, 9)]
    return frozenset(word for phrase in phrases for word in normalize(spoken_form(phrase)).split())


@dataclass(frozen=True)
class Classifier:
    """Tells what classes the words of a text belong to; a word can be of several, and most are of none."""

    say: Callable[[str], str]
    """What becomes of a text before it is spoken, such as numbers in words."""
    numbers: frozenset[str] = frozenset()
    """Words that stand for numbers."""
    occurrences: Mapping[str, int] | None = None
    """How often words occurred in training; None where that is not known, and no word is called rare."""

    def __call__(self, text: str) -> tuple[list[str], list[frozenset[str]]]:
        """The words of a text, and the classes of each."""
        words = words_of(text, self.say)
        pieces = [(w, found) for written, found in _written(text) for w in words_of(written, self.say)]
        places = matches(words, [word for word, _ in pieces])
        return words, [
            frozenset(self._own(word)).union(pieces[place][1] if place is not None else ())
            for word, place in zip(words, places, strict=True)
        ]

    def notes(self) -> dict[str, str]:
        """What each class is, in words."""
        return {
            "numbers": "has a digit" + (", or is a number as num2words has it" if self.numbers else ""),
            "names": "capitalised, and not where a sentence or a quotation begins",
            "rare": "not told apart: give the codes that the model was trained on"
            if self.occurrences is None
            else f"occurs less than {RARE_BELOW} times in the transcripts that the model was trained on",
        }

    def _own(self, word: str) -> Iterator[str]:
        """The classes that the word itself tells."""
        if word in self.numbers or _has_digit(word):
            yield "numbers"
        if self.occurrences is not None and self.occurrences.get(word, 0) < RARE_BELOW:
            yield "rare"


def _written(text: str) -> Iterator[tuple[str, Sequence[str]]]:
    """What stands between spaces, with the classes that its spelling tells."""
    has_lower = any(c.islower() for c in text)  # else capitals tell nothing
    for start, stop in pairwise([0, *sentence_ends(text), len(text)]):
        words = [word for word in text[start:stop].split() if any(c.isalnum() for c in word)]
        for place, word in enumerate(words):
            is_name = has_lower and place > 0 and _NAME.match(word)
            yield word, [*(["names"] if is_name else ()), *(["numbers"] if _has_digit(word) else ())]


def _has_digit(word: str) -> bool:
    return any(c.isdigit() for c in word)
