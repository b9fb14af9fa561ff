"""What `weft interleave` is told: of what its documents are made, how much of them is spoken, and how it is spoken.

InterleaveConfig(corpus=(Path("books"),), out=Path("runs/woven"), text_to_token=Path("runs/t2t"))
InterleaveConfig(corpus=(Path("speech"),), out=Path("runs/woven"), aligned=Path("words.jsonl"), tokenizer=Path("t"))
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from weft.config import Count, Natural, NonNegative, Positive, Share
from weft.data.cluster import HERE, Executor
from weft.errors import UserError
from weft.interleave.spans import Policy

_LONGEST_SPAN_WORDS = 10_000


@dataclass(frozen=True)
class InterleaveConfig:
    """How text, or recordings with word times, become interleaved documents."""

    corpus: tuple[str | Path, ...]
    """Text files and folders of them, here or at URLs: .txt, .jsonl (.gz, .zst), .parquet, .arrow. With `aligned`:
    manifests of speech."""
    out: Path
    """Folder to write the documents to."""
    text_to_token: Path | None = None
    """Folder of the text-to-token model that speaks text."""
    aligned: Path | None = None
    """Word times of recordings (.jsonl), whose own speech is taken, in place of `text_to_token`."""
    tokenizer: Path | None = None
    """Speech tokenizer. With `text_to_token`, which it must be that of: it reads every span back, and tells its word
    error rate. With `aligned`: it makes the codes."""
    url: str | None = None
    """OpenAI-compatible server of the text-to-token folder, such as http://127.0.0.1:8000/v1; without, it runs here."""
    speech_ratio: float = 0.3
    """Share of a document's words that is spoken, or all that can be; 1.0 speaks it sentence by sentence."""
    mean_span_words: Positive = 10.0
    """Mean length of a spoken span in words (Poisson); three times as long is the longest sentence spoken in one."""
    policy: Policy = "poisson"
    """Spans anywhere (poisson, the paper's), whole sentences, or written and spoken stretches in turn (alternate)."""
    max_wer: NonNegative | None = None
    """Word error rate over which a span is not taken, such as 0.3; by default it is only measured."""
    tries: Count = 2
    """Seeds that a span is tried with until it is said, and within `max_wer`; one that never is stays text."""
    seed: Natural = 0
    """Seed of the spans and of the speech."""
    tasks: Count | None = None
    """Parts the work is cut into, each redone from its start after a kill; by default one for 256 KiB of text, or for
    512 utterances."""
    workers: Count = 1
    """Processes, each with its own copy of the model; with 1, all happens in this one. On a cluster, jobs at a time."""
    executor: Executor = HERE
    """Where they run."""
    max_bad_share: Share = 0.01
    """Share of unreadable documents, or unusable utterances, above which the job fails."""
    licence: str | None = None
    """Licence of the corpus, which the notes of all that is made of it will tell."""

    def __post_init__(self) -> None:
        if not 0 < self.speech_ratio <= 1:
            raise UserError(f"speech_ratio is {self.speech_ratio}: give a share above 0, and at most 1")
        if not 1 <= self.mean_span_words <= _LONGEST_SPAN_WORDS:
            raise UserError(f"mean_span_words is {self.mean_span_words}: give 1 to {_LONGEST_SPAN_WORDS} words")
        if (self.text_to_token is None) == (self.aligned is None):
            raise UserError(
                "spans are spoken by a model (text_to_token), or by the recordings themselves (aligned): "
                "give --text-to-token or --aligned, one of them"
            )
        if self.aligned is None:
            if self.max_wer is not None and self.tokenizer is None:
                raise UserError(f"max_wer is {self.max_wer}, and nothing reads spans back: give the --tokenizer too")
            return
        if self.tokenizer is None:
            raise UserError("recordings have no codes without a tokenizer: with --aligned, give the --tokenizer too")
        for name in ("url", "max_wer", "tries"):
            if getattr(self, name) != getattr(InterleaveConfig, name):
                raise UserError(f"{name} is for a model that speaks, and with --aligned none does: leave {name} out")
