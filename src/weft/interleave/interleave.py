"""Interleaved data: text whose random spans are replaced by speech codes of a text-to-token model.

    manifest = run(InterleaveConfig(corpus=(Path("books"),), out=Path("runs/x"), text_to_token=Path("runs/t2t")))

The documents do not depend on a language model. `weft.interleave.aligned` creates such documents from recordings with
word times. Source: the paper, section 3.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from weft import artifacts
from weft.artifacts import Manifest
from weft.data import job
from weft.data.corpus import TextCorpus
from weft.data.datasets import tokenizer_parent, write_document_part
from weft.data.file_range import TextDocument
from weft.data.job import Report
from weft.errors import UserError
from weft.interleave import statistics
from weft.interleave.config import InterleaveConfig
from weft.interleave.spans import Selection, TextSpan, hash64, segments_of, select
from weft.plan import Draft, Plan, create
from weft.records import Document, Meta
from weft.text.segment import segmenter
from weft.text_to_token import wer_filter
from weft.text_to_token.wer_filter import CodesSynthesizer, CodesTranscriber, Synthesis

_BYTES_PER_TASK = 256 << 10  # about 1300 spans: full batches, and little to repeat after a kill
_SPANS_PER_CALL = 4096


def load_synthesizer(folder: Path, url: str | None = None) -> CodesSynthesizer:
    """Load a text-to-token model. Its libraries are imported here, in the workers."""
    from weft.text_to_token.synthesize import Synthesizer

    return Synthesizer.from_pretrained(folder, url)


def load_transcriber(folder: Path) -> CodesTranscriber:
    """Load a speech tokenizer. Its libraries are imported here, in the workers."""
    from weft.tokenizer.tokenizer import SpeechTokenizer

    return SpeechTokenizer.from_pretrained(folder)


def run(
    config: InterleaveConfig,
    load_synthesizer: Callable[[Path, str | None], CodesSynthesizer] = load_synthesizer,
    load_transcriber: Callable[[Path], CodesTranscriber] = load_transcriber,
) -> Manifest:
    """Create the artifact `config.out`.

    Raises UserError for a corpus without documents or with too many bad ones, and for a tokenizer that cannot
    transcribe or is not that of the text-to-token model.
    """
    if config.text_to_token is None:
        from weft.interleave import aligned  # imports torch

        return aligned.run(config)
    model_folder = config.text_to_token
    model = artifacts.read_parent(model_folder, "text_to_token")
    if config.tokenizer is not None:
        _check_transcriber(config.tokenizer, model)
    parents = {"text_to_token": model, **tokenizer_parent({"text_to_token": model})}
    corpus = TextCorpus.of(*config.corpus)
    tasks = config.tasks or job.tasks_for(corpus.size_bytes, _BYTES_PER_TASK)
    plan = Plan.of(
        "documents",
        config,
        parents,
        corpus=corpus.identity,
        segmenter=segmenter(),
        read_back=config.tokenizer is not None,
        by_url=config.url is not None,
        tasks=tasks,
    )

    def write(draft: Draft) -> None:
        load = partial(load_synthesizer, model_folder, config.url)
        work = _Interleave(config, corpus, draft.folder, tasks, load, load_transcriber)
        report = job.run(work, draft, tasks, config.job, "interleave")
        size_bytes = sum(part.stat().st_size for part in draft.folder.glob("part-*.parquet"))
        draft.counts.update(statistics.summary(report, size_bytes, config.tokenizer is not None))
        statistics.report_text(draft.counts, config.speech_ratio)

    return create(config.out, plan, write, config.licence)


def _check_transcriber(folder: Path, model: Manifest) -> None:
    from weft.tokenizer.artifact import load_bottleneck_config

    artifacts.require_parent(model, "tokenizer", artifacts.read_parent(folder, "tokenizer"))
    if load_bottleneck_config(folder).encoder_only:
        raise UserError(f"{folder} is encoder_only and cannot transcribe codes: remove tokenizer and max_wer")


@dataclass
class _Interleave:
    """A task: read a part of the corpus, select spans, synthesize them in large batches, and write one part."""

    config: InterleaveConfig
    corpus: TextCorpus
    folder: Path
    num_tasks: int
    load_synthesizer: Callable[[], CodesSynthesizer]
    load_transcriber: Callable[[Path], CodesTranscriber]

    @cached_property
    def synthesizer(self) -> CodesSynthesizer:
        return self.load_synthesizer()

    @cached_property
    def transcriber(self) -> CodesTranscriber | None:
        return None if self.config.tokenizer is None else self.load_transcriber(self.config.tokenizer)

    def __call__(self, task: int) -> Report:
        report = Report()
        texts = self.corpus.read(job.task_range(self.corpus.size_bytes, task, self.num_tasks), report.skipped)
        selected = (self._select(text) for text in texts)
        documents = (d for batch in _batches(selected) for d in self._synthesize(batch, report.counts))
        report.written = write_document_part(self.folder, task, documents)
        return report

    def _select(self, document: TextDocument) -> _Selected:
        config = self.config
        seed = hash64(config.seed, document.id, document.text)  # ids may repeat
        rng = np.random.default_rng(seed)
        selection = select(document.text, config.speech_ratio, config.mean_span_words, rng, config.policy)
        voices = self.synthesizer.speakers
        voice = voices[hash64(seed, "speaker") % len(voices)] if voices else None
        return _Selected(document.id, seed, selection, voice)

    def _synthesize(self, batch: list[_Selected], counts: Counter[str]) -> Iterator[Document]:
        config = self.config
        spans = [(d.seed, i) for d in batch for i in range(len(d.spans))]
        texts = [" ".join(part.text.split()) for d in batch for part in d.spans]
        seeds = [[hash64(seed, i, attempt) for seed, i in spans] for attempt in range(config.tries)]
        voices = [d.voice for d in batch for _ in d.spans if d.voice is not None] or None
        outcomes = iter(wer_filter.synthesize(self.synthesizer, texts, seeds, self.transcriber, config.max_wer, voices))
        for d in batch:
            parts = [(part, next(outcomes) if part.spoken else None) for part in d.selection.parts]
            counts.update({f"unspeakable {kind}": n for kind, n in d.selection.unspeakable_words.items()})
            counts["documents_left_whole"] += d.selection.left_whole
            for part, outcome in parts:
                if outcome is not None:
                    statistics.count_span(outcome, part.num_words, counts)
            yield self._document(d, [(part, outcome.kept if outcome else None) for part, outcome in parts], counts)

    def _document(
        self, selected: _Selected, parts: list[tuple[TextSpan, Synthesis | None]], counts: Counter[str]
    ) -> Document:
        """Return the document of parts with their synthesized codes."""
        segments = segments_of((part, synthesis.codes if synthesis else None) for part, synthesis in parts)
        kept = [(part, synthesis) for part, synthesis in parts if synthesis is not None]
        num_words = sum(part.num_words for part, _ in parts)
        spoken_words = sum(part.num_words for part, _ in kept)
        num_codes = sum(len(synthesis.codes) for _, synthesis in kept)
        statistics.count_document(num_words, spoken_words, num_codes, counts)
        meta = Meta(
            speech_ratio=spoken_words / num_words if num_words else 0.0,
            words=num_words,
            seconds=num_codes / self.synthesizer.frame_rate_hz,
            speaker=selected.voice if kept else None,
        )
        meta = meta if self.transcriber is None else _with_error_rates(meta, kept)
        return Document(selected.id, "interleaved", segments, meta)


def _with_error_rates(meta: Meta, kept: list[tuple[TextSpan, Synthesis]]) -> Meta:
    """Add the error rates of the spans, and their mean weighted by words."""
    rates = [synthesis.errors.rate if synthesis.errors else None for _, synthesis in kept]
    known = [(rate, part.num_words) for rate, (part, _) in zip(rates, kept, strict=True) if rate is not None]
    wer = sum(rate * n for rate, n in known) / sum(n for _, n in known) if known else None
    return replace(meta, wer=wer, span_wer=rates)


@dataclass(frozen=True)
class _Selected:
    """A document with its selected spans, the seed of its speech, and the voice."""

    id: str
    seed: int
    selection: Selection
    voice: str | None

    @property
    def spans(self) -> list[TextSpan]:
        return [part for part in self.selection.parts if part.spoken]


def _batches(selected: Iterable[_Selected]) -> Iterator[list[_Selected]]:
    batch: list[_Selected] = []
    num_spans = 0
    for document in selected:
        batch.append(document)
        num_spans += len(document.spans)
        if num_spans >= _SPANS_PER_CALL:
            yield batch
            batch, num_spans = [], 0
    if batch:
        yield batch
