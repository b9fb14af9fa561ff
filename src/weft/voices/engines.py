"""Text-to-speech engines by name.

    speech = speak("Good morning.", "espeak:en-us")

A voice is a string:

    espeak:LANGUAGE[+VARIANT][?speed=WORDS_PER_MINUTE&pitch=0..99]    espeak-ng, in this process
    command:PROGRAM ... {text_file} ... {out} ...                     any program that converts a text file to WAV

`python -m weft.voices.espeak` lists espeak's languages and variants. A command may contain a key of a service.
Messages, manifests and results therefore have `voice_name` in its place. A recipe with such a voice executes the
command, so use only recipes that you trust.
"""

from __future__ import annotations

import hashlib
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
import soundfile

from weft.errors import UserError, without_secrets
from weft.voices import espeak

_PLACEHOLDERS = ("{text_file}", "{out}")
_MIN_KEY_CHARS = 8


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


def voice_name(voice: str) -> str:
    """Return a name of a voice: an espeak voice itself, or command:PROGRAM-DIGEST for a command."""
    engine, _, spec = voice.partition(":")
    if engine == "espeak":
        return voice
    program = PurePath(spec.split(maxsplit=1)[0]).name if spec.strip() else ""
    return f"command:{without_secrets(program)}-{hashlib.sha256(spec.encode(errors='surrogateescape')).hexdigest()[:8]}"


def files_of(voice: str) -> list[Path]:
    """Return the files that the command of a voice names, such as the program and its model, in order."""
    engine, spec = _split(voice)
    parts = [part for argument in (_arguments(spec) if engine == "command" else ()) for part in argument.split("=")]
    return [path for path in map(Path, parts) if path.is_file()]


def _split(voice: str) -> tuple[str, str]:
    engine, _, spec = voice.partition(":")
    if engine not in ("espeak", "command"):
        start = without_secrets(voice.split(maxsplit=1)[0]) if voice.strip() else ""
        raise UserError(
            f"voice {start!r} has no engine: write espeak:LANGUAGE or command:PROGRAM {' '.join(_PLACEHOLDERS)}"
        )
    return engine, spec


def _arguments(template: str) -> list[str]:
    try:
        arguments = shlex.split(template)
    except ValueError as e:
        raise UserError(
            f"voice {voice_name(f'command:{template}')} cannot be parsed ({e}): quote it as in a shell"
        ) from e
    for placeholder in _PLACEHOLDERS:
        if not any(placeholder in argument for argument in arguments):
            raise UserError(
                f"voice {voice_name(f'command:{template}')} lacks {placeholder}: the program reads {_PLACEHOLDERS[0]} "
                f"and writes {_PLACEHOLDERS[1]}"
            )
    return arguments


def _run_command(text: str, template: str) -> Speech:
    arguments, name = _arguments(template), voice_name(f"command:{template}")
    from weft.audio import load  # imports torch, which a process that uses only espeak does not need

    with tempfile.TemporaryDirectory(prefix="weft-voice-") as folder:
        text_file, out = Path(folder, "text.txt"), Path(folder, "out.wav")
        text_file.write_text(text + "\n", encoding="utf-8")
        command = [a.replace("{text_file}", str(text_file)).replace("{out}", str(out)) for a in arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        except OSError as e:
            raise UserError(f"voice {name} cannot be started ({e.strerror}): install its program") from e
        if done.returncode != 0:
            message = _without_arguments((done.stderr or done.stdout).strip().rsplit("\n", 1)[-1], command)
            raise UserError(f"voice {name} failed ({message or 'no message'}): run it in a shell with a text file")
        if not out.is_file():
            raise UserError(f"voice {name} wrote no file to {{out}}: check its options")
        try:
            rate_hz = soundfile.info(out).samplerate
        except soundfile.LibsndfileError as e:
            raise UserError(f"voice {name} wrote no audio to {{out}}: it must write a WAV file") from e
        return Speech(load(out, rate_hz), rate_hz)


def _without_arguments(message: str, command: Sequence[str]) -> str:
    """Return a program's message without its longer arguments, which may be keys."""
    for argument in sorted(command[1:], key=len, reverse=True):
        if len(argument) >= _MIN_KEY_CHARS:
            message = message.replace(argument, "...")
    return without_secrets(message)
