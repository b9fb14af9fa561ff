"""What all TTS engines share: speech, voices, and the settings after `?` in the name of a voice.

An engine is a module with the functions of `Engine`, listed in `weft.voices.engines`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from weft.errors import UserError


@dataclass(frozen=True)
class Speech:
    """Mono samples (S,), float32 in [-1, 1]."""

    samples: np.ndarray
    sample_rate_hz: int


@dataclass(frozen=True)
class Voice:
    """A voice of an engine.

    `speak` synthesizes a text; unpronounceable text gives silence, or no samples at all. `name` is that of the speaker
    in manifests and messages. `identity` and the contents of `files` determine the speech of a text.
    """

    speak: Callable[[str], Speech]
    name: str
    language: str | None
    identity: str
    files: tuple[Path, ...] = ()


class Engine(Protocol):
    """The interface of an engine's module. `spec` is the voice after `ENGINE:`.

    `SAMPLED` names the settings that can list values, one of which is sampled for each line of a corpus.
    """

    SAMPLED: tuple[str, ...]

    def voice(self, spec: str, name: str | None) -> Voice:
        """Return a voice, ready to speak, with `name` or its own name.

        Raises UserError for an unknown or invalid voice, and for what is not installed.
        """

    def speakers(self, spec: str) -> list[str]:
        """Return the specs of all voices that `spec` stands for: itself, or for example each voice of a language."""


def split_settings(engine: str, spec: str, known: Collection[str]) -> tuple[str, dict[str, str]]:
    """Split NAME?KEY=VALUE&KEY=VALUE. Raises UserError for keys that are not known."""
    name, _, query = spec.partition("?")
    pairs = [pair.partition("=") for pair in query.split("&") if pair]
    for key, _, _ in pairs:
        if key not in known:
            raise UserError(f"voice {engine}:{spec} sets {key!r}: give only {', '.join(known)}")
    return name, {key: value for key, _, value in pairs}


def joined(name: str, settings: dict[str, str]) -> str:
    """Return NAME?KEY=VALUE&KEY=VALUE."""
    return "?".join(filter(None, (name, "&".join(f"{key}={value}" for key, value in settings.items()))))


def speed_factor(voice: str, value: str) -> float:
    """Parse a speed. Raises UserError if it is not a factor from 0.5 to 2."""
    try:
        factor = float(value)
    except ValueError:
        factor = 0.0
    if not 0.5 <= factor <= 2:
        raise UserError(f"voice {voice} has speed={value}: give a factor from 0.5 to 2")
    return factor


def check_known(what: str, name: str, known: Collection[str], where: str) -> None:
    """Raise UserError with similar names if `name` is not known. `where` tells what lists the names."""
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise UserError(f"{what} {name!r}: {hint}{where}")
