"""Interleaved data: ordinary text with random spans replaced by the speech codes that a text-to-token model predicts.

    manifest = run(InterleaveConfig(corpus=(Path("books"),), text_to_token=Path("runs/t2t"), out=Path("runs/woven")))

Source: section 3 of arXiv 2411.17607. What is made is a documents artifact that serves every language model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from weft import artifacts
from weft.artifacts import Manifest
from weft.config import Count, Natural, Positive, Share
from weft.data import job
from weft.data.corpus import TextCorpus
from weft.data.formats import TextDocument
from weft.data.job import Report
from weft.data.shards import tokenizer_of, write_documents
from weft.errors import UserError
from weft.interleave import words
from weft.interleave.spans import Drawn, Part, Policy, draw, hash64
from weft.interleave.speakable import KINDS
from weft.records import Document, Meta, Segment

_BYTES_PER_TASK = 128 << 10  # some 650 spans: enough to batch, and little to lose to a kill
_SPANS_PER_CALL = 4096
_BUCKETS = (10, 50, 200, 1000)  # words of a document, for the achieved ratios in the manifest


@dataclass(frozen=True)
class InterleaveConfig:
    """How text becomes interleaved documents."""

    corpus: tuple[Path, ...]
    """Text files and folders of them: .txt, .jsonl (.gz, .zst), .parquet, .arrow."""
    text_to_token: Path
    """Folder of the text-to-token model that speaks."""
    out: Path
    """Folder to write the documents to."""
    speech_ratio: float = 0.3
    """Share of a document's words that is spoken, or all that can be; 1.0 speaks it sentence by sentence."""
    mean_span_words: Positive = 10.0
    """Mean length of a spoken span in words (Poisson); three times as long is the longest sentence spoken in one."""
    policy: Policy = "poisson"
    """Spans anywhere (poisson, the paper's), whole sentences, or written and spoken stretches in turn (alternate)."""
    seed: Natural = 0
    """Seed of the spans and of the speech."""
    tasks: Count | None = None
    """Parts the work is cut into, each redone from its start after a kill; by default one for 128 KiB of corpus."""
    workers: Count = 1
    """Processes, each with its own copy of the model; with 1, all happens in this one."""
    max_bad_share: Share = 0.01
    """Share of unreadable documents above which the job fails."""

    def __post_init__(self) -> None:
        if not 0 < self.speech_ratio <= 1:
            raise UserError(f"speech_ratio is {self.speech_ratio}: give a share above 0, and at most 1")
        if self.mean_span_words < 1:
            raise UserError(f"mean_span_words is {self.mean_span_words}: give at least 1 word")


class Synthesizer(Protocol):
    """What speaks: `weft.text_to_token.synthesize.Synthesizer`, or anything that does the same."""

    frame_rate_hz: float

    def speak(self, texts: Sequence[str], seeds: Sequence[int]) -> Sequence[Sequence[int] | None]:
        """Codes for each text, decided by the text and its seed alone; None where it ran away."""


def load_synthesizer(folder: Path) -> Synthesizer:
    """What speaks, from the folder of a text-to-token model; its libraries load here and not before."""
    from weft.text_to_token.synthesize import Synthesizer

    return Synthesizer.load(folder)


def run(config: InterleaveConfig, load: Callable[[Path], Synthesizer] = load_synthesizer) -> Manifest:
    """Make the artifact `config.out`; one that is made already by the same plan is left as it is.

    Raises UserError for a corpus without documents or with too many bad ones.
    """
    speaker = artifacts.read(config.text_to_token, "text_to_token")
    parents = {"text_to_token": speaker, **tokenizer_of({"text_to_token": speaker})}
    corpus = TextCorpus.of(*config.corpus)
    tasks = config.tasks or job.tasks_for(corpus.size_bytes, _BYTES_PER_TASK)
    settings = {
        "corpus": corpus.identity,
        "speech_ratio": config.speech_ratio,
        "mean_span_words": config.mean_span_words,
        "policy": config.policy,
        "segmenter": words.segmenter(),
        "seed": config.seed,
        "tasks": tasks,
    }
    if artifacts.is_made(config.out, "documents", settings, parents):
        return artifacts.read(config.out)
    with artifacts.build(config.out, "documents", settings, parents) as draft:
        work = _Interleave(config, corpus, draft.folder, tasks, load)
        report = job.run(work, draft.folder, tasks, config.workers, "interleave", config.max_bad_share)
        draft.counts.update(_summary(report))
    return artifacts.read(config.out)


@dataclass
class _Interleave:
    """The work of a task: read its share of the corpus, draw spans, speak them in large batches, write one part."""

    config: InterleaveConfig
    corpus: TextCorpus
    folder: Path
    num_tasks: int
    load: Callable[[Path], Synthesizer]

    @cached_property
    def synthesizer(self) -> Synthesizer:
        return self.load(self.config.text_to_token)

    def __call__(self, task: int) -> Report:
        report = Report()
        texts = self.corpus.read(job.share(self.corpus.size_bytes, task, self.num_tasks), report.skipped)
        drawn = (self._draw(text) for text in texts)
        documents = (d for batch in _batches(drawn) for d in self._speak(batch, report.counts))
        write_documents(self.folder, task, documents)
        return report

    def _draw(self, document: TextDocument) -> _Named:
        rng = np.random.default_rng(hash64(self.config.seed, document.id))
        config = self.config
        drawn = draw(document.text, config.speech_ratio, config.mean_span_words, rng, config.policy)
        return _Named(document.id, drawn)

    def _speak(self, batch: list[_Named], counts: Counter[str]) -> Iterator[Document]:
        spans = [(hash64(self.config.seed, d.id, i), part.text) for d in batch for i, part in enumerate(d.spans)]
        found = self.synthesizer.speak([" ".join(text.split()) for _, text in spans], [seed for seed, _ in spans])
        codes = (c if c is not None and len(c) else None for c in found)  # silence is no speech either
        for d in batch:
            spoken = [(part, next(codes) if part.spoken else None) for part in d.drawn.parts]
            counts.update({f"unspeakable {kind}": n for kind, n in d.drawn.unspeakable_words.items()})
            counts["documents_left_whole"] += d.drawn.left_whole
            yield _document(d.id, spoken, self.synthesizer.frame_rate_hz, counts)


@dataclass(frozen=True)
class _Named:
    """A document with its spans drawn and not yet spoken."""

    id: str
    drawn: Drawn

    @property
    def spans(self) -> list[Part]:
        return [part for part in self.drawn.parts if part.spoken]


def _batches(drawn: Iterable[_Named]) -> Iterator[list[_Named]]:
    batch: list[_Named] = []
    num_spans = 0
    for document in drawn:
        batch.append(document)
        num_spans += len(document.spans)
        if num_spans >= _SPANS_PER_CALL:
            yield batch
            batch, num_spans = [], 0
    if batch:
        yield batch


Spoken = list[tuple[Part, Sequence[int] | None]]


def _document(name: str, spoken: Spoken, frame_rate_hz: float, counts: Counter[str]) -> Document:
    """The document of parts with their codes; a span without codes stays text, one with the text around it."""
    segments: list[Segment] = []
    for silent, run in groupby(spoken, key=lambda pair: pair[1] is None):
        if silent:
            segments.append(Segment.of_text("".join(part.text for part, _ in run)))
        else:
            segments += [Segment.of_speech(codes, part.text) for part, codes in run if codes is not None]
    num_words = sum(part.num_words for part, _ in spoken)
    spoken_words = sum(part.num_words for part, codes in spoken if codes is not None)
    num_codes = sum(len(codes) for _, codes in spoken if codes is not None)
    bucket = _bucket(num_words)
    counts.update(
        {
            "documents": 1,
            "words": num_words,
            "spoken_words": spoken_words,
            "speech_codes": num_codes,
            "spans": sum(part.spoken for part, _ in spoken),
            "rejected_spans": sum(part.spoken and codes is None for part, codes in spoken),
            f"words {bucket}": num_words,
            f"spoken_words {bucket}": spoken_words,
        }
    )
    ratio = spoken_words / num_words if num_words else 0.0
    return Document(name, "interleaved", tuple(segments), Meta(ratio, num_words, num_codes / frame_rate_hz))


def _bucket(num_words: int) -> str:
    low = max((edge for edge in _BUCKETS if edge <= num_words), default=0)
    high = next((f"-{edge - 1}" for edge in _BUCKETS if edge > num_words), " or more")
    return f"{low}{high}"


def _summary(report: Report) -> dict[str, Any]:
    """The counts of the manifest. Ratios are of all words, also of those that cannot be spoken, which `left_as_text`
    counts by kind; `tokens_per_sec` is a worker's speed in speech codes."""
    counts = report.counts
    if not counts["words"]:
        raise UserError("the corpus holds no words to interleave: give other text")
    names = ("documents", "words", "spoken_words", "speech_codes", "spans", "rejected_spans")
    buckets = sorted((name.removeprefix("words ") for name in counts if name.startswith("words ")), key=_leading_number)
    return {
        **{name: counts[name] for name in names},
        "text_words": counts["words"] - counts["spoken_words"],
        "speech_ratio": round(counts["spoken_words"] / counts["words"], 4),
        "speech_ratio_by_words": {
            b: round(counts[f"spoken_words {b}"] / max(1, counts[f"words {b}"]), 4) for b in buckets
        },
        "codes_per_spoken_word": round(counts["speech_codes"] / max(1, counts["spoken_words"]), 3),
        "left_as_text": {kind: n for kind in KINDS if (n := counts[f"unspeakable {kind}"])},
        "documents_left_whole": counts["documents_left_whole"],
        "skipped_documents": len(report.skipped.bad),
        "tokens_per_sec": round(counts["speech_codes"] / report.busy_sec, 1),
    }


def _leading_number(bucket: str) -> int:
    return int(bucket.split("-")[0].split()[0])
