"""Speech synthesis by espeak-ng in this process, through the C interface of its speak_lib.h.

    speech = voice("en-gb+f3?speed=150", None).speak("Good morning.")

The samples depend on text and voice only. `python -m weft.voices.espeak` lists languages and variants.
"""

from __future__ import annotations

import _ctypes
import ctypes
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import espeakng_loader
import numpy as np

from weft import progress
from weft.errors import UserError
from weft.voices.voice import Speech, Voice, check_known, split_settings

SAMPLED: tuple[str, ...] = ("speed", "pitch")
_SYNCHRONOUS = 2  # samples are returned within espeak_Synth, five times as fast as through its thread and queue
_DO_NOT_EXIT = 0x8000  # otherwise the library ends the process when its data is missing
_CHARS_UTF8 = 1
_PARAMETERS = {"speed": (1, 80, 450), "pitch": (3, 0, 99)}  # number of the parameter, minimum, maximum
_LISTED = "`python -m weft.voices.espeak` lists them"
_LOCK = threading.Lock()
_ON_SAMPLES = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
_unload = getattr(_ctypes, "dlclose", None) or getattr(_ctypes, "FreeLibrary")  # noqa: B009, for mypy on POSIX


class _Entry(ctypes.Structure):
    """The first fields of an espeak_VOICE. `languages` is a list of (priority byte, name, NUL), ended by a NUL."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("languages", ctypes.POINTER(ctypes.c_char)),
        ("identifier", ctypes.c_char_p),
    )


@dataclass(frozen=True)
class Settings:
    """A language, espeak's name of the voice and variant, and (parameter, value) pairs."""

    language: str
    name: str
    parameters: tuple[tuple[int, int], ...]


def voice(spec: str, name: str | None) -> Voice:
    """Return the voice LANGUAGE[+VARIANT][?speed=WORDS_PER_MINUTE&pitch=0..99]. Raises UserError as `parse` does."""
    settings, identity = parse(spec), f"espeak:{spec}"
    return Voice(partial(synthesize, settings=settings), name or identity, settings.language, identity)


def speakers(spec: str) -> list[str]:
    """Return the voice itself."""
    return [spec]


def parse(spec: str) -> Settings:
    """Parse LANGUAGE[+VARIANT][?speed=WORDS_PER_MINUTE&pitch=0..99]. Raises UserError for unknown or invalid parts."""
    full_name, settings = split_settings("espeak", spec, _PARAMETERS)
    language, plus, variant = full_name.partition("+")
    language = language.lower()
    check_known("espeak has no voice", language, languages(), _LISTED)
    if plus:
        check_known("espeak has no variant", variant, variants(), _LISTED)
    parameters = []
    for key, value in settings.items():
        number, low, high = _PARAMETERS[key]
        if not value.isdecimal() or not low <= int(value) <= high:
            raise UserError(f"voice espeak:{spec} has {key}={value}: give a whole number from {low} to {high}")
        parameters.append((number, int(value)))
    return Settings(language, f"{languages()[language]}{plus}{variant}", tuple(parameters))


def synthesize(text: str, settings: Settings) -> Speech:
    """Return speech. Unpronounceable text gives silence, or no samples."""
    pieces: list[np.ndarray] = []

    @_ON_SAMPLES
    def keep(samples: Any, num_samples: int, _events: Any) -> int:
        if samples and num_samples > 0:
            pieces.append(np.ctypeslib.as_array(samples, (num_samples,)).astype(np.float32))
        return 0

    encoded = text.replace("\0", " ").encode() + b"\0"
    with _library() as (library, rate_hz):
        library.espeak_SetSynthCallback(keep)
        if library.espeak_SetVoiceByName(settings.name.encode()) != 0:
            raise UserError(f"espeak-ng cannot load its voice {settings.name}: reinstall the espeakng-loader package")
        for parameter, value in settings.parameters:
            library.espeak_SetParameter(parameter, value, 0)
        with _delayed_interrupts():
            library.espeak_Synth(encoded, ctypes.c_size_t(len(encoded)), 0, 0, 0, _CHARS_UTF8, None, None)
    samples = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
    return Speech(samples / np.float32(32768), rate_hz)


@contextmanager
def _delayed_interrupts() -> Iterator[None]:
    """Delay Ctrl-C until the block ends. An exception inside a callback from C would be lost, with samples."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread is interrupted
        return
    received: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: received.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if received:
        signal.raise_signal(signal.SIGINT)


@cache
def languages() -> dict[str, str]:
    """Return espeak's voice names by language codes and names of voice files, both in lower case."""
    with _library() as (library, _):
        library.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(_Entry))
        pointers = library.espeak_ListVoices(None)
        entries = [p.contents for p in takewhile(bool, (pointers[i] for i in count()))]
        codes = {e.identifier.decode().rsplit("/", 1)[-1].lower(): list(_codes(e)) for e in entries}
    by_code = {code: file for file in reversed(codes) for code in codes[file]}
    return dict(sorted((by_code | {file: file for file in codes}).items()))


@cache
def variants() -> tuple[str, ...]:
    """Return the variants (`+NAME`), which can be combined with any language."""
    return tuple(sorted(file.name for file in Path(espeakng_loader.get_data_path(), "voices", "!v").iterdir()))


@contextmanager
def _library() -> Iterator[tuple[ctypes.CDLL, int]]:
    """Load the library and yield it with its sample rate in Hz.

    espeak-ng keeps state between utterances (position in the pitch flutter, parity of glottal cycles, gain) that no
    call resets. Loading it for each utterance takes about 6 ms and makes speech reproducible.
    """
    with _LOCK:
        library = ctypes.CDLL(espeakng_loader.get_library_path())
        try:
            data = espeakng_loader.get_data_path()
            rate_hz = library.espeak_Initialize(_SYNCHRONOUS, 0, data.encode(), _DO_NOT_EXIT)
            if rate_hz <= 0:
                raise UserError(
                    f"espeak-ng cannot read {data}: reinstall espeakng-loader in a shorter path (< 150 characters)"
                )
            library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # for the noise of breathy variants
            yield library, rate_hz
            library.espeak_Terminate()
        finally:
            _unload(library._handle)


def _codes(entry: _Entry) -> Iterator[str]:
    """Yield the language codes of a voice."""
    i = 0
    while entry.languages[i] != b"\0":
        code = ctypes.string_at(ctypes.addressof(entry.languages.contents) + i + 1)
        yield code.decode().lower()
        i += len(code) + 2


if __name__ == "__main__":
    progress.show(f"languages: {' '.join(languages())}", f"variants:  {' '.join('+' + name for name in variants())}")
