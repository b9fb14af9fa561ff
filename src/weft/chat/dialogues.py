"""Written dialogues become spoken ones, by a text-to-token model: what a language model learns conversation from.

    run(DialoguesConfig(source=(Path("dialogues.jsonl"),), text_to_token=Path("runs/t2t"), out=Path("runs/dialogues")))

A dialogue is one line of JSON: {"id": ..., "turns": [{"role": "user", "text": ...}, {"role": "assistant", ...}]}. The
user is heard, so a user's turn is speech; an answer is its text and its speech, which the vocabulary of a language
model weaves (`weft.rhythm`); a system turn stays text. Only answers are trained on.

Source: SpeechDialog-90K of arXiv 2411.17607, with the streaming answers of GLM-4-Voice (arXiv 2412.02612).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from weft import artifacts
from weft.artifacts import Manifest
from weft.config import Count, Natural, Share
from weft.data import job
from weft.data.corpus import TextCorpus
from weft.data.formats import Piece, suffix_of, unpacked
from weft.data.job import Report
from weft.data.shards import tokenizer_of, write_documents
from weft.errors import UserError
from weft.interleave.interleave import Synthesizer, load_synthesizer
from weft.interleave.spans import hash64
from weft.interleave.words import num_words
from weft.records import ROLES, Document, Meta, Segment

_DIALOGUES_PER_TASK = 200  # some 600 turns: enough to batch, and little to lose to a kill
_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")


@dataclass(frozen=True)
class DialoguesConfig:
    """What dialogues to speak, and with what."""

    source: tuple[str | Path, ...]
    """Dialogues as JSON lines: .jsonl (.gz, .zst) files and folders of them."""
    text_to_token: Path
    """Folder of the text-to-token model that speaks both sides."""
    out: Path
    """Folder to write the documents to."""
    user: str | None = None
    """Name of the user's voice, where the text-to-token model knows several; by default each dialogue draws one that is
    not the assistant's, by the seed."""
    assistant: str | None = None
    """Name of the assistant's voice, where the model knows several; by default the one it heard most of."""
    seed: Natural = 0
    """Seed of the speech, and of the users' voices."""
    tasks: Count | None = None
    """Parts the work is cut into, each redone from its start after a kill; by default one for 200 dialogues."""
    workers: Count = 1
    """Processes, each with its own copy of the model; with 1, all happens in this one."""
    max_bad_share: Share = 0.01
    """Share of unreadable dialogues above which the job fails."""
    licence: str | None = None
    """Licence of the dialogues, which the notes of all that is made of it will tell."""


def run(config: DialoguesConfig, load: Callable[[Path], Synthesizer] = load_synthesizer) -> Manifest:
    """Make the artifact `config.out`; one that is made already by the same plan is left as it is.

    A dialogue ends before the first exchange that the model cannot say, and is left out when that leaves no answer;
    both are counted. Raises UserError for sources without dialogues or with too many bad ones, and for voices that the
    model does not know.
    """
    speaker = artifacts.read(config.text_to_token, "text_to_token")
    parents = {"text_to_token": speaker, **tokenizer_of({"text_to_token": speaker})}
    corpus = TextCorpus.of(*config.source)
    num_lines = sum(1 for _ in _lines(corpus))
    if not num_lines:
        raise UserError(f"{', '.join(map(str, config.source))}: every line is blank, and each is to be a dialogue")
    tasks = config.tasks or job.tasks_for(num_lines, _DIALOGUES_PER_TASK)
    settings = {"source": corpus.identity, "dialogues": num_lines, "seed": config.seed, "tasks": tasks}
    settings |= {role: name for role, name in (("user", config.user), ("assistant", config.assistant)) if name}
    if artifacts.is_made(config.out, "documents", settings, parents):
        return artifacts.read(config.out)
    with artifacts.build(config.out, "documents", settings, parents, config.licence) as draft:
        work = _Speak(config, corpus, num_lines, draft.folder, tasks, load)
        report = job.run(work, draft.folder, tasks, config.workers, "dialogues", config.max_bad_share)
        draft.counts.update(_summary(report))
    return artifacts.read(config.out)


@dataclass(frozen=True)
class _Line:
    """A line of a file of dialogues; `number` counts from 1."""

    file: Piece
    number: int
    content: bytes

    @property
    def where(self) -> str:
        return f"{self.file.path} line {self.number}"


def _lines(corpus: TextCorpus) -> Iterator[_Line]:
    """Every line that is not blank."""
    for file in corpus.files:
        if suffix_of(file.path) not in _SUFFIXES:
            raise UserError(f"{file.path} is no file of dialogues: give JSON lines, as {', '.join(_SUFFIXES)}")
        try:
            with file.open() as f, unpacked(f, file.path) as lines:
                for number, line in enumerate(lines, 1):
                    if line := line.removeprefix(b"\xef\xbb\xbf").strip():
                        yield _Line(file, number, line)
        except (OSError, pa.ArrowException) as e:
            raise UserError(f"{file.path} cannot be read ({str(e).splitlines()[0]}): is it whole?") from e


@dataclass(frozen=True)
class _Written:
    """A dialogue not yet spoken: all its turns are text segments."""

    id: str
    turns: tuple[Segment, ...]


@dataclass
class _Speak:
    """The work of a task: read its share of the dialogues, speak them in one batch, write one part."""

    config: DialoguesConfig
    corpus: TextCorpus
    num_lines: int
    folder: Path
    num_tasks: int
    load: Callable[[Path], Synthesizer]

    @cached_property
    def synthesizer(self) -> Synthesizer:
        return self.load(self.config.text_to_token)

    def __call__(self, task: int) -> Report:
        report = Report()
        written = list(self._read(task, report))
        write_documents(self.folder, task, self._documents(written, report.counts))
        return report

    def _read(self, task: int, report: Report) -> Iterator[_Written]:
        mine = job.share(self.num_lines, task, self.num_tasks)
        for line in islice(_lines(self.corpus), mine.start, mine.stop):
            try:
                written = _parse(line)
            except ValueError as e:
                report.skipped.add(line.where, str(e))
                continue
            report.skipped.num_good += 1
            yield written

    def _documents(self, written: Sequence[_Written], counts: Counter[str]) -> Iterator[Document]:
        said = [(d.id, i, turn) for d in written for i, turn in _said(d)]
        texts = [" ".join((turn.text or "").split()) for _, _, turn in said]
        seeds = [hash64(self.config.seed, name, i) for name, i, _ in said]
        voices = {d.id: self._voices(d.id) for d in written}
        speakers = [voices[name][turn.role or "user"] for name, _, turn in said if voices[name]] or None
        codes = iter(self.synthesizer.speak(texts, seeds, speakers) if said else ())
        for dialogue in written:
            speech = {i: next(codes) for i, _ in _said(dialogue)}
            kept = _before_silence(dialogue.turns, speech)
            if len(kept) < len(dialogue.turns):
                counts["shortened_documents" if kept else "rejected_documents"] += 1
            if kept:
                made = _document(replace(dialogue, turns=kept), speech, self.synthesizer.frame_rate_hz, counts)
                yield replace(made, meta=replace(made.meta, speaker=voices[dialogue.id].get("user")))

    def _voices(self, name: str) -> dict[str, str]:
        """Who speaks for each role of a dialogue, by its id; nobody where the model knows no voice by name."""
        config, known = self.config, self.synthesizer.speakers
        assistant = config.assistant or next(iter(known), config.user)
        if assistant is None:
            return {}
        users = [config.user] if config.user else [voice for voice in known if voice != assistant] or [assistant]
        return {"assistant": assistant, "user": users[hash64(config.seed, name, "user") % len(users)]}


def _before_silence(turns: tuple[Segment, ...], speech: Mapping[int, Sequence[int] | None]) -> tuple[Segment, ...]:
    """All turns, or where one could not be said, those up to the last answer before it; none without an answer."""
    silent = next((i for i, codes in speech.items() if not codes), len(turns))
    if silent == len(turns):
        return turns
    answers = [i for i in range(silent) if turns[i].role == "assistant"]
    return turns[: answers[-1] + 1] if answers else ()


def _parse(line: _Line) -> _Written:
    """The dialogue of a line of JSON. Raises ValueError, which says what is wrong with it."""
    row = orjson.loads(line.content)
    turns = row.get("turns") if isinstance(row, Mapping) else None
    if not isinstance(turns, list):
        raise ValueError("no list of `turns`")
    segments = tuple(_turn(turn, number) for number, turn in enumerate(turns, 1))
    roles = [segment.role for segment in segments]
    if "assistant" not in roles:
        raise ValueError("the assistant has no turn")
    if repeated := [role for role, following in pairwise(roles) if role == following]:
        raise ValueError(f"two turns of {repeated[0]} follow one another: make them one")
    name = row.get("id")
    return _Written(f"{line.file.name}:{line.number}" if name is None else str(name), segments)


def _turn(turn: Any, number: int) -> Segment:
    role, text = (turn.get("role"), turn.get("text")) if isinstance(turn, Mapping) else (None, None)
    if role not in ROLES:
        raise ValueError(f"turn {number} has role {role!r}: give one of {', '.join(ROLES)}")
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"turn {number} has no text")
    return Segment.of_text(text.strip(), role, loss=role == "assistant")


def _said(dialogue: _Written) -> Iterator[tuple[int, Segment]]:
    """The turns that are spoken, with their places."""
    return ((i, turn) for i, turn in enumerate(dialogue.turns) if turn.role != "system")


def _document(
    dialogue: _Written, speech: Mapping[int, Sequence[int] | None], frame_rate_hz: float, counts: Counter[str]
) -> Document:
    """The document of a dialogue with the codes of its spoken turns. An answer's text is said once, as text."""
    codes = {i: speech[i] or () for i, _ in _said(dialogue)}
    segments: list[Segment] = []
    for i, turn in enumerate(dialogue.turns):
        if turn.role == "user":
            segments.append(Segment.of_speech(codes[i], turn.text, "user", loss=False))
        else:
            segments.append(turn)
        if turn.role == "assistant":
            segments.append(Segment.of_speech(codes[i], None, "assistant"))
    words, num_codes = sum(num_words(t.text or "") for t in dialogue.turns), sum(map(len, codes.values()))
    counts.update({"documents": 1, "turns": len(codes), "words": words, "speech_codes": num_codes})
    return Document(dialogue.id, "dialogue", tuple(segments), Meta(None, words, num_codes / frame_rate_hz))


def _summary(report: Report) -> dict[str, Any]:
    """The counts of the manifest; `tokens_per_sec` is a worker's speed in speech codes."""
    counts = report.counts
    if not counts["documents"]:
        raise UserError(
            f"no dialogue could be spoken ({counts['rejected_documents']} have no exchange that the model can say): "
            "give other dialogues, or train the text-to-token model longer"
        )
    names = ("documents", "turns", "words", "speech_codes", "shortened_documents", "rejected_documents")
    return {
        **{name: counts[name] for name in names},
        "skipped_documents": report.skipped.num_bad,
        "tokens_per_sec": round(counts["speech_codes"] / report.busy_sec, 1),
    }
