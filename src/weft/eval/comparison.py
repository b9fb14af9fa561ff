"""Tables of what several speakers of the same sentences get wrong, whole, by length and by class of word.

    comparison = Comparison(Classifier(synthesizer.normalize), texts)
    tables = comparison.tables({"text_to_token": transcripts, "speech": others})
    tables["wer"]["6 to 10 words"]["difference"]["rate"], tables["wrong_words"]["names"]["speech"]["rate"]

The difference is of the first two, sentence by sentence: what both stumble over does not blur it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from math import inf
from typing import Any

from weft.eval.words import Classifier
from weft.text_to_token.model import spoken_form
from weft.wer import character_errors, is_spaceless, matches, normalize, pooled, word_errors

LENGTHS = (5, 10, 20)
"""The most words, or characters, of a sentence of each length but the last."""
_OTHERS = "others"
CLASSES = ("numbers", "names", "rare", _OTHERS)
"""Words of none of the first three are the others."""

Counts = Sequence[tuple[int, int]]  # errors and units of each sentence


class Comparison:
    """Sentences to compare transcripts with, as they are said: numbers may be in words, and then in transcripts too.

    Errors are of words, and of characters in sentences with letters of a script that puts no spaces between words.
    """

    def __init__(self, classify: Classifier, texts: Sequence[str]) -> None:
        self._say = classify.say
        self._references = [spoken_form(classify.say(text)) for text in texts]
        self._classes = [classify(text) for text in texts]
        self._spaceless = [is_spaceless(reference) for reference in self._references]
        self._lengths = [self._errors(i, "")[1] for i in range(len(texts))]

    def tables(self, heard: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """Tables of each speaker, by what was heard of every sentence.

        `wer` and `cer` have the error rates of sentences of all and of each length, `wrong_words` the share of a
        class's words that were not heard. A table or a row with nothing to count is left out.
        """
        heard = {name: [self._say(text) for text in texts] for name, texts in heard.items()}
        errors = {name: [self._errors(i, text) for i, text in enumerate(texts)] for name, texts in heard.items()}
        wrong = {name: [self._wrong(i, text) for i, text in enumerate(texts)] for name, texts in heard.items()}
        classes = ({name: [w[c] for w in of] for name, of in wrong.items()} for c in range(len(CLASSES)))
        tables = {
            "wer": self._by_length(
                errors, "words", [i for i, spaceless in enumerate(self._spaceless) if not spaceless]
            ),
            "cer": self._by_length(
                errors, "characters", [i for i, spaceless in enumerate(self._spaceless) if spaceless]
            ),
            "wrong_words": {name: _row(c, "words") for name, c in zip(CLASSES, classes, strict=True)},
        }
        known = {name: {key: row for key, row in table.items() if row} for name, table in tables.items()}
        return {name: table for name, table in known.items() if table}

    def manner(self, codes: Sequence[Sequence[int]], heard: Sequence[str], took_sec: float) -> dict[str, float]:
        """How a speaker spoke: shares of the sentences without codes, and without a word heard; codes a word, or
        character, of those with codes; and codes made in a second."""
        paces = {}
        for unit, spaceless in (("word", False), ("character", True)):
            if spaceless in self._spaceless:
                said = [i for i, c in enumerate(codes) if c and self._spaceless[i] == spaceless]
                if num_units := sum(self._lengths[i] for i in said):
                    paces[f"codes_per_{unit}"] = sum(len(codes[i]) for i in said) / num_units
        return {
            "unsaid_share": sum(not c for c in codes) / len(codes),
            "empty_share": sum(not normalize(text) for text in heard) / len(codes),
            **paces,
            "tokens_per_sec": sum(map(len, codes)) / took_sec,
        }

    def _errors(self, sentence: int, heard: str) -> tuple[int, int]:
        count = character_errors if self._spaceless[sentence] else word_errors
        return count(self._references[sentence], heard)

    def _wrong(self, sentence: int, heard: str) -> list[tuple[int, int]]:
        """Of each class, its words that were not heard and all of its words; none of a sentence without spaces."""
        if self._spaceless[sentence]:
            return [(0, 0)] * len(CLASSES)
        words, classes = self._classes[sentence]
        places = matches(words, normalize(heard).split())
        of_class = ([p for p, c in zip(places, classes, strict=True) if name in (c or (_OTHERS,))] for name in CLASSES)
        return [(found.count(None), len(found)) for found in of_class]

    def _by_length(self, errors: Mapping[str, Counts], unit: str, sentences: Sequence[int]) -> dict[str, Any]:
        def row(low: float, high: float) -> dict[str, Any] | None:
            chosen = [i for i in sentences if low < self._lengths[i] <= high]
            return _row({name: [counts[i] for i in chosen] for name, counts in errors.items()}, unit)

        between = {f"{low + 1} to {high} {unit}": row(low, high) for low, high in pairwise((0, *LENGTHS))}
        return {"all": row(0, inf), **between, f"over {LENGTHS[-1]} {unit}": row(LENGTHS[-1], inf)}


def _row(counts: Mapping[str, Counts], unit: str) -> dict[str, Any] | None:
    """A row of a table; None where nothing is to be counted."""
    counts = {name: [c for c in of if c[1]] for name, of in counts.items()}
    first, second = list(counts.values())[:2]
    if not first:
        return None
    apart = [(a - b, n) for (a, n), (b, _) in zip(first, second, strict=True)]
    return {
        "sentences": len(first),
        unit: sum(n for _, n in first),
        **{name: asdict(pooled(c)) for name, c in counts.items()},
        "difference": asdict(pooled(apart)),
    }
