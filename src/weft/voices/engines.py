"""Text-to-speech engines by name.

    speech = speak("Good morning.", "espeak:en-us")

A voice is a string:

    espeak:LANGUAGE[+VARIANT][?speed=WORDS_PER_MINUTE&pitch=0..99]    espeak-ng, in this process
    command:PROGRAM ... {text_file} ... {out} ...                     any program that converts a text file to WAV

`python -m weft.voices.espeak` lists espeak's languages and variants.
"""

from __future__ import annotations

import shlex
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from weft.errors import UserError
from weft.voices import espeak

_PLACEHOLDERS = ("{text_file}", "{out}")


@dataclass(frozen=True)
class Speech:
    """Mono samples (S,), float32 in [-1, 1]."""

    samples: np.ndarray
    sample_rate_hz: int


def speak(text: str, voice: str) -> Speech:
    """Synthesize `text`. Unpronounceable text gives silence, or no samples at all.

    Raises UserError for an unknown or invalid voice and for a command that fails.
    """
    engine, spec = _split(voice)
    return Speech(*espeak.synthesize(text, espeak.parse(spec))) if engine == "espeak" else _run_command(text, spec)


def language_of(voice: str) -> str | None:
    """Return the language of an espeak voice ("en-us"), None for a command. Raises UserError as `speak` does."""
    engine, spec = _split(voice)
    if engine == "espeak":
        return espeak.parse(spec).language
    _arguments(spec)
    return None


def _split(voice: str) -> tuple[str, str]:
    engine, _, spec = voice.partition(":")
    if engine not in ("espeak", "command"):
        raise UserError(
            f"voice {voice!r} has no engine: write espeak:LANGUAGE or command:PROGRAM {' '.join(_PLACEHOLDERS)}"
        )
    return engine, spec


def _arguments(template: str) -> list[str]:
    try:
        arguments = shlex.split(template)
    except ValueError as e:
        raise UserError(f"voice command:{template} cannot be parsed ({e}): quote it as in a shell") from e
    for placeholder in _PLACEHOLDERS:
        if not any(placeholder in argument for argument in arguments):
            raise UserError(
                f"voice command:{template} lacks {placeholder}: the program reads {_PLACEHOLDERS[0]} and writes "
                f"{_PLACEHOLDERS[1]}"
            )
    return arguments


def _run_command(text: str, template: str) -> Speech:
    arguments = _arguments(template)
    from weft.audio import load  # imports torch, which a process that uses only espeak does not need

    with tempfile.TemporaryDirectory(prefix="weft-voice-") as folder:
        text_file, out = Path(folder, "text.txt"), Path(folder, "out.wav")
        text_file.write_text(text + "\n", encoding="utf-8")
        command = [a.replace("{text_file}", str(text_file)).replace("{out}", str(out)) for a in arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        except OSError as e:
            raise UserError(f"voice command {command[0]!r} cannot be started ({e.strerror}): install it") from e
        if done.returncode != 0:
            message = (done.stderr or done.stdout).strip().rsplit("\n", 1)[-1] or "no message"
            raise UserError(f"voice command {command[0]!r} failed ({message}): run it in a shell with a text file")
        if not out.is_file():
            raise UserError(f"voice command {command[0]!r} wrote no file to {{out}}: check its options in {template!r}")
        try:
            rate_hz = soundfile.info(out).samplerate
        except soundfile.LibsndfileError as e:
            raise UserError(f"voice command {command[0]!r} wrote no audio to {{out}}: it must write a WAV file") from e
        return Speech(load(out, rate_hz), rate_hz)
