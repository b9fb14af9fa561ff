"""The voice of each line: speakers in turn, speeds and pitches sampled by the seed and the line."""

from collections import Counter

import pytest

from weft.errors import UserError
from weft.voices.choice import choose
from weft.voices.engines import parse, voice_name

IDS = [f"text-{i}" for i in range(240)]
VOICES = ("espeak:en-us?speed=150,170,190&pitch=40,60", "espeak:en-gb?speed=160", "joe=espeak:de?speed=150,200")


def test_speakers_have_equally_many_lines_and_all_speeds_and_pitches():
    chosen = choose(VOICES, IDS, seed=0)
    assert Counter(map(voice_name, chosen)) == {"espeak:en-us": 80, "espeak:en-gb?speed=160": 80, "joe": 80}
    identities = Counter(parse(voice).identity.rpartition("=espeak:")[2] for voice in chosen[::3])
    assert len(identities) == 6
    assert min(identities.values()) > 5
    assert {parse(voice).language for voice in chosen[2::3]} == {"de"}


def test_the_choice_is_a_function_of_seed_and_line():
    chosen = choose(VOICES, IDS, seed=1)
    assert choose(VOICES, IDS, seed=1) == chosen != choose(VOICES, IDS, seed=2)
    assert choose(VOICES, IDS[:9], seed=1) == chosen[:9]


def test_voices_without_alternatives_are_used_as_they_are():
    voices = ["espeak:en-us", "command:tts --a=espeak:x?speed=1,2 {text_file} {out}", "ann=command:tts?speed=1,2"]
    assert choose(voices, IDS[:6], seed=0) == voices * 2


@pytest.mark.parametrize("voice", ["espeak:en-us?speed=150,", "espeak:en-us?speed=150,1000", "espeak:en-us?sped=1,2"])
def test_an_invalid_alternative_is_rejected(voice):
    with pytest.raises(UserError, match="espeak:en-us"):
        [parse(chosen) for chosen in choose([voice], IDS, seed=0)]
