"""Text-to-speech engines by name.

    speech = speak("Good morning.", "espeak:en-us")

A voice is a string:

    espeak:LANGUAGE[+VARIANT][?speed=WORDS_PER_MINUTE&pitch=0..99]    espeak-ng, in this process
    kokoro:VOICE[?speed=FACTOR&folder=DIR]                            Kokoro, in this process
    piper:MODEL[?speed=FACTOR&speaker=SPEAKER&folder=DIR]             Piper, in this process
    command:PROGRAM ... {text_file} ... {out} ...                     a program that converts a text file to WAV
    command:PROGRAM ...                                               a program that answers each line of text with the
                                                                      path of a sound file
    NAME=VOICE, NAME@LANGUAGE=VOICE                                   a voice with another name (and language)

`python -m weft.voices.espeak` and `python -m weft.voices.kokoro` list voices. A command may contain a key of a service.
Messages, manifests and results therefore have the name of a voice in its place. A recipe with such a voice executes the
command, so use only recipes that you trust.
"""

from __future__ import annotations

import re
from dataclasses import replace

from weft.errors import UserError, printable, without_secrets
from weft.voices import command, espeak, kokoro, piper
from weft.voices.voice import Engine, Speech, Voice

ENGINES: dict[str, Engine] = {"command": command, "espeak": espeak, "kokoro": kokoro, "piper": piper}
_NAMED = re.compile(
    rf"(?!command:)(?P<name>\S+?)(?:@(?P<language>[\w-]+))?=(?P<voice>(?:{'|'.join(ENGINES)}):.*)", re.DOTALL
)


def speak(text: str, voice: str) -> Speech:
    """Synthesize `text`. Unpronounceable text gives silence, or no samples at all.

    Raises UserError for an unknown or invalid voice and for a command that fails.
    """
    return parse(voice).speak(text)


def language_of(voice: str) -> str | None:
    """Return the language of a voice ("en-us"), None for a command without one. Raises UserError as `speak` does."""
    return parse(voice).language


def voice_name(voice: str) -> str:
    """Return the name of a voice in manifests and results, which contains neither commands nor paths of models."""
    return parse(voice).name


def parse(voice: str) -> Voice:
    """Return a voice, with its model loaded. Raises UserError for an unknown or invalid voice."""
    given, engine, spec = split(voice)
    if given is None:
        return ENGINES[engine].voice(spec, None)
    name, _, language = given.partition("@")
    own = ENGINES[engine].voice(spec, printable(name))
    return replace(own, language=language or own.language, identity=f"{given}={own.identity}")


def split(voice: str) -> tuple[str | None, str, str]:
    """Return NAME[@LANGUAGE] (None if not given), the engine, and the rest. Raises UserError for another engine."""
    found = _NAMED.fullmatch(voice)
    engine, _, spec = (found["voice"] if found else voice).partition(":")
    if engine not in ENGINES:
        start = without_secrets(voice.split(maxsplit=1)[0]) if voice.strip() else ""
        raise UserError(f"voice {start!r} has no engine: write {':..., '.join(ENGINES)}:... (docs/formats.md)")
    return (voice[: found.start("voice") - 1] if found else None), engine, spec
