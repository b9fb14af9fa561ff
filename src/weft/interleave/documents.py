"""Documents that need no synthesis: plain text, and recorded speech with or without its transcript.

run(DocumentsConfig(kind="asr", source=(Path("runs/codes"),), out=Path("runs/asr")))

text    a text corpus, one text segment a document
speech  a codes dataset, one speech segment an utterance; consecutive ones of one `source` are one document
asr     speech, then its transcript, which alone is trained on (section 3 of arXiv 2411.17607)
tts     a transcript, then its speech, which alone is trained on
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from weft import artifacts
from weft.artifacts import Manifest
from weft.config import Count, Share
from weft.data import job
from weft.data.cluster import HERE, Executor
from weft.data.corpus import TextCorpus
from weft.data.job import Report
from weft.data.shards import Rows, tokenizer_of, write_documents
from weft.errors import UserError
from weft.interleave.words import num_words
from weft.records import CodedUtterance, Document, Meta, Segment

_BYTES_PER_TASK = 32 << 20
_ROWS_PER_TASK = 50_000


@dataclass(frozen=True)
class DocumentsConfig:
    """What documents to make, and of what."""

    kind: Literal["text", "speech", "asr", "tts"]
    """Kind of document."""
    source: tuple[str | Path, ...]
    """For text a corpus: .txt, .jsonl (.gz, .zst), .parquet, .arrow files, folders, URLs; else codes datasets."""
    out: Path
    """Folder to write the documents to."""
    tasks: Count | None = None
    """Parts the work is cut into; by default one for 32 MiB of text, or 50,000 utterances."""
    workers: Count = 1
    """Processes; on a cluster, jobs at a time."""
    executor: Executor = HERE
    """Where they run."""
    max_bad_share: Share = 0.01
    """Share of unreadable texts above which the job fails."""
    licence: str | None = None
    """Licence of the text, which the notes of all that is made of it will tell."""


def run(config: DocumentsConfig) -> Manifest:
    """Make the artifact `config.out`; one that is made already by the same plan is left as it is.

    Raises UserError for sources without anything that makes such a document, or of different tokenizers.
    """
    source: TextCorpus | Rows
    settings: dict[str, Any] = {"kind": config.kind}
    if config.kind == "text":
        source, parents = TextCorpus.of(*config.source), {}
        settings["corpus"] = source.identity
        tasks = config.tasks or job.tasks_for(source.size_bytes, _BYTES_PER_TASK)
    else:
        if len({Path(folder).resolve() for folder in config.source}) < len(config.source):
            raise UserError(f"{', '.join(map(str, config.source))}: a dataset is given twice: give each once")
        codes = {str(folder): artifacts.read(Path(folder), "codes") for folder in config.source}
        source, parents = Rows.of(*map(Path, config.source)), tokenizer_of(codes)
        parents |= {f"codes {i}": manifest for i, manifest in enumerate(codes.values(), 1)}
        tasks = config.tasks or job.tasks_for(len(source), _ROWS_PER_TASK)
    settings["tasks"] = tasks
    if artifacts.is_made(config.out, "documents", settings, parents):
        return artifacts.read(config.out)
    with artifacts.build(config.out, "documents", settings, parents, config.licence) as draft:
        work = _Make(config.kind, source, draft.folder, tasks)
        title = f"{config.kind} documents"
        report = job.run(work, draft.folder, tasks, config.workers, title, config.max_bad_share, config.executor)
        draft.counts.update(_summary(report, config))
    return artifacts.read(config.out)


@dataclass
class _Make:
    """The work of a task: its share of the source, as one part of documents."""

    kind: str
    source: TextCorpus | Rows
    folder: Path
    num_tasks: int

    def __call__(self, task: int) -> Report:
        report = Report()
        write_documents(self.folder, task, self._counted(self._documents(task, report), report))
        return report

    def _documents(self, task: int, report: Report) -> Iterator[Document]:
        if isinstance(self.source, TextCorpus):
            for text in self.source.read(job.share(self.source.size_bytes, task, self.num_tasks), report.skipped):
                meta = Meta(0.0, num_words(text.text))
                yield Document(text.id, "text", (Segment.of_text(text.text),), meta)
            return
        mine = job.share(len(self.source), task, self.num_tasks)
        if self.kind == "speech":
            for utterances in _recordings(self.source, mine):
                spoken = [u for u in utterances if u.codes]
                report.counts["without_codes"] += len(utterances) - len(spoken)
                if spoken:
                    yield _speech(spoken)
            return
        for utterance in self.source.utterances(mine):
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
    """An utterance with its transcript. The speech segment has no text, so that the document's text is said once."""
    text = (utterance.text or "").strip()
    asr = kind == "asr"
    speech, written = Segment.of_speech(utterance.codes, loss=not asr), Segment.of_text(text, loss=asr)
    segments = (speech, written) if asr else (written, speech)
    meta = Meta(None, num_words(text), utterance.seconds, None, utterance.speaker, utterance.source)
    return Document(utterance.id, kind, segments, meta)


def _recordings(rows: Rows, mine: range) -> Iterator[list[CodedUtterance]]:
    """Runs of utterances of one recording, those that begin in the rows `mine`, whole."""
    before = next(rows.utterances(range(mine.start - 1, mine.start))).source if mine.start else None
    numbered = enumerate(rows.utterances(range(mine.start, len(rows))), mine.start)
    for _, run in groupby(numbered, key=lambda pair: pair[1].source or pair[0]):
        numbers, utterances = zip(*run, strict=True)
        if numbers[0] >= mine.stop:
            return
        if numbers[0] > mine.start or before is None or before != utterances[0].source:
            yield list(utterances)  # else it began in an earlier share, which takes it whole


def _speech(utterances: list[CodedUtterance]) -> Document:
    """Utterances of one recording, in order, each a speech segment; texts are joined as texts are, before a space."""
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
        lacking = {"no transcripts": "without_text", "no codes": "without_codes"}
        why = next((said for said, name in lacking.items() if report.counts[name]), "nothing to read")
        raise UserError(f"{', '.join(map(str, config.source))}: {why} for {config.kind} documents; give another source")
    return {**report.counts, "skipped_documents": report.skipped.num_bad}
