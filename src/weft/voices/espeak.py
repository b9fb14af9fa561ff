"""Speech synthesis by espeak-ng in this process, through the C interface of its speak_lib.h.

    voice = parse("en-gb+f3?speed=150")
    samples, rate_hz = synthesize("Good morning.", voice)

The samples depend on text and voice only. `python -m weft.voices.espeak` lists languages and variants.
"""

from __future__ import annotations

import _ctypes
import ctypes
import difflib
import signal
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import count, takewhile
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import espeakng_loader
import numpy as np

from weft import progress
from weft.errors import UserError

_SYNCHRONOUS = 2  # samples are returned within espeak_Synth, five times as fast as through its thread and queue
_DO_NOT_EXIT = 0x8000  # otherwise the library ends the process when its data is missing
_CHARS_UTF8 = 1
_PARAMETERS = {"speed": (1, 80, 450), "pitch": (3, 0, 99)}  # number of the parameter, minimum, maximum
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
class Voice:
    """A language, espeak's name of the voice and variant, and (parameter, value) pairs."""

    language: str
    name: str
    parameters: tuple[tuple[int, int], ...]


@cache
def parse(spec: str) -> Voice:
    """Parse LANGUAGE[+VARIANT][?speed=WORDS_PER_MINUTE&pitch=0..99]. Raises UserError for unknown or invalid parts."""
    full_name, _, query = spec.partition("?")
    language, plus, variant = full_name.partition("+")
    language = language.lower()
    _check_known("voice", language, languages())
    if plus:
        _check_known("variant", variant, variants())
    parameters = []
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in _PARAMETERS:
            raise UserError(f"voice espeak:{spec} sets {key!r}: give only {' and '.join(_PARAMETERS)}")
        number, low, high = _PARAMETERS[key]
        if not value.isdecimal() or not low <= int(value) <= high:
            raise UserError(f"voice espeak:{spec} has {key}={value}: give a whole number from {low} to {high}")
        parameters.append((number, int(value)))
    return Voice(language, f"{languages()[language]}{plus}{variant}", tuple(parameters))


def synthesize(text: str, voice: Voice) -> tuple[np.ndarray, int]:
    """Return mono samples (S,), float32 in [-1, 1], and their rate in Hz. Unpronounceable text gives silence."""
    pieces: list[np.ndarray] = []

    @_ON_SAMPLES
    def keep(samples: Any, num_samples: int, _events: Any) -> int:
        if samples and num_samples > 0:
            pieces.append(np.ctypeslib.as_array(samples, (num_samples,)).astype(np.float32))
        return 0

    encoded = text.replace("\0", " ").encode() + b"\0"
    with _library() as (library, rate_hz):
        library.espeak_SetSynthCallback(keep)
        if library.espeak_SetVoiceByName(voice.name.encode()) != 0:
            raise UserError(f"espeak-ng cannot load its voice {voice.name}: reinstall the espeakng-loader package")
        for parameter, value in voice.parameters:
            library.espeak_SetParameter(parameter, value, 0)
        with _delayed_interrupts():
            library.espeak_Synth(encoded, ctypes.c_size_t(len(encoded)), 0, 0, 0, _CHARS_UTF8, None, None)
    samples = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
    return samples / np.float32(32768), rate_hz


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


def _check_known(what: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise UserError(f"espeak has no {what} {name!r}: {hint}`python -m weft.voices.espeak` lists them")


if __name__ == "__main__":
    progress.show(f"languages: {' '.join(languages())}", f"variants:  {' '.join('+' + name for name in variants())}")
