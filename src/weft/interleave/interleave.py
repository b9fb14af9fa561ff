"""Interleaved data: ordinary text with random spans replaced by the speech codes that a text-to-token model predicts.

    manifest = run(InterleaveConfig(corpus=(Path("books"),), out=Path("runs/woven"), text_to_token=Path("runs/t2t")))

Source: section 3 of arXiv 2411.17607. What is made is a documents artifact that serves every language model. Of
recordings with word times `weft.interleave.aligned` makes the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol

import numpy as np

from weft import artifacts
from weft.artifacts import Manifest
from weft.data import job
from weft.data.corpus import TextCorpus
from weft.data.formats import TextDocument
from weft.data.job import Report
from weft.data.shards import tokenizer_of, write_documents
from weft.errors import UserError
from weft.interleave import tally, words
from weft.interleave.config import InterleaveConfig
from weft.interleave.spans import Drawn, Part, draw, hash64, segments_of
from weft.records import Document, Meta
from weft.text_to_token import gate
from weft.text_to_token.gate import Said

_BYTES_PER_TASK = 256 << 10  # some 1300 spans: enough to batch, and little to lose to a kill
_SPANS_PER_CALL = 4096


class Synthesizer(gate.Synthesizer, Protocol):
    """What speaks, how many of its codes make a second, and the voices that it knows by name, or none."""

    frame_rate_hz: float
    speakers: tuple[str, ...]


def load_synthesizer(folder: Path, url: str | None = None) -> Synthesizer:
    """What speaks, from the folder of a text-to-token model; its libraries load here and not before."""
    from weft.text_to_token.synthesize import Synthesizer

    return Synthesizer.load(folder, url)


def load_reader(folder: Path) -> gate.Reader:
    """What reads codes, from the folder of a speech tokenizer, onto a GPU where there is one."""
    import torch

    from weft.tokenizer.tokenizer import SpeechTokenizer

    tokenizer = SpeechTokenizer.load(folder)
    tokenizer.model.to("cuda" if torch.cuda.is_available() else "cpu")
    return tokenizer


def run(
    config: InterleaveConfig,
    load: Callable[[Path, str | None], Synthesizer] = load_synthesizer,
    load_reader: Callable[[Path], gate.Reader] = load_reader,
) -> Manifest:
    """Make the artifact `config.out`; one that is made already by the same plan is left as it is.

    Raises UserError for a corpus without documents or with too many bad ones, and for a tokenizer that the
    text-to-token model does not speak in, or that cannot read.
    """
    if config.text_to_token is None:
        from weft.interleave import aligned  # and with it torch

        return aligned.run(config)
    speaker = artifacts.read(config.text_to_token, "text_to_token")
    if config.tokenizer is not None:
        _require_reader(config.tokenizer, speaker)
    parents = {"text_to_token": speaker, **tokenizer_of({"text_to_token": speaker})}
    corpus = TextCorpus.of(*config.corpus)
    tasks = config.tasks or job.tasks_for(corpus.size_bytes, _BYTES_PER_TASK)
    settings = {
        "corpus": corpus.identity,
        "speech_ratio": config.speech_ratio,
        "mean_span_words": config.mean_span_words,
        "policy": config.policy,
        "segmenter": words.segmenter(),
        "read_back": config.tokenizer is not None,
        "max_wer": config.max_wer,
        "tries": config.tries,
        "seed": config.seed,
        "by_url": config.url is not None,
        "tasks": tasks,
    }
    if artifacts.is_made(config.out, "documents", settings, parents):
        return artifacts.read(config.out)
    with artifacts.build(config.out, "documents", settings, parents, config.licence) as draft:
        speak = partial(load, config.text_to_token, config.url)
        work = _Interleave(config, corpus, draft.folder, tasks, speak, load_reader)
        report = job.run(work, draft.folder, tasks, config.workers, "interleave", config.max_bad_share, config.executor)
        size_bytes = sum(part.stat().st_size for part in draft.folder.glob("part-*.parquet"))
        draft.counts.update(tally.summary(report, size_bytes, config.tokenizer is not None))
    return artifacts.read(config.out)


def _require_reader(folder: Path, speaker: Manifest) -> None:
    tokenizer = artifacts.read(folder, "tokenizer")
    artifacts.require_parent(speaker, "tokenizer", tokenizer)
    if tokenizer.settings.get("model", {}).get("encoder_only"):
        raise UserError(f"{folder} is encoder_only, and cannot read codes: leave tokenizer and max_wer out")


@dataclass
class _Interleave:
    """The work of a task: read its share of the corpus, draw spans, speak them in large batches, write one part."""

    config: InterleaveConfig
    corpus: TextCorpus
    folder: Path
    num_tasks: int
    load: Callable[[], Synthesizer]
    load_reader: Callable[[Path], gate.Reader]

    @cached_property
    def synthesizer(self) -> Synthesizer:
        return self.load()

    @cached_property
    def reader(self) -> gate.Reader | None:
        return None if self.config.tokenizer is None else self.load_reader(self.config.tokenizer)

    def __call__(self, task: int) -> Report:
        report = Report()
        texts = self.corpus.read(job.share(self.corpus.size_bytes, task, self.num_tasks), report.skipped)
        drawn = (self._draw(text) for text in texts)
        documents = (d for batch in _batches(drawn) for d in self._speak(batch, report.counts))
        write_documents(self.folder, task, documents)
        return report

    def _draw(self, document: TextDocument) -> _Named:
        config = self.config
        seed = hash64(config.seed, document.id, document.text)  # ids may occur twice
        rng = np.random.default_rng(seed)
        drawn = draw(document.text, config.speech_ratio, config.mean_span_words, rng, config.policy)
        voices = self.synthesizer.speakers
        voice = voices[hash64(seed, "speaker") % len(voices)] if voices else None
        return _Named(document.id, seed, drawn, voice)

    def _speak(self, batch: list[_Named], counts: Counter[str]) -> Iterator[Document]:
        config = self.config
        spans = [(d.seed, i) for d in batch for i in range(len(d.spans))]
        texts = [" ".join(part.text.split()) for d in batch for part in d.spans]
        seeds = [[hash64(seed, i, attempt) for seed, i in spans] for attempt in range(config.tries)]
        voices = [d.voice for d in batch for _ in d.spans if d.voice is not None] or None
        outcomes = iter(gate.say(self.synthesizer, texts, seeds, self.reader, config.max_wer, voices))
        for d in batch:
            spoken = [(part, next(outcomes) if part.spoken else None) for part in d.drawn.parts]
            counts.update({f"unspeakable {kind}": n for kind, n in d.drawn.unspeakable_words.items()})
            counts["documents_left_whole"] += d.drawn.left_whole
            for _, outcome in spoken:
                if outcome is not None:
                    tally.count_span(outcome, counts)
            yield self._document(d, [(part, outcome.kept if outcome else None) for part, outcome in spoken], counts)

    def _document(self, named: _Named, spoken: list[tuple[Part, Said | None]], counts: Counter[str]) -> Document:
        """The document of parts with what was said of them."""
        segments = segments_of((part, said.codes if said else None) for part, said in spoken)
        kept = [(part, said) for part, said in spoken if said is not None]
        num_words = sum(part.num_words for part, _ in spoken)
        spoken_words = sum(part.num_words for part, _ in kept)
        num_codes = sum(len(said.codes) for _, said in kept)
        tally.count_document(num_words, spoken_words, num_codes, counts)
        ratio = spoken_words / num_words if num_words else 0.0
        meta = Meta(ratio, num_words, num_codes / self.synthesizer.frame_rate_hz, speaker=named.voice if kept else None)
        return Document(named.id, "interleaved", segments, meta if self.reader is None else _measured(meta, kept))


def _measured(meta: Meta, kept: list[tuple[Part, Said]]) -> Meta:
    """With the error rates of what is spoken, and their mean over its words."""
    rates = [said.errors.rate if said.errors else None for _, said in kept]
    known = [(rate, part.num_words) for rate, (part, _) in zip(rates, kept, strict=True) if rate is not None]
    wer = sum(rate * n for rate, n in known) / sum(n for _, n in known) if known else None
    return replace(meta, wer=wer, span_wer=rates)


@dataclass(frozen=True)
class _Named:
    """A document with its spans drawn and not yet spoken, the seed of its speech, and who is to speak them."""

    id: str
    seed: int
    drawn: Drawn
    voice: str | None

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
