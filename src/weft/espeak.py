"""espeak-ng in this process, through the C interface that its speak_lib.h declares.

    voice = parse("en-gb+f3?speed=150")
    samples, rate_hz = synthesize("Good morning.", voice)

The same text and voice give the same samples, whatever was spoken before. Calls from several threads take turns.
"""

from __future__ import annotations

import _ctypes
import ctypes
import difflib
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import parse_qsl

import espeakng_loader
import numpy as np

from weft.errors import UserError

_SYNCHRONOUS = 2  # sound comes from within espeak_Synth; through its thread and queue the same takes five times longer
_DO_NOT_EXIT = 0x8000  # or the library ends the process when it finds no data
_CHARS_UTF8 = 1
_PARAMETERS = {"speed": (1, 80, 450), "pitch": (3, 0, 99)}  # espeak's number for it, least, most
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
    """A language, the name that espeak has for its voice and variant, and the (parameter, value)s to set."""

    language: str
    name: str
    parameters: tuple[tuple[int, int], ...]


@cache
def parse(spec: str) -> Voice:
    """The voice LANGUAGE[+VARIANT][?speed=WORDS_A_MINUTE&pitch=0..99]. Raises UserError for one espeak lacks."""
    full_name, _, query = spec.partition("?")
    language, plus, variant = full_name.partition("+")
    language = language.lower()
    if language not in languages():
        _refuse(f"espeak has no voice {language!r}", language, languages())
    if plus and variant not in variants():
        _refuse(f"espeak has no variant {variant!r}", variant, variants())
    parameters = []
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in _PARAMETERS:
            raise UserError(f"voice espeak:{spec} sets {key!r}: only {' and '.join(_PARAMETERS)} can be set")
        number, least, most = _PARAMETERS[key]
        if not value.isdecimal() or not least <= int(value) <= most:
            raise UserError(f"voice espeak:{spec} has {key}={value}: give a whole number from {least} to {most}")
        parameters.append((number, int(value)))
    return Voice(language, f"{languages()[language]}{plus}{variant}", tuple(parameters))


def synthesize(text: str, voice: Voice) -> tuple[np.ndarray, int]:
    """Mono samples (S,), float32 in [-1, 1], and their rate in Hz: silence where there is nothing to pronounce."""
    pieces: list[np.ndarray] = []

    @_ON_SAMPLES
    def keep(samples: Any, num_samples: int, _events: Any) -> int:
        if samples and num_samples > 0:
            pieces.append(np.ctypeslib.as_array(samples, (num_samples,)).astype(np.float32))
        return 0

    spoken = text.replace("\0", " ").encode() + b"\0"
    with _library() as (library, rate_hz):
        library.espeak_SetSynthCallback(keep)
        if library.espeak_SetVoiceByName(voice.name.encode()) != 0:
            raise UserError(f"espeak-ng cannot load its voice {voice.name}: reinstall the espeakng-loader package")
        for parameter, value in voice.parameters:
            library.espeak_SetParameter(parameter, value, 0)
        with _interrupts_held():
            library.espeak_Synth(spoken, ctypes.c_size_t(len(spoken)), 0, 0, 0, _CHARS_UTF8, None, None)
    samples = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
    return samples / np.float32(32768), rate_hz


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back until the block ends: raised inside a callback from C it would be lost, and samples with it."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread is interrupted
        return
    held: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if held:
        signal.raise_signal(signal.SIGINT)


@cache
def languages() -> dict[str, str]:
    """Every language code and voice file, in lower case -> the name that espeak loads it by."""
    with _library() as (library, _):
        library.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(_Entry))
        entries = _until_null(library.espeak_ListVoices(None))
        codes = {e.identifier.decode().rsplit("/", 1)[-1].lower(): list(_codes(e)) for e in entries}
    by_code = {code: file for file in reversed(codes) for code in codes[file]}
    return dict(sorted((by_code | {file: file for file in codes}).items()))


@cache
def variants() -> tuple[str, ...]:
    """The voices that any language can be spoken with, as `+NAME`."""
    return tuple(sorted(file.name for file in Path(espeakng_loader.get_data_path(), "voices", "!v").iterdir()))


@contextmanager
def _library() -> Iterator[tuple[ctypes.CDLL, int]]:
    """The library, freshly loaded, and its sample rate in Hz.

    espeak-ng keeps state between utterances (its place in the pitch flutter, the parity of glottal cycles, the gain)
    that no call resets. Loading it anew for each costs some 6 ms, and makes speech reproducible.
    """
    with _LOCK:
        library = ctypes.CDLL(espeakng_loader.get_library_path())
        try:
            data = espeakng_loader.get_data_path()
            rate_hz = library.espeak_Initialize(_SYNCHRONOUS, 0, data.encode(), _DO_NOT_EXIT)
            if rate_hz <= 0:
                raise UserError(
                    f"espeak-ng cannot read {data}: install espeakng-loader again, at a path under 150 letters"
                )
            library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # breathy variants are made with noise
            yield library, rate_hz
            library.espeak_Terminate()
        finally:
            _unload(library._handle)


def _until_null(entries: Any) -> Iterator[_Entry]:
    i = 0
    while entries[i]:
        yield entries[i].contents
        i += 1


def _codes(entry: _Entry) -> Iterator[str]:
    i = 0
    while entry.languages[i] != b"\0":
        code = ctypes.string_at(ctypes.addressof(entry.languages.contents) + i + 1)
        yield code.decode().lower()
        i += len(code) + 2


def _refuse(what: str, name: str, known: Iterable[str]) -> NoReturn:
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise UserError(f"{what}: {hint}`python -m weft.voices` lists them all")
