"""Transcripts by a Whisper for speech that has none: `weft pseudo-label`.

    manifest = run(PseudoLabelConfig(audio=(Path("radio"),), whisper=Path("whisper-large-v3"), out=Path("runs/radio")))

Recordings longer than Whisper's window are split at pauses. No audio is copied: the new manifest names the files, with
the seconds of each piece. Transcripts with a low log-probability, or that repeat themselves, are left out and listed.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import orjson

from weft.artifacts import Manifest, base_manifest
from weft.asr.transcribe import Transcriber, Transcript, split_at_pauses
from weft.asr.whisper import load_prompt
from weft.audio import SAMPLE_RATE_HZ
from weft.config import FLAT, MODEL, NOT_IN_PLAN, PositiveFloat, PositiveInt
from weft.data import job
from weft.data.job import JobConfig, Report
from weft.data.skipped import map_batch
from weft.data.speech import audio_lengths, load_speech, read_manifest, speech_id
from weft.data.speech_formats.manifests import MANIFEST_NAME
from weft.errors import UserError
from weft.files import write_bytes
from weft.plan import Draft, Plan, create
from weft.records import Utterance
from weft.sound_files.address import with_time_range
from weft.text.inputs import valid_text

KIND = "audio"
_SEC_PER_TASK = 600.0
_PARTS = Path("log/parts")
_BATCHES_PER_CALL = 16  # whose windows are sorted by length together


@dataclass(frozen=True)
class PseudoLabelConfig:
    """Speech to transcribe, and the Whisper to use."""

    audio: tuple[Path, ...]
    """Manifests, audio files, or directories of either; existing transcripts are ignored."""
    whisper: Annotated[Path, MODEL]
    """Hugging Face Whisper, a directory or a name on the Hub."""
    out: Path
    """Output directory for the manifest."""
    language: str | None = None
    """Language of all speech, such as en; not set: that of the manifest, or else the one that Whisper detects."""
    min_log_prob: float = -1.0
    """Leave out transcripts with a lower mean log-probability per token."""
    max_repetition: PositiveFloat = 2.4
    """Leave out transcripts that zlib compresses by a larger factor, because they repeat themselves."""
    batch_size: PositiveInt = 16
    """Windows per batch."""
    job: Annotated[JobConfig, FLAT, NOT_IN_PLAN] = field(default_factory=JobConfig)
    licence: Annotated[str | None, NOT_IN_PLAN] = None
    """Licence of the speech, passed on to the notes of everything made from it."""


def run(config: PseudoLabelConfig) -> Manifest:
    """Create the artifact `config.out`.

    Raises UserError if there is no speech, if too much of it is unreadable, and if no transcript is good enough.
    """
    utterances = read_manifest(*config.audio)
    _check_languages(config, utterances)
    seconds = sum(n for n in audio_lengths(utterances) if isinstance(n, int)) / SAMPLE_RATE_HZ
    tasks = min(len(utterances), job.tasks_for(seconds, _SEC_PER_TASK))
    parents = {"whisper": base_manifest(config.whisper)}
    plan = Plan.of(KIND, config, parents, audio=speech_id(utterances), tasks=tasks)

    def write(draft: Draft) -> None:
        shared = utterances.shared(draft.folder / job.UTTERANCES)
        work = _PseudoLabel(config, shared, draft.folder, tasks)
        report = job.run(work, draft, tasks, config.job, "pseudo-label")
        _merge_parts(draft.folder, tasks)
        draft.counts.update(_summary(report))
        draft.notes["transcripts"] = f"by the Whisper {config.whisper.name}, not checked by people"

    return create(config.out, plan, write, config.licence)


def _check_languages(config: PseudoLabelConfig, utterances: Sequence[Utterance]) -> None:
    """Raise UserError, before long work, for a language that the Whisper lacks."""
    prompt = load_prompt(config.whisper)
    for language in [config.language] if config.language else sorted({u.language or "" for u in utterances}):
        if language and prompt.languages:
            prompt.code(language)


@dataclass
class _PseudoLabel:
    """A task: transcribe some of the utterances into a part of the manifest."""

    config: PseudoLabelConfig
    utterances: Sequence[Utterance]
    folder: Path
    num_tasks: int

    @cached_property
    def transcriber(self) -> Transcriber:
        return Transcriber(self.config.whisper)

    def __call__(self, task: int) -> Report:
        report = Report()
        indices = job.task_range(len(self.utterances), task, self.num_tasks)
        rows = self._rows(self.utterances[indices.start : indices.stop], report)
        part = self.folder / _PARTS / f"{task:05d}.jsonl"
        write_bytes(part, b"".join(orjson.dumps(row) + b"\n" for row in rows))
        report.written = [part]
        return report

    def _rows(self, utterances: Sequence[Utterance], report: Report) -> Iterator[dict[str, Any]]:
        window_samples = self.transcriber.window_samples  # an error of the model is not one of an utterance
        pieces: list[tuple[Utterance, np.ndarray]] = []
        for utterance in utterances:
            with report.skipped.on_error(utterance.id):
                samples = load_speech(utterance)
                if not utterance.audio.isprintable() and utterance.audio != valid_text(utterance.audio):
                    raise UserError("its file name is not UTF-8, as the new manifest must be: rename it")
                pieces += _split(utterance, samples, window_samples)
                report.skipped.num_good += 1
            if len(pieces) >= _BATCHES_PER_CALL * self.config.batch_size:
                yield from self._transcribed(pieces, report)
                pieces = []
        yield from self._transcribed(pieces, report)

    def _transcribed(self, pieces: Sequence[tuple[Utterance, np.ndarray]], report: Report) -> Iterator[dict[str, Any]]:
        found = map_batch(self._transcripts, pieces, report.skipped, lambda piece: piece[0].id)
        for (utterance, samples), transcript in found:
            language, seconds = transcript.language or utterance.language, round(len(samples) / SAMPLE_RATE_HZ, 3)
            labelled = replace(utterance, text=transcript.text, language=language, seconds=seconds)
            row = {name: value for name, value in asdict(labelled).items() if value is not None}
            row["log_prob"] = round(transcript.log_prob, 4)
            if reason := self._reason_to_leave_out(transcript):
                row["left_out"] = reason
                report.counts["left_out"] += 1
            else:
                report.counts["utterances"] += 1
                report.counts["milliseconds"] += round(1000 * seconds)
                report.counts["log_prob"] += round(1000 * transcript.log_prob)
            yield row

    def _transcripts(self, pieces: Sequence[tuple[Utterance, np.ndarray]]) -> list[Transcript]:
        languages = [self.config.language or u.language for u, _ in pieces]
        return self.transcriber([samples for _, samples in pieces], languages, self.config.batch_size)

    def _reason_to_leave_out(self, transcript: Transcript) -> str | None:
        if not transcript.text:
            return "empty transcript"
        if not transcript.log_prob >= self.config.min_log_prob:
            return f"log-probability {transcript.log_prob:.2f}"
        content = transcript.text.encode()
        if (ratio := len(content) / len(zlib.compress(content))) > self.config.max_repetition:
            return f"repetitive: zlib compresses it by a factor of {ratio:.1f}"
        return None


def _split(utterance: Utterance, samples: np.ndarray, max_samples: int) -> Iterator[tuple[Utterance, np.ndarray]]:
    """Yield pieces of at most `max_samples` (S,) as utterances; a short utterance stays whole."""
    pieces = split_at_pauses(samples, max_samples)
    if len(pieces) == 1:
        yield utterance, samples
        return
    for number, piece in enumerate(pieces):
        audio = with_time_range(utterance.audio, piece.start / SAMPLE_RATE_HZ, piece.stop / SAMPLE_RATE_HZ)
        source = utterance.source or utterance.id
        named = replace(utterance, id=f"{utterance.id}-{number}", audio=audio, source=source)
        yield named, samples[piece.start : piece.stop]


def _summary(report: Report) -> dict[str, Any]:
    counts = report.counts
    if not counts["utterances"]:
        raise UserError(
            f"{counts['left_out']} transcripts, none of them usable: lower min_log_prob, raise max_repetition, or use "
            "another Whisper"
        )
    return {
        "utterances": counts["utterances"],
        "seconds": counts["milliseconds"] / 1000,
        "mean_log_prob": counts["log_prob"] / 1000 / counts["utterances"],
        "left_out": counts["left_out"],
        "skipped_utterances": report.skipped.num_bad,
    }


def _merge_parts(folder: Path, tasks: int) -> None:
    """Write the manifest, and the list of what was left out, from the parts of all tasks."""
    rows = [
        orjson.loads(line)
        for task in range(tasks)
        for line in (folder / _PARTS / f"{task:05d}.jsonl").read_bytes().splitlines()
    ]
    for path, wanted in ((folder / MANIFEST_NAME, False), (folder / "log/left_out.jsonl", True)):
        write_bytes(path, b"".join(orjson.dumps(row) + b"\n" for row in rows if ("left_out" in row) == wanted))
