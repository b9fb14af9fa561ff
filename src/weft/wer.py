"""Word and character error rates with intervals, after Whisper's English normaliser (or plain lower case).

rate = word_error_rate(references, hypotheses)
print(f"{rate.rate:.1%} [{rate.low:.1%}, {rate.high:.1%}], {rate.num_units} words")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import jiwer
import numpy as np

from weft.errors import UserError


@dataclass(frozen=True)
class ErrorRate:
    """Errors a reference unit, with a 95 % bootstrap interval over utterances, and how many units there were."""

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
    """(substitutions + deletions + insertions, reference words) of one normalised utterance."""
    reference, hypothesis = normalize(reference), normalize(hypothesis)
    if not reference:
        return len(hypothesis.split()), 0
    out = jiwer.process_words(reference, hypothesis)
    return out.substitutions + out.deletions + out.insertions, out.hits + out.substitutions + out.deletions


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorRate:
    """Pooled word error rate of paired transcripts. Raises UserError when there is no reference word."""
    counts = np.array([word_errors(r, h) for r, h in zip(references, hypotheses, strict=True)], dtype=float)
    if counts.size == 0 or counts[:, 1].sum() == 0:
        raise UserError("there are no words in the transcripts to compare with: give speech with transcripts")
    draws = np.random.default_rng(0).integers(0, len(counts), (1000, len(counts)))
    resampled = counts[draws].sum(axis=1)
    low, high = np.quantile(resampled[:, 0] / np.maximum(resampled[:, 1], 1), [0.025, 0.975])
    errors, words = counts.sum(axis=0)
    return ErrorRate(float(errors / words), float(low), float(high), int(words))
