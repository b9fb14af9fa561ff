"""Transcripts for speech that has none, by a Hugging Face Whisper: a manifest to train on beside transcribed speech.

    manifest = run(PseudoLabelConfig(audio=(Path("radio"),), whisper=Path("whisper-large-v3"), out=Path("runs/radio")))

Recordings longer than Whisper's window are cut in their quietest moments near its end. The sound stays where it is: the
new manifest names the files, and the seconds of those that were cut. A transcript in which Whisper has little
confidence, or that repeats itself, is left out and listed.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from weft import artifacts
from weft.artifacts import Manifest, write_bytes
from weft.audio import SAMPLE_RATE_HZ, load, part_of
from weft.config import Count, Positive, Share
from weft.data import job
from weft.data.corpus import MANIFEST_NAME, read_manifest
from weft.data.job import Report
from weft.errors import UserError
from weft.records import Utterance
from weft.tokenizer.base import load_prompt
from weft.tokenizer.speech import lengths
from weft.tokenizer.tokenize import identity
from weft.tokenizer.transcriber import Heard, Transcriber, windows

KIND = "audio"
_TASK_SEC = 600.0
_PARTS = Path("log/parts")
_BATCHES_PER_CALL = 16  # whose windows are sorted by length together


@dataclass(frozen=True)
class PseudoLabelConfig:
    """What speech to transcribe, and with what."""

    audio: tuple[Path, ...]
    """Manifests, sound files, or folders of either; transcripts that they have are not used."""
    whisper: Path
    """Folder of a Hugging Face Whisper."""
    out: Path
    """Folder to write the manifest to."""
    language: str | None = None
    """Language that is spoken everywhere, such as en; without it the manifest's, and where that names none, the one
    that Whisper hears."""
    min_log_prob: float = -1.0
    """Mean log-probability of a transcript's tokens below which it is left out."""
    max_repetition: Positive = 2.4
    """How many times smaller zlib may make a transcript before it is left out as one that repeats itself."""
    batch_size: Count = 16
    """Windows that are transcribed at once."""
    workers: Count = 1
    """Processes, each with its own copy of the Whisper."""
    max_bad_share: Share = 0.01
    """Share of unreadable utterances above which the job fails."""
    licence: str | None = None
    """Licence of the speech, which the notes of all that is made of it will tell."""


def run(config: PseudoLabelConfig) -> Manifest:
    """Make the artifact `config.out`; one that is made already by the same plan is left as it is.

    Raises UserError when there is no speech, when too much of it is unreadable, and when no transcript is good enough.
    """
    utterances = read_manifest(*config.audio)
    _check_languages(config, utterances)
    tasks = _tasks(utterances)
    settings = {
        "audio": identity(utterances), "tasks": tasks, "whisper": _identity_of(config.whisper),
        "language": config.language, "min_log_prob": config.min_log_prob, "max_repetition": config.max_repetition,
        "batch_size": config.batch_size,
    }  # fmt: skip
    if artifacts.is_made(config.out, KIND, settings):
        return artifacts.read(config.out)
    with artifacts.build(config.out, KIND, settings, licence=config.licence) as draft:
        work = _PseudoLabel(config, utterances, draft.folder, tasks)
        report = job.run(work, draft.folder, tasks, config.workers, "pseudo-label", config.max_bad_share)
        _gather(draft.folder, tasks)
        draft.counts.update(_summary(report))
        draft.notes["transcripts"] = f"by {config.whisper.name}, a Whisper: unchecked by people"
    return artifacts.read(config.out)


def _check_languages(config: PseudoLabelConfig, utterances: Sequence[Utterance]) -> None:
    """Raise UserError, before long work, for a language that the Whisper does not know."""
    prompt = load_prompt(config.whisper)
    for language in [config.language] if config.language else sorted({u.language or "" for u in utterances}):
        if language and prompt.languages:
            prompt.code(language)


def _tasks(utterances: Sequence[Utterance]) -> int:
    with ThreadPoolExecutor(8) as threads:
        found = lengths(utterances, threads)
    seconds = sum(n for n in found if isinstance(n, int)) / SAMPLE_RATE_HZ
    return min(len(utterances), job.tasks_for(seconds, _TASK_SEC))


def _identity_of(folder: Path) -> str:
    """A hash of a folder's files, by name and size."""
    rows = sorted((f.name, f.stat().st_size) for f in folder.iterdir() if f.is_file())
    return hashlib.sha256(repr(rows).encode()).hexdigest()[:16]


@dataclass
class _PseudoLabel:
    """The work of a task: its share of the utterances, as one part of the manifest."""

    config: PseudoLabelConfig
    utterances: list[Utterance]
    folder: Path
    num_tasks: int

    @cached_property
    def transcriber(self) -> Transcriber:
        return Transcriber(self.config.whisper)

    def __call__(self, task: int) -> Report:
        report = Report()
        mine = job.share(len(self.utterances), task, self.num_tasks)
        rows = self._rows(self.utterances[mine.start : mine.stop], report)
        write_bytes(self.folder / _PARTS / f"{task:05d}.jsonl", b"".join(orjson.dumps(row) + b"\n" for row in rows))
        return report

    def _rows(self, utterances: Sequence[Utterance], report: Report) -> Iterator[dict[str, Any]]:
        at_once: list[tuple[Utterance, np.ndarray]] = []
        for utterance in utterances:
            try:
                at_once += cut(utterance, load(utterance.audio), self.transcriber.window_samples)
            except UserError as e:
                report.skipped.add(utterance.id, str(e))
                continue
            report.skipped.num_good += 1
            if len(at_once) >= _BATCHES_PER_CALL * self.config.batch_size:
                yield from self._transcribed(at_once, report)
                at_once = []
        yield from self._transcribed(at_once, report)

    def _transcribed(self, pieces: Sequence[tuple[Utterance, np.ndarray]], report: Report) -> Iterator[dict[str, Any]]:
        languages = [self.config.language or u.language for u, _ in pieces]
        heard = self.transcriber([samples for _, samples in pieces], languages, self.config.batch_size)
        for (utterance, samples), found in zip(pieces, heard, strict=True):
            language, seconds = found.language or utterance.language, round(len(samples) / SAMPLE_RATE_HZ, 3)
            spoken = replace(utterance, text=found.text, language=language, seconds=seconds)
            row = {name: value for name, value in asdict(spoken).items() if value is not None}
            row["log_prob"] = round(found.log_prob, 4)
            if why := self._poor(found):
                row["left_out"] = why
                report.counts["left_out"] += 1
            else:
                report.counts["utterances"] += 1
                report.counts["milliseconds"] += round(1000 * seconds)
                report.counts["log_prob"] += round(1000 * found.log_prob)
            yield row

    def _poor(self, heard: Heard) -> str | None:
        """Why a transcript is left out, if so."""
        if not heard.text:
            return "nothing was heard"
        if not heard.log_prob >= self.config.min_log_prob:
            return f"its log-probability is {heard.log_prob:.2f}"
        spelt = heard.text.encode()
        if (times := len(spelt) / len(zlib.compress(spelt))) > self.config.max_repetition:
            return f"it repeats itself: zlib makes it {times:.1f} times smaller"
        return None


def _summary(report: Report) -> dict[str, Any]:
    counts = report.counts
    if not counts["utterances"]:
        raise UserError(
            f"no transcript was good enough, of {counts['left_out']}: lower min_log_prob, or take another Whisper"
        )
    return {
        "utterances": counts["utterances"],
        "seconds": counts["milliseconds"] / 1000,
        "mean_log_prob": counts["log_prob"] / 1000 / counts["utterances"],
        "left_out": counts["left_out"],
        "skipped_utterances": report.skipped.num_bad,
    }


def _gather(folder: Path, tasks: int) -> None:
    """Make one manifest of all parts, and one list of what is left out."""
    rows = [
        orjson.loads(line)
        for task in range(tasks)
        for line in (folder / _PARTS / f"{task:05d}.jsonl").read_bytes().splitlines()
    ]
    for path, wanted in ((folder / MANIFEST_NAME, False), (folder / "log/left_out.jsonl", True)):
        write_bytes(path, b"".join(orjson.dumps(row) + b"\n" for row in rows if ("left_out" in row) == wanted))


def cut(utterance: Utterance, samples: np.ndarray, most: int) -> Iterator[tuple[Utterance, np.ndarray]]:
    """Pieces of at most so many samples (S,), each with what names it: the utterance itself where it is one piece."""
    pieces = windows(samples, most)
    if len(pieces) == 1:
        yield utterance, samples
        return
    for number, piece in enumerate(pieces):
        audio = part_of(utterance.audio, piece.start / SAMPLE_RATE_HZ, piece.stop / SAMPLE_RATE_HZ)
        source = utterance.source or utterance.id
        named = replace(utterance, id=f"{utterance.id}-{number}", audio=audio, source=source)
        yield named, samples[piece.start : piece.stop]
