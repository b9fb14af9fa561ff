"""The voice of each line of a corpus.

voices = choose(["kokoro:en?speed=0.9,1,1.1", "espeak:en-us?speed=150,170&pitch=40,50"], ["line-1", "line-2"], seed=0)
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import cycle, product

from weft.errors import UserError
from weft.voices.engines import ENGINES, split, voice_name
from weft.voices.voice import joined


def choose(voices: Sequence[str], ids: Sequence[str], seed: int) -> list[str]:
    """Return the voice of each line.

    Speakers are used in turn, so that each has the same number of lines. Among the speeds and pitches of a speaker, one
    is sampled by the seed and the id of the line, so that they do not depend on the order of lines and speakers.
    """
    speakers = cycle(_speakers(voices))
    return [random.Random(f"{seed}/{name}").choice(next(speakers)) for name in ids]


def _speakers(voices: Sequence[str]) -> list[list[str]]:
    """Return the speakers that the voices stand for, each as a list of voices with single speeds and pitches."""
    found = []
    for voice in voices:
        name, engine, spec = split(voice)
        specs = ENGINES[engine].speakers(spec)
        if name and len(specs) > 1:
            raise UserError(f"voice {name} stands for {len(specs)} speakers: give a name to one voice")
        found += [_alternatives(name, engine, spec) for spec in specs]
    return found


def _alternatives(name: str | None, engine: str, spec: str) -> list[str]:
    """Return a voice for each combination of speeds and pitches, all with the name of the voice without them."""
    own, _, query = spec.partition("?")
    settings = dict(pair.partition("=")[::2] for pair in query.split("&") if pair)
    sampled = {key: settings[key].split(",") for key in ENGINES[engine].SAMPLED if "," in settings.get(key, "")}
    if not sampled:
        return [f"{name}={engine}:{spec}" if name else f"{engine}:{spec}"]
    fixed = {key: value for key, value in settings.items() if key not in sampled}
    name = name or voice_name(f"{engine}:{joined(own, fixed)}")
    combinations = (dict(zip(sampled, values, strict=True)) for values in product(*sampled.values()))
    return [f"{name}={engine}:{joined(own, settings | chosen)}" for chosen in combinations]
