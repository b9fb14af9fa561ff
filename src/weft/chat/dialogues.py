"""Spoken dialogues from written ones, synthesized by a text-to-token model.

    run(DialoguesConfig(source=(Path("dialogues.jsonl"),), text_to_token=Path("runs/t2t"), out=Path("runs/dialogues")))

A dialogue is a line of JSON in one of the formats of `weft.chat.formats`. A turn of the user becomes speech. An answer
becomes text and speech, which alternate in the ids of a language model (`weft.alternation`). A system turn stays text.
Only answers are trained on.

Source: SpeechDialog-90K of the paper, with the streaming answers of GLM-4-Voice (arXiv 2412.02612).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from weft import artifacts, progress
from weft.artifacts import Manifest
from weft.chat.formats import parse_dialogue
from weft.chat.lines import lines_in
from weft.config import FLAT, NOT_IN_PLAN, NonNegativeInt, PositiveInt
from weft.data import job
from weft.data.corpus import TextCorpus
from weft.data.datasets import tokenizer_parent, write_document_part
from weft.data.job import JobConfig, Report
from weft.errors import UserError
from weft.interleave.interleave import load_synthesizer
from weft.interleave.spans import hash64
from weft.plan import Draft, Plan, create
from weft.records import Document, Meta, Segment
from weft.text.segment import num_words
from weft.text_to_token.wer_filter import CodesSynthesizer

_DIALOGUES_PER_TASK = 200  # about 600 turns: full batches, and little to repeat after a kill


@dataclass(frozen=True)
class DialoguesConfig:
    """Written dialogues, and the model and the voices of their speech."""

    source: tuple[str | Path, ...]
    """Dialogues as JSON lines: .jsonl (.gz, .zst) files and directories of them."""
    text_to_token: Path
    """Directory of the text-to-token model that synthesizes both roles."""
    out: Path
    """Output directory for the documents."""
    user: str | None = None
    """Speaker of the user, if the model has several; not set: another than the assistant's for each dialogue."""
    assistant: str | None = None
    """Speaker of the assistant, if the model has several; not set: the one with most training data."""
    seed: NonNegativeInt = 0
    """Seed of the speech and of the users' voices."""
    tasks: PositiveInt | None = None
    """Number of tasks, each repeated from its start after a kill; not set: one per 200 dialogues."""
    job: Annotated[JobConfig, FLAT, NOT_IN_PLAN] = field(default_factory=JobConfig)
    licence: Annotated[str | None, NOT_IN_PLAN] = None
    """Licence of the dialogues, passed on to the notes of everything made from them."""


def run(config: DialoguesConfig, load: Callable[[Path], CodesSynthesizer] = load_synthesizer) -> Manifest:
    """Create the artifact `config.out`.

    A dialogue ends before the first exchange that the model cannot synthesize, and is left out if no answer remains;
    both are counted. Raises UserError for sources without dialogues or with too many bad ones, and for unknown voices.
    """
    model = artifacts.read_parent(config.text_to_token, "text_to_token")
    parents = {"text_to_token": model, **tokenizer_parent({"text_to_token": model})}
    corpus = TextCorpus.of(*config.source)
    num_lines = sum(1 for _ in lines_in(corpus))
    if not num_lines:
        raise UserError(f"{', '.join(map(str, config.source))} has only blank lines: write one dialogue per line")
    tasks = config.tasks or job.tasks_for(num_lines, _DIALOGUES_PER_TASK)

    def write(draft: Draft) -> None:
        work = _SpeakDialogues(config, corpus, num_lines, draft.folder, tasks, load)
        draft.counts.update(_summary(job.run(work, draft, tasks, config.job, "dialogues")))

    plan = Plan.of("documents", config, parents, source=corpus.identity, dialogues=num_lines, tasks=tasks)
    return create(config.out, plan, write, config.licence)


@dataclass
class _SpeakDialogues:
    """A task: read a range of the dialogues, synthesize them in one batch, and write one part."""

    config: DialoguesConfig
    corpus: TextCorpus
    num_lines: int
    folder: Path
    num_tasks: int
    load: Callable[[Path], CodesSynthesizer]

    @cached_property
    def synthesizer(self) -> CodesSynthesizer:
        return self.load(self.config.text_to_token)

    def __call__(self, task: int) -> Report:
        report = Report()
        dialogues = list(self._read(task, report))
        report.written = write_document_part(self.folder, task, self._documents(dialogues, report.counts))
        return report

    def _read(self, task: int, report: Report) -> Iterator[Document]:
        """Yield written dialogues, whose turns are text segments."""
        indices = job.task_range(self.num_lines, task, self.num_tasks)
        report.skipped.total_bytes = self.corpus.size_bytes if task == 0 else 0
        for line in islice(lines_in(self.corpus), indices.start, indices.stop):
            if line.problem is not None:
                report.skipped.add(line.where, line.problem, num_bytes=line.lost_bytes)
                continue
            try:
                dialogue = parse_dialogue(line.content, line.default_id)
            except ValueError as e:
                report.skipped.add(line.where, str(e))
                continue
            report.skipped.num_good += 1
            yield dialogue

    def _documents(self, dialogues: Sequence[Document], counts: Counter[str]) -> Iterator[Document]:
        turns = [(d.id, i, turn) for d in dialogues for i, turn in _spoken_turns(d.segments)]
        texts = [" ".join((turn.text or "").split()) for _, _, turn in turns]
        seeds = [hash64(self.config.seed, name, i) for name, i, _ in turns]
        voices = {d.id: self._voices(d.id) for d in dialogues}
        speakers = [voices[name][turn.role or "user"] for name, _, turn in turns if voices[name]] or None
        codes = iter(self.synthesizer.synthesize(texts, seeds, speakers) if turns else ())
        for dialogue in dialogues:
            speech = {i: next(codes) for i, _ in _spoken_turns(dialogue.segments)}
            kept = _before_failure(dialogue.segments, speech)
            if len(kept) < len(dialogue.segments):
                counts["shortened_documents" if kept else "rejected_documents"] += 1
            if kept:
                spoken = {i: speech[i] or () for i, _ in _spoken_turns(kept)}
                words, num_codes = sum(num_words(t.text or "") for t in kept), sum(map(len, spoken.values()))
                counts.update({"documents": 1, "turns": len(spoken), "words": words, "speech_codes": num_codes})
                seconds = num_codes / self.synthesizer.frame_rate_hz
                meta = Meta(words=words, seconds=seconds, speaker=voices[dialogue.id].get("user"))
                yield Document(dialogue.id, "dialogue", _segments(kept, spoken), meta)

    def _voices(self, name: str) -> dict[str, str]:
        """Return the voice of each role of a dialogue; empty for a model without named voices."""
        config, known = self.config, self.synthesizer.speakers
        assistant = config.assistant or next(iter(known), config.user)
        if assistant is None:
            return {}
        users = [config.user] if config.user else [voice for voice in known if voice != assistant] or [assistant]
        return {"assistant": assistant, "user": users[hash64(config.seed, name, "user") % len(users)]}


def _spoken_turns(turns: Iterable[Segment]) -> Iterator[tuple[int, Segment]]:
    """Yield the turns that are spoken, with their indices."""
    return ((i, turn) for i, turn in enumerate(turns) if turn.role != "system")


def _before_failure(turns: tuple[Segment, ...], speech: Mapping[int, Sequence[int] | None]) -> tuple[Segment, ...]:
    """Return all turns or, if one could not be synthesized, those up to the last answer before it."""
    failed = next((i for i, codes in speech.items() if not codes), len(turns))
    if failed == len(turns):
        return turns
    answers = [i for i in range(failed) if turns[i].role == "assistant"]
    return turns[: answers[-1] + 1] if answers else ()


def _segments(turns: Iterable[Segment], codes: Mapping[int, Sequence[int]]) -> tuple[Segment, ...]:
    """Return turns with the codes of those that are spoken. The text of an answer occurs once."""
    segments: list[Segment] = []
    for i, turn in enumerate(turns):
        if turn.role == "user":
            segments.append(Segment.of_speech(codes[i], turn.text, "user", loss=False))
        else:
            segments.append(turn)
        if turn.role == "assistant":
            segments.append(Segment.of_speech(codes[i], None, "assistant"))
    return tuple(segments)


def _summary(report: Report) -> dict[str, Any]:
    """Return the counts of the manifest; `tokens_per_sec` is the speed of a worker in speech codes."""
    counts = report.counts
    if not counts["documents"]:
        raise UserError(
            f"no dialogue could be synthesized ({counts['rejected_documents']} have no exchange that succeeded): "
            "give other dialogues, or train the text-to-token model longer"
        )
    if counts["rejected_documents"] > counts["documents"]:
        progress.note(
            f"warning: {counts['rejected_documents']} dialogues have no exchange that succeeded, and only "
            f"{counts['documents']} are kept: train the text-to-token model longer"
        )
    names = ("documents", "turns", "words", "speech_codes", "shortened_documents", "rejected_documents")
    return {
        **{name: counts[name] for name in names},
        "skipped_documents": report.skipped.num_bad,
        "tokens_per_sec": round(counts["speech_codes"] / report.busy_sec, 1),
    }
