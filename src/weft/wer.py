"""Word and character error rates with intervals, after Whisper's basic normaliser, which suits any language.

    rate = word_error_rate(references, hypotheses)
    print(f"{rate.rate:.1%} [{rate.low:.1%}, {rate.high:.1%}], {rate.num_units} words")

Of a language that puts no spaces between words, the character error rate is the figure to read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import jiwer
import numpy as np
import regex

from weft.errors import UserError

_RESAMPLINGS = 1000
SPACELESS = (
    r"[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}"
    r"\p{Script=Thai}\p{Script=Lao}\p{Script=Khmer}\p{Script=Myanmar}]"
)
"""Letters of scripts that put no spaces between words, as a set of `regex`."""


@dataclass(frozen=True)
class ErrorRate:
    """Errors a reference unit, with a 95 % bootstrap interval over utterances, and how many units there were; or by how
    much the error rates of two systems on the same utterances differ."""

    rate: float
    low: float
    high: float
    num_units: int


@cache
def _normalizer() -> Callable[[str], str]:
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    return BasicTextNormalizer()


def normalize(text: str) -> str:
    """Lower case, no punctuation, single spaces: Whisper's basic normaliser, which suits any language."""
    return " ".join(_normalizer()(text).split())


def word_errors(reference: str, hypothesis: str) -> tuple[int, int]:
    """(substitutions + deletions + insertions, reference words) of one utterance, normalised here."""
    return _errors(normalize(reference), normalize(hypothesis))


def character_errors(reference: str, hypothesis: str) -> tuple[int, int]:
    """(substitutions + deletions + insertions, reference characters) of one utterance, normalised here. Spaces do not
    count, as in Whisper's evaluation of languages that need none: there, transcripts differ in them."""
    return _errors(_spelt(reference), _spelt(hypothesis))


def matches(words: Sequence[str], others: Sequence[str]) -> list[int | None]:
    """Where each of `words` stands in `others` when they are aligned with the fewest errors; None where it does not."""
    places: list[int | None] = [None] * len(words)
    if words and others:
        for chunk in jiwer.process_words(" ".join(words), " ".join(others)).alignments[0]:
            if chunk.type == "equal":
                places[chunk.ref_start_idx : chunk.ref_end_idx] = range(chunk.hyp_start_idx, chunk.hyp_end_idx)
    return places


def is_spaceless(text: str) -> bool:
    """Whether a text has letters of a script that puts no spaces between words: characters are to be counted there."""
    return regex.search(SPACELESS, text) is not None


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorRate:
    """Pooled word error rate of paired transcripts. Raises UserError when there is no reference word."""
    return pooled([word_errors(r, h) for r, h in zip(references, hypotheses, strict=True)])


def character_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorRate:
    """Pooled character error rate of paired transcripts. Raises UserError when there is no reference character."""
    return pooled([character_errors(r, h) for r, h in zip(references, hypotheses, strict=True)])


def _spelt(text: str) -> str:
    return " ".join("".join(normalize(text).split()))


def _errors(reference: str, hypothesis: str) -> tuple[int, int]:
    if not reference:
        return len(hypothesis.split()), 0
    out = jiwer.process_words(reference, hypothesis)
    return out.substitutions + out.deletions + out.insertions, out.hits + out.substitutions + out.deletions


def pooled(errors_and_units: Sequence[tuple[int, int]]) -> ErrorRate:
    """The rate of all errors to all units, from those of each utterance; of differences of errors, that of the rates.

    Raises UserError when there is no unit.
    """
    counts = np.array(errors_and_units, dtype=float)
    if counts.size == 0 or counts[:, 1].sum() == 0:
        raise UserError("there are no words in the transcripts to compare with: give speech with transcripts")
    rng = np.random.default_rng(0)
    draws = (rng.integers(0, len(counts), len(counts)) for _ in range(_RESAMPLINGS))
    resampled = np.array([counts[drawn].sum(axis=0) for drawn in draws])
    low, high = np.quantile(resampled[:, 0] / np.maximum(resampled[:, 1], 1), [0.025, 0.975])
    errors, units = counts.sum(axis=0)
    return ErrorRate(float(errors / units), float(low), float(high), int(units))
