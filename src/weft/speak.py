"""Lines of text to sound: a speech corpus from any text-to-speech engine.

run(SpeakConfig(text=(Path("sentences.txt"),), out=Path("speech"), voice=("espeak:en-us", "espeak:en-gb")))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from weft import artifacts, progress
from weft.artifacts import Manifest
from weft.config import Count
from weft.errors import UserError
from weft.voices import KIND, Line, corpus_settings, speak_corpus


@dataclass(frozen=True)
class SpeakConfig:
    """What to speak, and with which voices."""

    text: tuple[Path, ...]
    """Text files, one line an utterance."""
    out: Path
    """Folder to write the sound and its manifest to."""
    voice: tuple[str, ...] = ("espeak:en-us",)
    """Voices, taken in turn: espeak:LANGUAGE[+VARIANT][?speed=..&pitch=..] or command:PROGRAM {text_file} {out}."""
    workers: Count = 2
    """Processes."""


def run(config: SpeakConfig) -> Manifest:
    """Make the artifact `config.out`. Raises UserError for files without a line, and for voices that cannot speak."""
    lines = [(path, n, line) for path in config.text for n, line in enumerate(_read(path), 1) if line.strip()]
    if not lines:
        raise UserError(f"{', '.join(map(str, config.text))}: there is no line to speak")
    return speak_lines(
        [
            Line(f"{path.stem}-{n}", line.strip(), config.voice[i % len(config.voice)])
            for i, (path, n, line) in enumerate(lines)
        ],
        config.out,
        config.workers,
    )


def speak_lines(lines: Sequence[Line], out: Path, workers: int) -> Manifest:
    """`weft.voices.speak_corpus` with a progress bar; a corpus that is made already is left as it is."""
    if artifacts.is_made(out, KIND, corpus_settings(lines)):
        return artifacts.read(out)
    with progress.bar("speak", len(lines)) as advance:
        done = 0

        def show(now_done: int, _: int) -> None:
            nonlocal done
            advance(now_done - done)
            done = now_done

        speak_corpus(lines, out, workers, on_progress=show)
    return artifacts.read(out)


def _read(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as e:
        raise UserError(f"{path} does not exist: give a text file") from e
    except UnicodeDecodeError as e:
        raise UserError(f"{path} is not UTF-8 text ({e.reason} at byte {e.start}): convert it") from e
