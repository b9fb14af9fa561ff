"""Error rates of several systems on the same sentences: in total, by sentence length and by word class.

    comparison = Comparison(Classifier(synthesizer.normalize), texts)
    tables = comparison.tables({"text_to_token": transcripts, "speech": others})
    tables["wer"]["6 to 10 words"]["difference"]["rate"], tables["wrong_words"]["names"]["speech"]["rate"]

A system is a source of speech codes, given by the transcripts of its codes. Errors of a sentence are counted per system
and pooled over a group of sentences. `difference` is the error rate of the first system minus that of the second; it is
paired by sentence, so that errors of both cancel. Sentences in scripts without spaces are counted in characters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from math import inf
from typing import Any, TypeVar

from weft.eval.words import Classifier
from weft.text.error_rate import align, count_errors, pooled
from weft.text.normalize import comparison_form
from weft.text.segment import is_unspaced

LENGTHS = (5, 10, 20)
"""Maximum number of words, or characters, of the sentences in each length group except the last."""
_OTHERS = "others"
CLASSES = ("numbers", "names", "rare", _OTHERS)
"""Words in none of the first three are the others."""

_T = TypeVar("_T")
_Count = tuple[int, int]  # errors, and reference units: words, or characters


class Comparison:
    """Reference sentences. References and transcripts get the same text normalization, that of synthesis."""

    def __init__(self, classify: Classifier, texts: Sequence[str]) -> None:
        self._normalize = classify.normalize
        self._references = [classify.normalize(text) for text in texts]
        self._words_and_classes = [classify(text) for text in texts]
        self._unspaced = [is_unspaced(comparison_form(reference)) for reference in self._references]
        self._lengths = [self._errors(i, "")[1] for i in range(len(texts))]

    def tables(self, transcripts: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """Return the tables of the systems, from the transcripts of all sentences by each.

        `wer` and `cer` have error rates in total and by sentence length, `wrong_words` the fraction of the words of a
        class that are substituted or deleted in the transcripts. Empty tables and rows are left out.
        """
        normalized = {system: [self._normalize(text) for text in texts] for system, texts in transcripts.items()}
        errors = {system: [self._errors(i, t) for i, t in enumerate(texts)] for system, texts in normalized.items()}
        wrong = {system: [self._wrong_words(i, t) for i, t in enumerate(texts)] for system, texts in normalized.items()}
        by_class = {c: {system: [counts[c] for counts in wrong[system]] for system in wrong} for c in CLASSES}
        tables = {
            "wer": self._by_length(errors, "words", unspaced=False),
            "cer": self._by_length(errors, "characters", unspaced=True),
            "wrong_words": {name: _row(counts, "words") for name, counts in by_class.items()},
        }
        return _non_empty({name: _non_empty(table) for name, table in tables.items()})

    def code_metrics(
        self, codes: Sequence[Sequence[int]], transcripts: Sequence[str], elapsed_sec: float
    ) -> dict[str, float]:
        """Return metrics of one system, from the codes and the transcript of each sentence.

        `unsaid_share` and `empty_share` are the fractions of sentences without codes and with empty transcripts.
        `codes_per_word` (or `codes_per_character`) is over the sentences with codes. `tokens_per_sec` is codes per
        second of computation.
        """
        rates = {}
        for unit, unspaced in (("word", False), ("character", True)):
            with_codes = [i for i, c in enumerate(codes) if c and self._unspaced[i] == unspaced]
            if num_units := sum(self._lengths[i] for i in with_codes):
                rates[f"codes_per_{unit}"] = sum(len(codes[i]) for i in with_codes) / num_units
        return {
            "unsaid_share": sum(not c for c in codes) / len(codes),
            "empty_share": sum(not comparison_form(text) for text in transcripts) / len(codes),
            **rates,
            "tokens_per_sec": sum(map(len, codes)) / elapsed_sec,
        }

    def _errors(self, sentence: int, transcript: str) -> _Count:
        found = count_errors(self._references[sentence], transcript)
        return found.errors, found.units

    def _wrong_words(self, sentence: int, transcript: str) -> dict[str, _Count]:
        """Return the wrong words and all words of each class; zeros for a script without spaces."""
        if self._unspaced[sentence]:
            return dict.fromkeys(CLASSES, (0, 0))
        words, classes = self._words_and_classes[sentence]
        is_wrong = [index is None for index in align(words, comparison_form(transcript).split())]
        of_class = {
            name: [wrong for wrong, own in zip(is_wrong, classes, strict=True) if name in (own or (_OTHERS,))]
            for name in CLASSES
        }
        return {name: (sum(wrong), len(wrong)) for name, wrong in of_class.items()}

    def _by_length(self, errors: Mapping[str, Sequence[_Count]], unit: str, unspaced: bool) -> dict[str, Any]:
        """Return the table rows of the sentences with or without spaces: all of them, and by their length in units."""
        rows = {}
        for name, (low, high) in _length_groups(unit).items():
            group = [i for i, n in enumerate(self._lengths) if low < n <= high and self._unspaced[i] == unspaced]
            rows[name] = _row({system: [counts[i] for i in group] for system, counts in errors.items()}, unit)
        return rows


def _length_groups(unit: str) -> dict[str, tuple[float, float]]:
    """Return the limits (low, high) of each group, whose lengths are low < length <= high."""
    bounded = {f"{low + 1} to {high} {unit}": (low, high) for low, high in pairwise((0, *LENGTHS))}
    return {"all": (0, inf), **bounded, f"over {LENGTHS[-1]} {unit}": (LENGTHS[-1], inf)}


def _row(counts: Mapping[str, Sequence[_Count]], unit: str) -> dict[str, Any] | None:
    """Return the error rates of the systems and their difference, from paired counts; None if there is no unit."""
    counts = {system: [(errors, units) for errors, units in c if units] for system, c in counts.items()}
    first, second = list(counts.values())[:2]
    if not first:
        return None
    differences = [(a - b, units) for (a, units), (b, _) in zip(first, second, strict=True)]
    return {
        "sentences": len(first),
        unit: sum(units for _, units in first),
        **{system: asdict(pooled(c)) for system, c in counts.items()},
        "difference": asdict(pooled(differences)),
    }


def _non_empty(entries: Mapping[str, _T]) -> dict[str, _T]:
    return {name: entry for name, entry in entries.items() if entry}
