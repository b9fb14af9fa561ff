"""WER filter: word error rates of synthesized codes, without converting them to audio.

    rate = transcribed_error_rate(tokenizer, codes, texts, languages)           # an ErrorRate over all texts
    outcomes = synthesize(synthesizer, texts, seeds, tokenizer, max_wer=0.2)    # an Outcome for each text

The tokenizer's ASR model transcribes the codes, and the transcript is compared with the text. Not in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from weft.text.error_rate import ErrorRate, Errors, count_errors, word_error_rate

Codes = Sequence[int]
Rejection = Literal["nothing_to_pronounce", "too_long", "no_end", "above_max_wer"]
"""Why a text was not synthesized: it has no words, exceeds the length of the model, its speech never ended (or had no
codes), or its word error rate is above `max_wer`."""


class CodesTranscriber(Protocol):
    """Transcribes codes, as `weft.tokenizer.tokenizer.SpeechTokenizer` does."""

    def transcribe(self, codes: Sequence[Codes], languages: Sequence[str | None]) -> list[str]:
        """Return the text of each row of codes, given its language, or None if it is unknown."""


class CodesSynthesizer(Protocol):
    """Synthesizes codes, as `weft.text_to_token.synthesize.Synthesizer` does."""

    frame_rate_hz: float
    speakers: tuple[str, ...]
    language: str | None

    def synthesize(
        self, texts: Sequence[str], seeds: Sequence[int], speakers: Sequence[str] | None = None
    ) -> Sequence[Codes | None]:
        """Return the codes of each text, which depend on it, its seed and its speaker only; None without an end."""

    def problem_of(self, text: str, speaker: str | None = None) -> Rejection | None:
        """Return why no seed gives codes of a text, or None if one may."""

    def normalize(self, text: str) -> str:
        """Return a text with the text normalization of the training."""


def transcribed_error_rate(
    transcriber: CodesTranscriber,
    codes: Sequence[Codes | None],
    texts: Sequence[str],
    languages: Sequence[str | None],
) -> ErrorRate:
    """Return the word error rate of the transcripts of codes against texts; missing codes count as empty."""
    transcripts = transcriber.transcribe([[] if c is None else c for c in codes], languages)
    return word_error_rate(texts, transcripts)


@dataclass(frozen=True, slots=True)
class Synthesis:
    """Codes of a text and the errors of their transcript; None if not measured, or if the text has no words."""

    codes: Codes
    errors: Errors | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result for a text: the synthesis that passed the filter, and the one that would be kept without it.

    `rejection` is the reason if no synthesis was kept.
    """

    kept: Synthesis | None
    first: Synthesis | None
    num_attempts: int
    rejection: Rejection | None = None


def synthesize(
    synthesizer: CodesSynthesizer,
    texts: Sequence[str],
    seeds: Sequence[Sequence[int]],
    transcriber: CodesTranscriber | None = None,
    max_wer: float | None = None,
    speakers: Sequence[str] | None = None,
) -> list[Outcome]:
    """Synthesize each text, again with its next seed after codes without an end, empty codes, or a WER above `max_wer`.

    `seeds` has a row per attempt with a seed per text. Without a transcriber nothing is measured; without `max_wer`
    all codes are kept. A text without words, such as symbols, cannot be measured and is kept.
    """
    first: list[Synthesis | None] = [None] * len(texts)
    kept = first.copy()
    num_attempts = [0] * len(texts)
    remaining = list(range(len(texts)))
    for row in seeds:
        if not remaining:
            break
        given = [texts[i] for i in remaining], [row[i] for i in remaining]
        voices = None if speakers is None else [speakers[i] for i in remaining]
        found = _synthesize(synthesizer, *given, voices, transcriber)
        for i, synthesis in zip(remaining, found, strict=True):
            num_attempts[i] += 1
            first[i] = first[i] or synthesis
            if synthesis and (max_wer is None or synthesis.errors is None or synthesis.errors.rate <= max_wer):
                kept[i] = synthesis
        remaining = [i for i in remaining if kept[i] is None]
    rejections: dict[int, Rejection] = {}
    for i in remaining:
        problem = synthesizer.problem_of(texts[i], speakers[i] if speakers else None) or "no_end"
        rejections[i] = "above_max_wer" if first[i] else problem
    return [Outcome(kept[i], first[i], num_attempts[i], rejections.get(i)) for i in range(len(texts))]


def _synthesize(
    synthesizer: CodesSynthesizer,
    texts: Sequence[str],
    seeds: Sequence[int],
    speakers: Sequence[str] | None,
    transcriber: CodesTranscriber | None,
) -> list[Synthesis | None]:
    found = synthesizer.synthesize(texts, seeds, speakers)
    codes = [c if c is not None and len(c) else None for c in found]  # empty codes are not speech either
    if transcriber is None:
        return [None if c is None else Synthesis(c) for c in codes]
    spoken = [c for c in codes if c is not None]
    transcripts = iter(transcriber.transcribe(spoken, [synthesizer.language] * len(spoken)))
    references = [synthesizer.normalize(text) for text in texts]
    return [
        None if c is None else Synthesis(c, _errors(reference, synthesizer.normalize(next(transcripts))))
        for c, reference in zip(codes, references, strict=True)
    ]


def _errors(reference: str, transcript: str) -> Errors | None:
    """Return the errors of a transcript, None for a reference without words."""
    errors = count_errors(reference, transcript)
    return errors if errors.units else None
