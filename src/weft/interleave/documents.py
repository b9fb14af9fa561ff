"""Documents without synthesis: text, and recorded speech with or without its transcript.

    run(DocumentsConfig(kind="asr", source=(Path("runs/codes"),), out=Path("runs/asr")))

text    a text corpus, one text segment per document
speech  a codes dataset, one speech segment per utterance; consecutive utterances of one `source` form a document
asr     speech, then its transcript, which alone is trained on (section 3 of the paper)
tts     a transcript, then its speech, which alone is trained on
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal

from weft import artifacts
from weft.artifacts import Manifest
from weft.config import FLAT, NOT_IN_PLAN, PositiveInt
from weft.data import job
from weft.data.corpus import TextCorpus
from weft.data.datasets import Rows, tokenizer_parent, write_document_part
from weft.data.job import JobConfig, Report
from weft.errors import UserError
from weft.plan import Draft, Plan, create
from weft.records import CodedUtterance, Document, Meta, Segment
from weft.text.segment import num_words

_BYTES_PER_TASK = 32 << 20
_ROWS_PER_TASK = 50_000


@dataclass(frozen=True)
class DocumentsConfig:
    """Kind and source of documents."""

    kind: Literal["text", "speech", "asr", "tts"]
    """Kind of document."""
    source: tuple[str | Path, ...]
    """For text, files, directories and URLs: .txt, .jsonl (.gz, .zst), .parquet, .arrow. Otherwise, codes datasets."""
    out: Path
    """Output directory for the documents."""
    tasks: PositiveInt | None = None
    """Number of tasks; not set: one per 32 MiB of text or 50,000 utterances."""
    job: Annotated[JobConfig, FLAT, NOT_IN_PLAN] = field(default_factory=JobConfig)
    licence: Annotated[str | None, NOT_IN_PLAN] = None
    """Licence of the text, passed on to the notes of everything made from it."""


def run(config: DocumentsConfig) -> Manifest:
    """Create the artifact `config.out`.

    Raises UserError for sources without content for such documents, and for codes of different tokenizers.
    """
    source: TextCorpus | Rows
    inputs: dict[str, Any] = {}
    if config.kind == "text":
        source, parents = TextCorpus.of(*config.source), {}
        inputs["corpus"] = source.identity
        tasks = config.tasks or job.tasks_for(source.size_bytes, _BYTES_PER_TASK)
    else:
        if len({Path(folder).resolve() for folder in config.source}) < len(config.source):
            raise UserError(f"{', '.join(map(str, config.source))} contain a dataset twice: give each once")
        codes = {str(folder): artifacts.read_parent(Path(folder), "codes") for folder in config.source}
        source, parents = Rows.of(*map(Path, config.source)), tokenizer_parent(codes)
        parents |= {f"codes {i}": manifest for i, manifest in enumerate(codes.values(), 1)}
        tasks = config.tasks or job.tasks_for(len(source), _ROWS_PER_TASK)

    def write(draft: Draft) -> None:
        work = _MakeDocuments(config.kind, source, draft.folder, tasks)
        report = job.run(work, draft, tasks, config.job, f"{config.kind} documents")
        draft.counts.update(_summary(report, config))

    plan = Plan.of("documents", config, parents, **inputs, tasks=tasks)
    return create(config.out, plan, write, config.licence)


@dataclass
class _MakeDocuments:
    """A task: convert a range of the source to one part of documents."""

    kind: str
    source: TextCorpus | Rows
    folder: Path
    num_tasks: int

    def __call__(self, task: int) -> Report:
        report = Report()
        report.written = write_document_part(self.folder, task, self._counted(self._documents(task, report), report))
        return report

    def _documents(self, task: int, report: Report) -> Iterator[Document]:
        if isinstance(self.source, TextCorpus):
            for text in self.source.read(job.task_range(self.source.size_bytes, task, self.num_tasks), report.skipped):
                meta = Meta(0.0, num_words(text.text))
                yield Document(text.id, "text", (Segment.of_text(text.text),), meta)
            return
        indices = job.task_range(len(self.source), task, self.num_tasks)
        if self.kind == "speech":
            for utterances in _recordings(self.source, indices):
                with_codes = [u for u in utterances if u.codes]
                report.counts["without_codes"] += len(utterances) - len(with_codes)
                if with_codes:
                    yield _speech(with_codes)
            return
        for utterance in self.source.utterances(indices):
            if not utterance.codes:
                report.counts["without_codes"] += 1
            elif utterance.text and utterance.text.strip():
                yield _pair(self.kind, utterance)
            else:
                report.counts["without_text"] += 1

    def _counted(self, documents: Iterable[Document], report: Report) -> Iterator[Document]:
        for document in documents:
            codes = sum(len(s.codes) for s in document.segments if s.codes is not None)
            report.counts.update({"documents": 1, "words": document.meta.words or 0, "speech_codes": codes})
            yield document


def _pair(kind: str, utterance: CodedUtterance) -> Document:
    """Return an utterance with its transcript. The speech segment has no text, so the document's text occurs once."""
    text = (utterance.text or "").strip()
    asr = kind == "asr"
    speech, written = Segment.of_speech(utterance.codes, loss=not asr), Segment.of_text(text, loss=asr)
    segments = (speech, written) if asr else (written, speech)
    meta = Meta(None, num_words(text), utterance.seconds, None, utterance.speaker, utterance.source)
    return Document(utterance.id, kind, segments, meta)


def _recordings(rows: Rows, indices: range) -> Iterator[list[CodedUtterance]]:
    """Yield the utterances of each recording that begins in the rows `indices`; the last one may end after them."""
    before = next(rows.utterances(range(indices.start - 1, indices.start))).source if indices.start else None
    numbered = enumerate(rows.utterances(range(indices.start, len(rows))), indices.start)
    for _, run in groupby(numbered, key=lambda pair: pair[1].source or pair[0]):
        numbers, utterances = zip(*run, strict=True)
        if numbers[0] >= indices.stop:
            return
        if numbers[0] > indices.start or before is None or before != utterances[0].source:
            yield list(utterances)  # otherwise an earlier task yields the recording


def _speech(utterances: list[CodedUtterance]) -> Document:
    """Return consecutive utterances of one recording as a document, with texts joined by spaces."""
    segments: list[Segment] = []
    for u in utterances:
        text = f" {u.text.strip()}" if u.text and segments else u.text
        segments.append(Segment.of_speech(u.codes, text))
    first, speakers = utterances[0], {u.speaker for u in utterances}
    seconds = [u.seconds for u in utterances if u.seconds is not None]
    words = sum(num_words(u.text or "") for u in utterances) if all(u.text for u in utterances) else None
    meta = Meta(
        speech_ratio=1.0,
        words=words,
        seconds=sum(seconds) if len(seconds) == len(utterances) else None,
        speaker=first.speaker if len(speakers) == 1 else None,
        source=first.source,
    )
    return Document(first.id, "speech", tuple(segments), meta)


def _summary(report: Report, config: DocumentsConfig) -> dict[str, Any]:
    if not report.counts["documents"]:
        missing = {"transcripts": "without_text", "codes": "without_codes"}
        what = next((what for what, name in missing.items() if report.counts[name]), "content")
        raise UserError(
            f"{', '.join(map(str, config.source))} has no {what} for {config.kind} documents: give another source"
        )
    return {**report.counts, "skipped_documents": report.skipped.num_bad}
