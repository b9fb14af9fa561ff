"""Interleaved data from recordings: transcripts whose words have times, with random spans as the codes of their sound.

    manifest = run(AlignedConfig((Path("speech"),), Path("alignments.jsonl"), Path("tokenizer"), Path("runs/woven")))

Alignments are JSONL, one utterance of the manifest a line, with seconds from the start of its sound:

    {"id": "u1", "words": [{"word": "the", "start": 0.14, "end": 0.29}, {"word": "war", "start": 0.29, "end": 0.53}]}

A span's codes are cut from those of the whole utterance, at the code boundaries nearest to its first word's start and
its last word's end. They are what a stream gives that hears the speaker go on, and they decode to the sound of that
place. Sound that was cut first and coded alone would begin and end as no recording does, and lose what its codes know
of the speaker so far. The price: attention is block-causal, so the last codes of a span may know a little of what
comes next in their block (2 s in the paper), which the text behind the span then says.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from weft import artifacts
from weft.artifacts import Manifest
from weft.audio import SAMPLE_RATE_HZ
from weft.config import Count, Natural, Positive, Share
from weft.data import job
from weft.data.corpus import read_manifest
from weft.data.job import Report
from weft.data.shards import write_documents
from weft.errors import UserError
from weft.interleave.spans import Policy, Span, cut, hash64, require_drawable, spans_of
from weft.records import Document, Meta, Segment, Utterance
from weft.tokenizer.tokenize import device, identity, readable
from weft.tokenizer.tokenizer import KIND, SpeechTokenizer

_UTTERANCES_PER_TASK = 512
_SLACK_SEC = 0.5  # that aligners put the end of a last word behind the end of the sound
_UNKNOWN = re.compile(r"[<\[].*[>\]]")  # <unk>, [noise]: what aligners write for a word that they do not know


@dataclass(frozen=True)
class AlignedConfig:
    """How recordings with word times become interleaved documents."""

    corpus: tuple[Path, ...]
    """Manifests of speech; consecutive utterances of one `source` make one document."""
    aligned: Path
    """JSONL file with the words of each utterance and their times."""
    tokenizer: Path
    """Folder of the speech tokenizer."""
    out: Path
    """Folder to write the documents to."""
    speech_ratio: float = 0.3
    """Share of a document's words that is spoken, or all that have times; 1.0 speaks it sentence by sentence."""
    mean_span_words: Positive = 10.0
    """Mean length of a spoken span in words (Poisson); three times as long is the longest sentence spoken in one."""
    policy: Policy = "poisson"
    """Spans anywhere (poisson, the paper's), whole sentences, or written and spoken stretches in turn (alternate)."""
    seed: Natural = 0
    """Seed of the spans."""
    workers: Count = 1
    """Processes, each with its own copy of the tokenizer."""
    max_bad_share: Share = 0.01
    """Share of unreadable or misaligned utterances above which the job fails."""

    def __post_init__(self) -> None:
        require_drawable(self.speech_ratio, self.mean_span_words)


@dataclass(frozen=True)
class Timed:
    """A transcript, where its N aligned words end in it, and their seconds (N, 2), NaN for a word without times."""

    text: str
    ends: np.ndarray
    seconds: np.ndarray


@dataclass(frozen=True)
class Alignments:
    """A file of aligned words, read an utterance at a time. `places` are the bytes at which the ids' lines begin."""

    path: Path
    places: Mapping[str, int]
    identity: str

    @classmethod
    def of(cls, path: Path) -> Alignments:
        """Raises UserError, naming the line, for a file that is missing, or not alignments by its lines' shape."""
        if not path.is_file():
            raise UserError(f"{path} is no file: give a .jsonl of utterances' words and their times")
        places: dict[str, int] = {}
        total, place = hashlib.sha256(), 0
        with path.open("rb") as f:
            for number, line in enumerate(f, 1):
                if line.strip():
                    name = _row(line, f"{path} line {number}")["id"]
                    if name in places:
                        raise UserError(f"{path} line {number}: id {name!r} occurs twice: make ids unique")
                    places[name] = place
                total.update(line)
                place += len(line)
        return cls(path, places, total.hexdigest()[:16])

    def timed(self, utterance: Utterance) -> Timed:
        """The transcript of an utterance that is in `places`, with its words' times; without one, its words make it.

        Raises UserError for times that cannot be, and for words that are not those of the transcript.
        """
        with self.path.open("rb") as f:
            f.seek(self.places[utterance.id])
            rows = _row(f.readline(), str(self.path))["words"]
        words = [(row["word"], _times(row)) for row in rows if _letters(row["word"])]
        if not words:
            raise UserError("it has no words: leave it out of the alignments")
        said, seconds = [word for word, _ in words], np.array([times for _, times in words], np.float64)
        known = seconds[~np.isnan(seconds[:, 0])]
        if np.any(known[:, 1] < known[:, 0]) or np.any(np.diff(known, axis=0) < 0) or np.any(known < 0):
            raise UserError("its words' times do not go on: give `start` and `end` in seconds, in order")
        text = (utterance.text or " ".join(said)).strip()
        return Timed(text, _ends_in(text, said), seconds)


def run(config: AlignedConfig) -> Manifest:
    """Make the artifact `config.out`; one that is made already by the same plan is left as it is.

    Utterances without aligned words are left out and counted. Raises UserError where none is left, or too many have
    sound that cannot be read or words that are not those of their transcript.
    """
    utterances = read_manifest(*config.corpus)
    alignments = Alignments.of(config.aligned)
    parents = {"tokenizer": artifacts.read(config.tokenizer, KIND)}
    tasks = job.tasks_for(len(utterances), _UTTERANCES_PER_TASK)
    settings = {
        "corpus": identity(utterances),
        "aligned": alignments.identity,
        "speech_ratio": config.speech_ratio,
        "mean_span_words": config.mean_span_words,
        "policy": config.policy,
        "seed": config.seed,
        "tasks": tasks,
    }
    if artifacts.is_made(config.out, "documents", settings, parents):
        return artifacts.read(config.out)
    with artifacts.build(config.out, "documents", settings, parents) as draft:
        runs = groupby(enumerate(utterances), key=lambda pair: pair[1].source or pair[0])
        recordings = [[utterance for _, utterance in run] for _, run in runs]
        work = _Interleave(config, recordings, alignments, draft.folder, tasks)
        report = job.run(work, draft.folder, tasks, config.workers, "interleave", config.max_bad_share)
        draft.counts.update(_summary(report, config))
    return artifacts.read(config.out)


@dataclass
class _Interleave:
    """The work of a task: tokenize its share of the recordings, draw spans over their words, write one part."""

    config: AlignedConfig
    recordings: list[list[Utterance]]
    alignments: Alignments
    folder: Path
    num_tasks: int

    @cached_property
    def tokenizer(self) -> SpeechTokenizer:
        tokenizer = SpeechTokenizer.load(self.config.tokenizer)
        tokenizer.model.to(device())
        return tokenizer

    def __call__(self, task: int) -> Report:
        report = Report()
        mine = job.share(len(self.recordings), task, self.num_tasks)
        recordings = self.recordings[mine.start : mine.stop]
        timed = dict(self._timed([u for recording in recordings for u in recording], report))
        codes: dict[str, np.ndarray] = {}
        for group in readable([u for recording in recordings for u in recording if u.id in timed], report):
            fitting = [(u, samples) for u, samples in group if _fits(timed[u.id], len(samples), u.id, report)]
            found = self.tokenizer.encode([samples for _, samples in fitting])
            codes.update({u.id: c for (u, _), c in zip(fitting, found, strict=True)})
        whole = ([u for u in recording if u.id in codes] for recording in recordings)
        documents = (self._document(recording, timed, codes, report.counts) for recording in whole if recording)
        write_documents(self.folder, task, documents)
        return report

    def _timed(self, utterances: list[Utterance], report: Report) -> Iterator[tuple[str, Timed]]:
        for utterance in utterances:
            if utterance.id not in self.alignments.places:
                report.counts["without_words"] += 1
                continue
            try:
                yield utterance.id, self.alignments.timed(utterance)
            except UserError as e:
                report.skipped.add(utterance.id, str(e))

    def _document(
        self,
        recording: Sequence[Utterance],
        timed: Mapping[str, Timed],
        codes: Mapping[str, np.ndarray],
        counts: Counter[str],
    ) -> Document:
        """The utterances of a recording as one document, their texts joined by spaces."""
        config, rate_hz, first = self.config, self.tokenizer.frame_rate_hz, recording[0]
        mine = [timed[u.id] for u in recording]
        starts = [0, *accumulate(len(t.text) + 1 for t in mine[:-1])]
        first_words = [0, *accumulate(len(t.ends) for t in mine)]
        text = " ".join(t.text for t in mine)
        ends = np.concatenate([start + t.ends for start, t in zip(starts, mine, strict=True)])
        free = [
            (before + a, before + b) for before, t in zip(first_words, mine, strict=False) for a, b in _with_times(t)
        ]
        rng = np.random.default_rng(hash64(config.seed, first.id))
        spans = spans_of(text, ends, free, config.speech_ratio, config.mean_span_words, rng, config.policy)

        def codes_of(span: Span) -> list[int]:
            i = int(np.searchsorted(first_words, span[0], "right")) - 1
            seconds = mine[i].seconds[span[0] - first_words[i] : span[1] - first_words[i]]
            begin, end = nearest(seconds[0, 0], rate_hz), nearest(seconds[-1, 1], rate_hz)
            return codes[recording[i].id][begin:end].tolist()

        found = iter([codes_of(span) for span in spans])
        spoken = [(part, next(found) if part.spoken else []) for part in cut(text, ends, spans)]
        segments: list[Segment] = []
        for silent, run in groupby(spoken, key=lambda pair: not pair[1]):
            if silent:
                segments.append(Segment.of_text("".join(part.text for part, _ in run)))
            else:
                segments += [Segment.of_speech(c, part.text) for part, c in run]
        num_codes, spoken_words = sum(len(c) for _, c in spoken), sum(part.num_words for part, c in spoken if c)
        counts.update({"documents": 1, "words": len(ends), "spoken_words": spoken_words, "speech_codes": num_codes})
        counts.update({"spans": len(spans), "rejected_spans": sum(part.spoken and not c for part, c in spoken)})
        speakers = {u.speaker for u in recording}
        meta = Meta(
            speech_ratio=spoken_words / len(ends),
            words=len(ends),
            seconds=num_codes / rate_hz,
            speaker=first.speaker if len(speakers) == 1 else None,
            source=first.source,
        )
        return Document(first.id, "interleaved", tuple(segments), meta)


def nearest(sec: float, frame_rate_hz: float) -> int:
    """The boundary between codes that is nearest to a moment: code i lies between the boundaries i and i + 1."""
    return int(sec * frame_rate_hz + 0.5)


def _fits(timed: Timed, num_samples: int, name: str, report: Report) -> bool:
    """Whether the words end where the sound does, or before; else the utterance goes to what was skipped."""
    end_sec, sound_sec = float(timed.seconds[~np.isnan(timed.seconds)].max(initial=0.0)), num_samples / SAMPLE_RATE_HZ
    if end_sec > sound_sec + _SLACK_SEC:
        report.skipped.num_good -= 1
        report.skipped.add(
            name, f"its words end at {end_sec:.2f} s, and its sound at {sound_sec:.2f} s: align it again"
        )
    return end_sec <= sound_sec + _SLACK_SEC


def _with_times(timed: Timed) -> list[Span]:
    """The ranges of words that have times."""
    untimed = np.isnan(timed.seconds[:, 0])
    edges = np.flatnonzero(np.diff(untimed, prepend=True, append=True)).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def _ends_in(text: str, words: Sequence[str]) -> np.ndarray:
    """Where each of the `words` ends in a text that they spell, with the punctuation behind it.

    Only letters and digits are compared, without case and accents, so that punctuation and where words are parted may
    differ. Else words of the text between white space are taken one by one, each the same or unknown to the aligner.
    """
    places = [i for i, character in enumerate(text) for _ in _letters(character)]
    spelled = [_letters(word) for word in words]
    if "".join(spelled) == _letters(text):
        last = np.array(places)[np.cumsum([len(word) for word in spelled]) - 1]
        return np.array([_behind(text, i + 1) for i in last.tolist()])
    tokens = list(re.finditer(r"\S+", text))
    same = len(tokens) == len(words) and all(
        _letters(token[0]) == letters or _UNKNOWN.fullmatch(word)
        for token, letters, word in zip(tokens, spelled, words, strict=True)
    )
    if not same:
        raise UserError("its aligned words are not those of its transcript: align them again")
    return np.array([token.end() for token in tokens])


def _behind(text: str, place: int) -> int:
    """The end of the punctuation at a place of a text."""
    while place < len(text) and not text[place].isspace() and not _letters(text[place]):
        place += 1
    return place


def _letters(text: str) -> str:
    """The letters and digits of a text, without case and accents."""
    return "".join(c for c in unicodedata.normalize("NFKD", text).casefold() if c.isalnum())


def _row(line: bytes, where: str) -> dict[str, Any]:
    """A line of alignments. Raises UserError for one of another shape."""
    try:
        row = orjson.loads(line)
        shaped = isinstance(row["id"], str) and all(isinstance(word["word"], str) for word in row["words"])
    except (orjson.JSONDecodeError, LookupError, TypeError) as e:
        raise UserError(f'{where} is not {{"id": ..., "words": [{{"word", "start", "end"}}, ...]}}: mend it') from e
    if not shaped:
        raise UserError(f"{where} has an `id` or a `word` that is no string: mend it")
    return row


def _times(word: Mapping[str, Any]) -> tuple[float, float]:
    """The seconds of a word, NaN where they are not known."""
    start, end = word.get("start"), word.get("end")
    if start is None or end is None:
        return float("nan"), float("nan")
    for sec in (start, end):
        if isinstance(sec, bool) or not isinstance(sec, int | float):
            raise UserError(f"word {word['word']!r} has {sec!r} for a time: give seconds, or leave it out")
    return float(start), float(end)


def _summary(report: Report, config: AlignedConfig) -> dict[str, Any]:
    """The counts of the manifest."""
    counts = report.counts
    if not counts["documents"]:
        raise UserError(f"{config.aligned} has the words of no utterance that can be read: check the ids in both")
    return {
        **{n: counts[n] for n in ("documents", "words", "spoken_words", "speech_codes", "spans", "rejected_spans")},
        "text_words": counts["words"] - counts["spoken_words"],
        "speech_ratio": round(counts["spoken_words"] / counts["words"], 4),
        "codes_per_spoken_word": round(counts["speech_codes"] / max(1, counts["spoken_words"]), 3),
        "without_words": counts["without_words"],
        "skipped_utterances": len(report.skipped.bad),
    }
