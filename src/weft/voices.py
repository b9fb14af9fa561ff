"""Text to speech engines by name, and whole corpora spoken with them.

    speech = speak("Good morning.", "espeak:en-us")
    speak_corpus([Line("a", "Good morning.", "espeak:en-gb+f3?speed=150")], Path("corpus"), workers=2)

A voice is a string:

    espeak:LANGUAGE[+VARIANT][?speed=WORDS_A_MINUTE&pitch=0..99]    espeak-ng, in this process
    command:PROGRAM ... {text_file} ... {out} ...                   any program that makes a WAV of a text file

`python -m weft.voices` lists espeak's languages and variants.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shlex
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, astuple, dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from weft import espeak
from weft.artifacts import build, write_bytes
from weft.errors import UserError

KIND = "audio"
_SLOTS = ("{text_file}", "{out}")
_CHUNK_LINES = 32
_CHUNKS_PER_PROCESS = 1000  # each load of espeak-ng leaks 2 KB: a worker is replaced before that adds up
_ID = re.compile(r"\w[\w.-]*")


@dataclass(frozen=True)
class Speech:
    """Mono samples (S,), float32 in [-1, 1]."""

    samples: np.ndarray
    sample_rate_hz: int


@dataclass(frozen=True, slots=True)
class Line:
    """A text for a voice to speak. `id` names the sound file: letters, digits, `_`, `-` and `.`; consecutive lines of
    one `source` belong together."""

    id: str
    text: str
    voice: str
    source: str | None = None


@dataclass(frozen=True)
class CorpusReport:
    """What `speak_corpus` made, and the ids of the lines left out because there was nothing in them to say."""

    num_utterances: int
    seconds: float
    skipped: tuple[str, ...]


def speak(text: str, voice: str) -> Speech:
    """Say `text`. Text with nothing to pronounce gives silence, or no samples at all.

    Raises UserError for a voice that is unknown or written wrongly, and for a command that fails.
    """
    engine, spec = _split(voice)
    return Speech(*espeak.synthesize(text, espeak.parse(spec))) if engine == "espeak" else _speak_command(text, spec)


def language_of(voice: str) -> str | None:
    """The language of an espeak voice ("en-us"), None for a command's. Raises UserError as `speak` does."""
    engine, spec = _split(voice)
    if engine == "espeak":
        return espeak.parse(spec).language
    _arguments(spec)
    return None


def _split(voice: str) -> tuple[str, str]:
    engine, _, spec = voice.partition(":")
    if engine not in ("espeak", "command"):
        raise UserError(f"voice {voice!r} names no engine: write espeak:LANGUAGE or command:PROGRAM {' '.join(_SLOTS)}")
    return engine, spec


def _arguments(template: str) -> list[str]:
    try:
        arguments = shlex.split(template)
    except ValueError as e:
        raise UserError(f"voice command:{template} cannot be read ({e}): quote it as in a shell") from e
    for slot in _SLOTS:
        if not any(slot in argument for argument in arguments):
            raise UserError(f"voice command:{template} has no {slot}: it reads {_SLOTS[0]} and writes {_SLOTS[1]}")
    return arguments


def _speak_command(text: str, template: str) -> Speech:
    arguments = _arguments(template)
    from weft.audio import load  # brings torch, which a process that speaks with espeak need not wait for

    with tempfile.TemporaryDirectory(prefix="weft-voice-") as folder:
        text_file, out = Path(folder, "text.txt"), Path(folder, "out.wav")
        text_file.write_text(text + "\n", encoding="utf-8")
        command = [a.replace(_SLOTS[0], str(text_file)).replace(_SLOTS[1], str(out)) for a in arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        except OSError as e:
            raise UserError(f"voice command {command[0]!r} does not start ({e.strerror}): is it installed?") from e
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip().rsplit("\n", 1)[-1] or "it said nothing"
            raise UserError(f"voice command {command[0]!r} failed ({said}): try it by hand with a text file")
        if not out.is_file():
            raise UserError(f"voice command {command[0]!r} wrote no file to {{out}}: check its options in {template!r}")
        try:
            rate_hz = soundfile.info(out).samplerate
        except soundfile.LibsndfileError as e:
            raise UserError(f"voice command {command[0]!r} wrote no sound: {{out}} is to become a WAV file") from e
        return Speech(load(out, rate_hz), rate_hz)


def speak_corpus(
    lines: Iterable[Line],
    out: Path,
    workers: int = 1,
    sample_rate_hz: int = 16_000,
    on_progress: Callable[[int, int], None] | None = None,
) -> CorpusReport:
    """Speak every line into `out/audio/ID.flac` (mono, 16 bits) and list them, in order, in `out/manifest.jsonl`.

    `out` appears when all is spoken; a killed call, made again, goes on where it was, and no file depends on `workers`.
    `on_progress` gets the lines done and the lines in all. Raises UserError for ids that repeat or cannot be file
    names, voices that cannot speak, and lines with nothing to say in any of them.
    """
    lines = list(lines)
    _check(lines)
    with build(out, KIND, corpus_settings(lines, sample_rate_hz)) as draft:
        (draft.folder / "audio").mkdir(exist_ok=True)
        tasks = [
            _Task(draft.folder, start, lines[start : start + _CHUNK_LINES], sample_rate_hz)
            for start in range(0, len(lines), _CHUNK_LINES)
        ]
        left = [task for task in tasks if not task.record.is_file()]
        num_done = len(lines) - sum(len(task.lines) for task in left)
        for num_lines in _run(left, workers):
            num_done += num_lines
            if on_progress:
                on_progress(num_done, len(lines))
        rows = [row for task in tasks for row in json.loads(task.record.read_bytes())]
        if not rows:
            raise UserError("there is nothing to speak: every line is empty or without a pronounceable character")
        manifest = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_bytes(draft.folder / "manifest.jsonl", manifest.encode())
        spoken = {row["id"] for row in rows}
        skipped = tuple(line.id for line in lines if line.id not in spoken)
        report = CorpusReport(len(rows), round(sum(row["seconds"] for row in rows), 3), skipped)
        draft.counts.update(asdict(report))
    return report


def corpus_settings(lines: Sequence[Line], sample_rate_hz: int = 16_000) -> dict[str, Any]:
    """What decides a spoken corpus, as `weft.artifacts.is_made` asks for it."""
    digest = hashlib.sha256(json.dumps([astuple(line) for line in lines]).encode()).hexdigest()
    return {"lines": digest[:16], "sample_rate_hz": sample_rate_hz}


def _check(lines: Sequence[Line]) -> None:
    seen: set[str] = set()
    for line in lines:
        if not _ID.fullmatch(line.id):
            raise UserError(f"id {line.id!r} cannot name a sound file: use letters, digits, _, - and .")
        if line.id in seen:
            raise UserError(f"id {line.id!r} occurs twice: make ids unique")
        seen.add(line.id)
    for voice in {line.voice for line in lines}:
        language_of(voice)


@dataclass(frozen=True)
class _Task:
    """Lines for one call of a worker. Their `record` is written after their sounds, so that it proves them whole."""

    folder: Path
    start: int
    lines: list[Line]
    sample_rate_hz: int

    @property
    def record(self) -> Path:
        return self.folder / "log" / "spoken" / f"{self.start:09d}.json"


def _run(tasks: list[_Task], workers: int) -> Iterator[int]:
    """Speak the tasks, in this process or in `workers` others, and yield each one's number of lines when it is done."""
    if workers <= 1 or len(tasks) <= 1:
        yield from map(_speak_task, tasks)
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _begin, max_tasks_per_child=_CHUNKS_PER_PROCESS)
    try:
        for future in as_completed([pool.submit(_speak_task, task) for task in tasks]):
            yield future.result()
    except BrokenProcessPool as e:
        raise UserError("a speaking process was killed (out of memory?): run again to go on, with fewer workers") from e
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    """Start of a worker, which leaves Ctrl-C to its parent and dies when the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _speak_task(task: _Task) -> int:
    rows = []
    for line in task.lines:
        if not (text := line.text.strip()) or not (speech := speak(text, line.voice)).samples.any():
            continue
        samples = soxr.resample(speech.samples, speech.sample_rate_hz, task.sample_rate_hz, quality="HQ")
        audio = f"audio/{line.id}.flac"
        buffer = io.BytesIO()
        soundfile.write(buffer, np.clip(samples, -1, 1), task.sample_rate_hz, format="FLAC", subtype="PCM_16")
        (task.folder / audio).write_bytes(buffer.getvalue())
        rows.append(
            {
                "id": line.id,
                "audio": audio,
                "text": text,
                "speaker": line.voice,
                "language": language_of(line.voice),
                "seconds": round(len(samples) / task.sample_rate_hz, 3),
                **({"source": line.source} if line.source else {}),
            }
        )
    write_bytes(task.record, json.dumps(rows).encode())
    return len(task.lines)


if __name__ == "__main__":
    print("languages:", " ".join(espeak.languages()))
    print("variants: ", " ".join("+" + name for name in espeak.variants()))
