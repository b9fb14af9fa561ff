"""Recordings of items as FLAC files, and speech of voices for questions without a recording.

    converted = convert(items, folder, voices=("espeak:en-us",))
    converted.rows          # of items.jsonl, with the paths of their recordings

An item has all of its recordings or none: one that cannot be read is listed as missing, and the item keeps its texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weft import progress
from weft.audio import SAMPLE_RATE_HZ, resample, save
from weft.data.skipped import Skipped
from weft.errors import UserError
from weft.eval.prepare.items import Item, lacking
from weft.eval.prepare.sounds import Sound
from weft.voices.choice import choose
from weft.voices.engines import parse
from weft.voices.voice import Voice

AUDIO = "audio"
_SEED = 0  # of the speeds and pitches of voices that list several


@dataclass
class Converted:
    """The rows of items, recordings that are missing, items that are left out without them, and synthesized ones."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    missing: Skipped = field(default_factory=Skipped)
    left_out: Skipped = field(default_factory=Skipped)
    num_spoken: int = 0

    @property
    def voices(self) -> list[str]:
        """Names of the voices of all recordings; "recordings" are those without a name."""
        return sorted({row.get("voice", "recordings") for row in self.rows if _has_audio(row)})


def speakers(voices: Sequence[str], items: Sequence[Item]) -> dict[str, Voice]:
    """Return the voices that can speak items. Raises UserError for an unknown or invalid one."""
    return (
        {voice: parse(voice) for voice in sorted(set(choose(voices, [i.id for i in items], _SEED)))} if voices else {}
    )


def convert(items: Sequence[Item], folder: Path, voices: Sequence[str] = ()) -> Converted:
    """Write the recordings of items to `audio` in a directory. Those that are already there are not read again."""
    found, names = Converted(), list[str]()
    with progress.bar("recordings", len(items)) as advance:
        for number, item in enumerate(items):
            advance()
            audio = _recordings(item.sounds, folder, f"{AUDIO}/{number:05d}", item.id, found.missing)
            if problem := lacking(item.row, audio):
                found.left_out.add(item.where, f"{problem} that can be read")
                continue
            row = {"id": item.id, **item.row, **audio}
            found.rows.append(row if audio else {key: value for key, value in row.items() if key != "voice"})
            names.append(f"{AUDIO}/{number:05d}-spoken.flac")
    if voices:
        _speak(found, names, folder, voices)
    return found


def _recordings(sounds: Mapping[str, Sound], folder: Path, name: str, item: str, missing: Skipped) -> dict[str, str]:
    """Write recordings, and return their paths by key; none if one of them cannot be read."""
    paths = {key: f"{name}{'' if key == AUDIO else '-' + key.removesuffix('_audio')}.flac" for key in sounds}
    samples = None
    with missing.on_error(item):
        samples = {key: sound.load() for key, sound in sounds.items() if not (folder / paths[key]).exists()}
    if samples is None:
        return {}
    for key, values in samples.items():
        save(folder / paths[key], values, SAMPLE_RATE_HZ)
    return paths


def _speak(found: Converted, names: Sequence[str], folder: Path, voices: Sequence[str]) -> None:
    """Synthesize the questions without a recording, by one voice after the other."""
    silent = [(row, name) for row, name in zip(found.rows, names, strict=True) if not _has_audio(row)]
    chosen = choose(voices, [row["id"] for row, _ in silent], _SEED)
    with progress.bar("speak", len(silent)) as advance:
        for (row, name), voice in zip(silent, chosen, strict=True):
            advance()
            samples = None
            with found.missing.on_error(row["id"]):
                speaker = parse(voice)
                if not (folder / name).exists():
                    speech = speaker.speak(row["question"])
                    if not speech.samples.any():
                        raise UserError("it has nothing to pronounce")
                    samples = resample(speech.samples, speech.sample_rate_hz)
                row |= {"audio": name, "voice": speaker.name}
                found.num_spoken += 1
            if samples is not None:
                save(folder / name, samples, SAMPLE_RATE_HZ)


def _has_audio(row: Mapping[str, Any]) -> bool:
    return any(key == AUDIO or key.endswith("_audio") for key in row)
