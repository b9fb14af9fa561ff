"""Word and character error rates with bootstrap intervals: the only place where errors are counted.

    measured, left_out = split_by_words(utterances, lambda u: u.text)       # left out: nothing to recognize
    rate = word_error_rate(references, hypotheses)
    print(f"{rate.rate:.1%} [{rate.low:.1%}, {rate.high:.1%}], {rate.num_units} words")

Texts are compared in their `comparison_form`. References without words are left out of all rates, with what was
recognized instead. Word error rates are not meaningful for languages without spaces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import jiwer
import numpy as np

from weft.errors import UserError
from weft.text.normalize import comparison_form
from weft.text.segment import is_unspaced

_NUM_RESAMPLES = 1000
_T = TypeVar("_T")


@dataclass(frozen=True)
class ErrorRate:
    """Errors per reference unit with a 95 % bootstrap interval over utterances, and the number of units.

    It may also be the difference of the error rates of two systems on the same utterances.
    """

    rate: float
    low: float
    high: float
    num_units: int


@dataclass(frozen=True, slots=True)
class Errors:
    """Errors of a transcript, in words, or in characters for scripts without spaces."""

    errors: int
    units: int
    """Words or characters of the reference; 0 without a word."""
    in_characters: bool

    @property
    def rate(self) -> float:
        return self.errors / self.units


def split_by_words(items: Iterable[_T], text_of: Callable[[_T], str | None]) -> tuple[list[_T], list[_T]]:
    """Return the items whose reference has words, which can be measured, and the others."""
    found: tuple[list[_T], list[_T]] = [], []
    for item in items:
        found[not comparison_form(text_of(item) or "")].append(item)
    return found


def count_errors(reference: str, hypothesis: str) -> Errors:
    """Return the errors of one utterance, in the unit of the reference's script."""
    in_characters = is_unspaced(comparison_form(reference))
    count = character_errors if in_characters else word_errors
    return Errors(*count(reference, hypothesis), in_characters)


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorRate:
    """Return the pooled word error rate of paired transcripts. Raises UserError if there is no reference word."""
    return pooled([word_errors(r, h) for r, h in zip(references, hypotheses, strict=True)])


def character_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorRate:
    """Return the pooled character error rate of paired transcripts. Raises UserError if there is no character."""
    return pooled([character_errors(r, h) for r, h in zip(references, hypotheses, strict=True)])


def word_errors(reference: str, hypothesis: str) -> tuple[int, int]:
    """Return (substitutions + deletions + insertions, reference words) of one utterance."""
    return _errors(comparison_form(reference), comparison_form(hypothesis))


def character_errors(reference: str, hypothesis: str) -> tuple[int, int]:
    """Return (substitutions + deletions + insertions, reference characters) of one utterance.

    Spaces do not count, as in Whisper's evaluation of languages that are written without them.
    """
    return _errors(_characters(reference), _characters(hypothesis))


def code_errors(reference: Sequence[int], codes: Sequence[int]) -> tuple[int, int]:
    """Return (substitutions + deletions + insertions, reference codes) of one utterance; repeated codes count."""
    return _errors(" ".join(map(str, reference)), " ".join(map(str, codes)))


def align(words: Sequence[str], others: Sequence[str]) -> list[int | None]:
    """Return the index in `others` of each of `words` in an alignment with the fewest errors; None if it is missing."""
    indices: list[int | None] = [None] * len(words)
    if words and others:
        for chunk in jiwer.process_words(" ".join(words), " ".join(others)).alignments[0]:
            if chunk.type == "equal":
                indices[chunk.ref_start_idx : chunk.ref_end_idx] = range(chunk.hyp_start_idx, chunk.hyp_end_idx)
    return indices


def pooled(errors_and_units: Sequence[tuple[int, int]]) -> ErrorRate:
    """Return the rate of all errors to all units, from (errors, units) of each utterance that has units.

    Differences of the errors of two systems give the difference of their rates. Raises UserError if there is no unit.
    """
    counts = np.array([pair for pair in errors_and_units if pair[1]], dtype=float)
    if not len(counts):
        raise UserError("the reference transcripts contain no words: give speech with transcripts")
    rng = np.random.default_rng(0)
    samples = (rng.integers(0, len(counts), len(counts)) for _ in range(_NUM_RESAMPLES))
    resampled = np.array([counts[sample].sum(axis=0) for sample in samples])
    low, high = np.quantile(resampled[:, 0] / np.maximum(resampled[:, 1], 1), [0.025, 0.975])
    errors, units = counts.sum(axis=0)
    return ErrorRate(float(errors / units), float(low), float(high), int(units))


def _characters(text: str) -> str:
    return " ".join("".join(comparison_form(text).split()))


def _errors(reference: str, hypothesis: str) -> tuple[int, int]:
    if not reference:
        return len(hypothesis.split()), 0
    out = jiwer.process_words(reference, hypothesis)
    return out.substitutions + out.deletions + out.insertions, out.hits + out.substitutions + out.deletions
