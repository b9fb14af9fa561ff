"""Speech corpora synthesized from text: `weft speak`.

    run(SpeakConfig(text=(Path("sentences.txt"),), out=Path("speech"), voice=("espeak:en-us", "espeak:en-gb")))
    speak_lines([Line("a", "Good morning.", "espeak:en-gb+f3?speed=150")], Path("speech"))

The result is an artifact of kind "audio": `audio/ID.flac` (mono, 16 kHz, 16 bit) and `manifest.jsonl`.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import soundfile
import soxr

from weft.artifacts import Manifest
from weft.audio import SAMPLE_RATE_HZ
from weft.config import FLAT, NOT_IN_PLAN, NonNegativeInt, PositiveInt
from weft.data import job
from weft.data.job import JobConfig, Report
from weft.digests import file_digests
from weft.errors import UserError
from weft.files import content_id, write_bytes
from weft.plan import Draft, Plan, create
from weft.text.inputs import decode
from weft.voices.choice import choose
from weft.voices.engines import parse
from weft.voices.voice import Voice

KIND = "audio"
_MIN_RATE_HZ, _MAX_RATE_HZ = 8000, 96_000
_LINES_PER_TASK = 32
_LINES_PER_PROCESS = 50_000  # each call of espeak-ng leaks 2 KB
_ROWS = "log/rows/{}.json"  # of a task, written after its audio
_ID = re.compile(r"\w[\w.-]*")


@dataclass(frozen=True)
class SpeakConfig:
    """Synthesis of lines of text."""

    text: tuple[Path, ...]
    """Text files with one utterance per line."""
    out: Path
    """Output directory for the audio and its manifest."""
    voice: tuple[str, ...] = ("espeak:en-us",)
    """Voices, used in turn: espeak:LANGUAGE[+VARIANT], kokoro:VOICE, kokoro:LANGUAGE (all of its voices), piper:MODEL
    or command:PROGRAM. Of several speeds or pitches, one is sampled for each line: kokoro:en?speed=0.9,1,1.1."""
    seed: NonNegativeInt = 0
    """Seed of the sampled speeds and pitches."""
    sample_rate_hz: PositiveInt = SAMPLE_RATE_HZ
    """Sample rate of the audio: 16 kHz is that of tokenizers, and decoders can be trained on more."""
    job: Annotated[JobConfig, FLAT, NOT_IN_PLAN] = field(default_factory=JobConfig)


@dataclass(frozen=True, slots=True)
class Line:
    """A text and its voice.

    `id` names the audio file (letters, digits, `_`, `-`, `.`). Consecutive lines of one `source` form a document.
    """

    id: str
    text: str
    voice: str
    source: str | None = None


def run(config: SpeakConfig) -> Manifest:
    """Create the artifact `config.out`. Raises UserError for files without text and for invalid voices."""
    if not _MIN_RATE_HZ <= config.sample_rate_hz <= _MAX_RATE_HZ:
        raise UserError(f"sample_rate_hz is {config.sample_rate_hz}: give {_MIN_RATE_HZ} to {_MAX_RATE_HZ}")
    lines = [(path, n, line) for path in config.text for n, line in enumerate(_read(path), 1) if line.strip()]
    if not lines:
        raise UserError(f"{', '.join(map(str, config.text))}: all lines are empty: give files with text")
    ids = [f"{path.stem}-{n}" for path, n, _ in lines]
    voices = choose(config.voice, ids, config.seed)
    named = [Line(name, text.strip(), voice) for name, (_, _, text), voice in zip(ids, lines, voices, strict=True)]
    return speak_lines(named, config.out, config.job, config.sample_rate_hz)


def speak_lines(
    lines: Sequence[Line], out: Path, config: JobConfig | None = None, sample_rate_hz: int = SAMPLE_RATE_HZ
) -> Manifest:
    """Synthesize every line into the artifact `out`, in the order of `lines`.

    Counts: utterances, seconds, and the ids of `skipped` lines, which have nothing to pronounce or whose voice failed.
    Raises UserError for ids that repeat or cannot be file names, for invalid voices, if voices fail for too many lines,
    and if no line can be pronounced.
    """
    voices = _check(lines)
    tasks = job.tasks_for(len(lines), _LINES_PER_TASK)
    spoken = [(line.id, line.text, voices[line.voice].identity, line.source) for line in lines]
    settings = {"lines": content_id(spoken), "sample_rate_hz": sample_rate_hz}
    plan = Plan(KIND, {**settings, **(voice_files := _voice_files(voices.values()))}, defaults=voice_files)

    def write(draft: Draft) -> None:
        (draft.folder / "audio").mkdir(exist_ok=True)
        tasks_per_process = max(1, _LINES_PER_PROCESS * tasks // max(1, len(lines)))
        work = _Speak(lines, draft.folder, tasks, sample_rate_hz)
        job.run(work, draft, tasks, config or JobConfig(), "speak", tasks_per_process)
        rows = [row for task in range(tasks) for row in json.loads((draft.folder / _ROWS.format(task)).read_bytes())]
        if not rows:
            raise UserError("no line contains a pronounceable character: give other text")
        manifest = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_bytes(draft.folder / "manifest.jsonl", manifest.encode())
        ids = {row["id"] for row in rows}
        draft.counts["num_utterances"] = len(rows)
        draft.counts["seconds"] = round(sum(row["seconds"] for row in rows), 3)
        draft.counts["skipped"] = [line.id for line in lines if line.id not in ids]

    return create(out, plan, write)


def _voice_files(voices: Iterable[Voice]) -> dict[str, Any]:
    """Return the identity of the files of all voices as a setting. Artifacts of earlier versions lack it."""
    files = [file for _, files in sorted({(voice.identity, voice.files) for voice in voices}) for file in files]
    digests = file_digests(files)
    return {"voice_files": content_id([digests[file] for file in files], digests)} if files else {}


def _check(lines: Sequence[Line]) -> dict[str, Voice]:
    """Check ids and voices, and return the voices."""
    seen: set[str] = set()
    for line in lines:
        if not _ID.fullmatch(line.id):
            raise UserError(f"id {line.id!r} cannot be a file name: use letters, digits, _, - and .")
        if line.id in seen:
            raise UserError(f"id {line.id!r} occurs twice: make ids unique")
        seen.add(line.id)
    return {voice: parse(voice) for voice in {line.voice for line in lines}}


@dataclass(frozen=True)
class _Speak:
    """A task: synthesize some of the lines."""

    lines: Sequence[Line]
    folder: Path
    num_tasks: int
    sample_rate_hz: int

    def __call__(self, task: int) -> Report:
        own = job.task_range(len(self.lines), task, self.num_tasks)
        report = Report()
        rows = list(self._rows(self.lines[own.start : own.stop], report))
        listed = self.folder / _ROWS.format(task)
        write_bytes(listed, json.dumps(rows).encode())
        report.written = [listed, *(self.folder / row["audio"] for row in rows)]
        return report

    def _rows(self, lines: Sequence[Line], report: Report) -> Iterator[dict[str, Any]]:
        """Synthesize lines, and yield their rows of the manifest."""
        for line in lines:
            text, voice, speech = line.text.strip(), None, None
            with report.skipped.on_error(line.id):
                voice = parse(line.voice)
                speech = voice.speak(text) if text else None
                report.skipped.num_good += 1
            if voice is None or speech is None or not speech.samples.any():
                continue
            samples = soxr.resample(speech.samples, speech.sample_rate_hz, self.sample_rate_hz, quality="HQ")
            audio = f"audio/{line.id}.flac"
            buffer = io.BytesIO()
            soundfile.write(buffer, np.clip(samples, -1, 1), self.sample_rate_hz, format="FLAC", subtype="PCM_16")
            (self.folder / audio).write_bytes(buffer.getvalue())  # complete once the rows of the task exist
            yield {
                "id": line.id,
                "audio": audio,
                "text": text,
                "speaker": voice.name,
                "language": voice.language,
                "seconds": round(len(samples) / self.sample_rate_hz, 3),
                **({"source": line.source} if line.source else {}),
            }


def _read(path: Path) -> list[str]:
    if not path.is_file():  # reading a pipe or a device may never end
        raise UserError(f"{path} {'is not' if path.exists() else 'does not exist: give'} a text file")
    try:
        return decode(path.read_bytes()).splitlines()
    except ValueError as e:
        raise UserError(f"{path} cannot be read: {e}") from e
