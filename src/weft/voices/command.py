"""Programs as voices.

    speech = voice("piper --model voice.onnx --input {text_file} --output {out}", None).speak("Good morning.")
    speech = voice("python tts.py --voice joe", "joe").speak("Good morning.")

With placeholders, the program runs once for each text: it reads {text_file} and writes {out}. Without, it keeps
running: it reads one text per line from its standard input, and writes one line for each text to its standard output:
the path of a sound file, which it may overwrite for the next text, or an empty line if there is nothing to pronounce.
It should end when its input ends. If it ends earlier, or takes more than TIMEOUT_SEC for a text, the text fails, and
the program is started again for the next text.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePath

import numpy as np
import soundfile

from weft.errors import UserError, without_secrets
from weft.voices import program
from weft.voices.voice import Speech, Voice

SAMPLED: tuple[str, ...] = ()
TIMEOUT_SEC = 300
_PLACEHOLDERS = ("{text_file}", "{out}")
_PLACEHOLDER = re.compile("|".join(map(re.escape, _PLACEHOLDERS)))


def voice(spec: str, name: str | None) -> Voice:
    """Return the voice of a command, command:PROGRAM-DIGEST unless it has a name. Its language is unknown."""
    if name is None:
        program = PurePath(spec.split(maxsplit=1)[0]).name if spec.strip() else ""
        digest = hashlib.sha256(spec.encode(errors="surrogateescape")).hexdigest()[:8]
        name = f"command:{without_secrets(program)}-{digest}"
    arguments = _arguments(spec, name)
    speak = partial(_speak, arguments=arguments, name=name)
    parts = [part for argument in arguments for part in argument.split("=")]
    return Voice(speak, name, None, f"command:{spec}", tuple(path for path in map(Path, parts) if path.is_file()))


def speakers(spec: str) -> list[str]:
    """Return the command itself."""
    return [spec]


def _arguments(command: str, name: str) -> tuple[str, ...]:
    try:
        arguments = tuple(shlex.split(command))
    except ValueError as e:
        raise UserError(f"voice {name} cannot be parsed ({e}): quote it as in a shell") from e
    if not arguments:
        raise UserError(f"voice {name} names no program: write command:PROGRAM")
    given = [p for p in _PLACEHOLDERS if any(p in argument for argument in arguments)]
    if len(given) == 1:
        lacks = next(p for p in _PLACEHOLDERS if p not in given)
        raise UserError(
            f"voice {name} lacks {lacks}: the program reads {_PLACEHOLDERS[0]} and writes {_PLACEHOLDERS[1]}"
        )
    return arguments


def _speak(text: str, arguments: tuple[str, ...], name: str) -> Speech:
    try:
        if any(placeholder in argument for placeholder in _PLACEHOLDERS for argument in arguments):
            return _speak_once(text, arguments, name)
        path = program.answer(arguments, " ".join(text.split()), TIMEOUT_SEC)
    except OSError as e:
        raise UserError(f"voice {name} cannot be started ({e.strerror}): install its program") from e
    except program.ProgramError as e:
        raise UserError(f"voice {name} failed ({e}): run it in a shell with this text") from e
    if path and not Path(path).is_file():
        program.end(arguments)  # its next line could be the answer to this text
        raise UserError(f"voice {name} answered with a line that is not a file: it must write paths, one for each text")
    return _read(Path(path), name) if path else Speech(np.zeros(0, np.float32), 16_000)


def _speak_once(text: str, arguments: Sequence[str], name: str) -> Speech:
    with tempfile.TemporaryDirectory(prefix="weft-voice-") as folder:
        text_file, out = Path(folder, "text.txt"), Path(folder, "out.wav")
        text_file.write_text(text + "\n", encoding="utf-8")
        paths = {"{text_file}": str(text_file), "{out}": str(out)}
        program.run([_PLACEHOLDER.sub(lambda found: paths[found[0]], a) for a in arguments], TIMEOUT_SEC)
        if not out.is_file():
            raise UserError(f"voice {name} wrote no file to {{out}}: check its options")
        return _read(out, name)


def _read(path: Path, name: str) -> Speech:
    from weft.audio import load  # imports torch, which a process that uses only espeak does not need

    try:
        rate_hz = soundfile.info(path).samplerate
    except soundfile.LibsndfileError as e:
        raise UserError(f"voice {name} wrote no audio: it must write a WAV file") from e
    try:
        return Speech(load(path, rate_hz), rate_hz)
    except UserError as e:
        raise UserError(f"voice {name} wrote unusable audio: {str(e).replace(str(path), 'its file')}") from e
