"""The gate: what would be heard in codes, without making them sound.

    error = read_back(tokenizer, codes, texts)                      # an ErrorRate over all texts
    outcomes = say(synthesizer, texts, seeds, tokenizer, max_wer=0.2)       # what of each text is kept, and why

Codes go through the second half of the tokenizer's ASR model, and the transcript is compared with the text that was to
be said. The paper has no such check; it costs no vocoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from weft.text_to_token.model import spoken_form
from weft.wer import ErrorRate, character_errors, is_spaceless, word_error_rate, word_errors

Codes = Sequence[int]


class Reader(Protocol):
    """What reads codes: `weft.tokenizer.tokenizer.SpeechTokenizer`, or anything that does the same."""

    def transcribe(self, codes: Sequence[Codes]) -> list[str]:
        """The text of each row of codes."""


class Synthesizer(Protocol):
    """What speaks: `weft.text_to_token.synthesize.Synthesizer`, or anything that does the same."""

    def speak(
        self, texts: Sequence[str], seeds: Sequence[int], speakers: Sequence[str] | None = None
    ) -> Sequence[Codes | None]:
        """Codes for each text, decided by the text, its seed and its speaker alone; None where it ran away."""

    def normalize(self, text: str) -> str:
        """What is said where a text is spoken, such as numbers in words."""


def read_back(reader: Reader, codes: Sequence[Codes | None], texts: Sequence[str]) -> ErrorRate:
    """Word error rate of what the tokenizer reads in codes, of what is spoken of the texts; a text without codes counts
    as not said at all."""
    heard = reader.transcribe([[] if c is None else c for c in codes])
    return word_error_rate([spoken_form(text) for text in texts], heard)


@dataclass(frozen=True, slots=True)
class SpanErrors:
    """How far the transcript of a text's codes is from its words; from its characters where it puts no spaces."""

    errors: int
    units: int
    """Words, or characters, of the text: at least 1."""
    in_characters: bool

    @property
    def rate(self) -> float:
        return self.errors / self.units


@dataclass(frozen=True, slots=True)
class Said:
    """The codes of a text, and how they read back: None where that was not measured, or has nothing to measure by."""

    codes: Codes
    errors: SpanErrors | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a text: `kept` passed the gate, and `first` is what would have been kept without one."""

    kept: Said | None
    first: Said | None
    num_tries: int


def say(
    synthesizer: Synthesizer,
    texts: Sequence[str],
    seeds: Sequence[Sequence[int]],
    reader: Reader | None = None,
    max_wer: float | None = None,
    speakers: Sequence[str] | None = None,
) -> list[Outcome]:
    """Say each text, again with its next seed where it ran away, was silent, or reads back over `max_wer`.

    `seeds` has a row for each try, with a seed for each text; `speakers` are of the texts. Without a reader nothing is
    measured; without `max_wer` all is kept that has codes. What cannot be measured, a text of symbols, is kept too.
    """
    first: list[Said | None] = [None] * len(texts)
    kept = list(first)
    num_tries = [0] * len(texts)
    left = list(range(len(texts)))
    for row in seeds:
        if not left:
            break
        voices = None if speakers is None else [speakers[i] for i in left]
        found = _said(synthesizer, [texts[i] for i in left], [row[i] for i in left], voices, reader)
        for i, said in zip(left, found, strict=True):
            num_tries[i] += 1
            first[i] = first[i] or said
            if said and (max_wer is None or said.errors is None or said.errors.rate <= max_wer):
                kept[i] = said
        left = [i for i in left if kept[i] is None]
    return [Outcome(*fields) for fields in zip(kept, first, num_tries, strict=True)]


def _said(
    synthesizer: Synthesizer,
    texts: Sequence[str],
    seeds: Sequence[int],
    speakers: Sequence[str] | None,
    reader: Reader | None,
) -> list[Said | None]:
    found = synthesizer.speak(texts, seeds, speakers)
    codes = [c if c is not None and len(c) else None for c in found]  # silence is no speech either
    if reader is None:
        return [None if c is None else Said(c) for c in codes]
    heard = iter(reader.transcribe([c for c in codes if c is not None]))
    said = [synthesizer.normalize(text) for text in texts]
    return [
        None if c is None else Said(c, _errors(text, synthesizer.normalize(next(heard))))
        for c, text in zip(codes, said, strict=True)
    ]


def _errors(text: str, heard: str) -> SpanErrors | None:
    """Of what is spoken of the text: a transcript's normalizer would leave out what stands in brackets."""
    spoken = spoken_form(text)
    in_characters = is_spaceless(spoken)
    errors, units = (character_errors if in_characters else word_errors)(spoken, heard)
    return SpanErrors(errors, units, in_characters) if units else None
