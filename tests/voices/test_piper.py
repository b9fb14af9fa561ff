"""Piper voices, with stand-ins for its packages: speakers, speeds, and messages about missing and invalid files."""

import json
import sys

import numpy as np
import pytest

from tests.voices import fakes
from weft.errors import UserError
from weft.voices import piper
from weft.voices.engines import parse

CONFIG = {
    "num_speakers": 3,
    "audio": {"sample_rate": 22_050},
    "espeak": {"voice": "en-gb-x-rp"},
    "language": {"code": "en_GB"},
    "speaker_id_map": {"ann": 0, "bob": 2},
}


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """The default folder, with a model of three speakers."""
    fakes.install(monkeypatch)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "models/piper"
    folder.mkdir(parents=True)
    (folder / "three.onnx").write_text("input input_lengths scales sid")
    (folder / "three.onnx.json").write_text(json.dumps(CONFIG))
    return folder


def test_a_voice_speaks_with_its_speaker_language_and_speed(folder):
    speech = parse("piper:three?speaker=bob").speak("Yes.No.")
    np.testing.assert_array_equal(speech.samples, np.full(5, 2))
    assert speech.sample_rate_hz == 22_050
    assert parse("piper:three?speaker=1").speak("No").samples[0] == 1
    assert len(parse("piper:three?speed=0.5").speak("Yes").samples) == 6
    voice = parse(f"piper:three?speaker=1&folder={folder}")
    assert (voice.name, voice.identity, voice.language) == ("piper:three?speaker=1", "piper:three?speaker=1", "en-gb")
    assert [path.name for path in voice.files] == ["three.onnx", "three.onnx.json"]


@pytest.mark.parametrize("text", ["", "...", "1.2"])
def test_text_without_phonemes_has_no_speech(text):
    assert len(parse("piper:three").speak(text).samples) == 0


def test_speakers_are_listed_or_all():
    assert piper.speakers("three?speaker=ann,1") == ["three?speaker=ann", "three?speaker=1"]
    assert piper.speakers("three?speaker=all&speed=0.9") == [
        "three?speaker=ann&speed=0.9",
        "three?speaker=bob&speed=0.9",
    ]
    assert piper.speakers("three") == ["three"]


@pytest.mark.parametrize(
    ("voice", "message"),
    [
        ("piper:thre", "has no Piper voice 'thre': did you mean three"),
        ("piper:../three", "has no Piper voice"),
        ("piper:three?speaker=bo", "has no speaker 'bo': did you mean bob"),
        ("piper:three?speaker=3", "has no speaker '3'"),
        ("piper:three?speed=0", "give a factor from 0.5 to 2"),
        ("piper:three?folder=nowhere", "nowhere does not exist"),
    ],
)
def test_an_invalid_voice_is_rejected_with_one_line(voice, message):
    with pytest.raises(UserError, match=message) as error:
        parse(voice)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "json does not exist: download both files of the voice"),
        ("{", "is not the configuration"),
        ("[]", "is not a JSON object"),
        (json.dumps(CONFIG | {"audio": {}}), "missing 'sample_rate'"),
        (json.dumps(CONFIG | {"audio": 3}), "is not the configuration"),
        (json.dumps(CONFIG | {"phoneme_type": "pinyin"}), "phonemes of the type pinyin"),
        (
            json.dumps(CONFIG | {"num_speakers": 1}),
            "not a Piper voice .*its inputs are input, input_lengths, scales, sid",
        ),
    ],
)
def test_an_invalid_configuration_is_named(folder, config, message):
    (folder / "three.onnx.json").unlink()
    if config is not None:
        (folder / "three.onnx.json").write_text(config)
    with pytest.raises(UserError, match=message) as error:
        parse("piper:three")
    assert "\n" not in str(error.value)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "piper", None)
    with pytest.raises(UserError, match=r"pip install weft-speech\[piper\]"):
        parse("piper:three")
