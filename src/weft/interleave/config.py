"""Settings of `weft interleave`.

InterleaveConfig(corpus=(Path("books"),), out=Path("runs/interleaved"), text_to_token=Path("runs/t2t"))
InterleaveConfig(corpus=(Path("speech"),), out=Path("runs/x"), aligned=Path("words.jsonl"), tokenizer=Path("r/t"))
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from weft.config import FLAT, NOT_IN_PLAN, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from weft.data.job import JobConfig
from weft.errors import UserError
from weft.interleave.spans import Policy

_MAX_SPAN_WORDS = 10_000


@dataclass(frozen=True)
class InterleaveConfig:
    """Settings of interleaved documents from text, or from recordings with word times."""

    corpus: tuple[str | Path, ...]
    """Files, directories and URLs: .txt, .jsonl (.gz, .zst), .parquet, .arrow. With `aligned`: manifests of speech."""
    out: Path
    """Output directory for the documents."""
    text_to_token: Path | None = None
    """Directory of the text-to-token model that synthesizes the spans."""
    aligned: Path | None = None
    """Word times of recordings (.jsonl, .ctm, .TextGrid). Their own speech is used instead of `text_to_token`."""
    tokenizer: Path | None = None
    """Directory of the speech tokenizer. With `text_to_token`: measure the word error rate of every span with it. With
    `aligned`: encode the recordings with it."""
    recase: bool = False
    """With `aligned`: write upper-case transcripts in sentence case."""
    url: Annotated[str | None, NOT_IN_PLAN] = None
    """OpenAI-compatible server of the text-to-token model, such as http://127.0.0.1:8000/v1; not set: no server."""
    speech_ratio: float = 0.3
    """Fraction of a document's words to speak, if so many are speakable; 1.0 speaks it sentence by sentence."""
    mean_span_words: PositiveFloat = 10.0
    """Mean span length in words (Poisson). Sentences longer than three times this are split."""
    policy: Policy = "poisson"
    """Spans anywhere (poisson, as in the paper), whole sentences, or alternating text and speech (alternate)."""
    max_wer: NonNegativeFloat | None = None
    """Reject spans with a higher word error rate, such as 0.3; not set: only measure."""
    tries: PositiveInt = 2
    """Maximum number of attempts per span. A span that is never accepted stays text."""
    seed: NonNegativeInt = 0
    """Seed of the spans and of the speech."""
    tasks: PositiveInt | None = None
    """Number of tasks, each repeated as a whole after a kill; not set: one per 256 KiB of text or 512 utterances."""
    job: Annotated[JobConfig, FLAT, NOT_IN_PLAN] = field(default_factory=JobConfig)
    licence: Annotated[str | None, NOT_IN_PLAN] = None
    """Licence of the corpus, passed on to the notes of everything made from it."""

    def __post_init__(self) -> None:
        if not 0 < self.speech_ratio <= 1:
            raise UserError(f"speech_ratio is {self.speech_ratio}: give more than 0 and at most 1")
        if not 1 <= self.mean_span_words <= _MAX_SPAN_WORDS:
            raise UserError(f"mean_span_words is {self.mean_span_words}: give 1 to {_MAX_SPAN_WORDS}")
        if (self.text_to_token is None) == (self.aligned is None):
            raise UserError("the source of speech is a model or recordings: give either --text-to-token or --aligned")
        if self.aligned is None:
            if self.recase:
                raise UserError("recase is for --aligned and has no effect with --text-to-token: remove it")
            if self.max_wer is not None and self.tokenizer is None:
                raise UserError("max_wer needs a tokenizer that measures the word error rate: give --tokenizer")
            return
        if self.tokenizer is None:
            raise UserError("--aligned needs a tokenizer that encodes the recordings: give --tokenizer")
        for name in ("url", "max_wer", "tries"):
            if getattr(self, name) != getattr(InterleaveConfig, name):
                raise UserError(f"{name} is for --text-to-token and has no effect with --aligned: remove it")
