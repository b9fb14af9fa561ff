"""Kokoro voices, with stand-ins for its packages: which voice speaks, and messages about missing and invalid files."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.voices import fakes
from weft.data.speech import read_manifest
from weft.errors import UserError
from weft.voices import kokoro, onnx
from weft.voices.engines import parse
from weft.voices.speak import Line, speak_lines

NAMES = ("af_heart", "am_adam", "bf_emma", "ff_siwis", "jf_alpha")


@pytest.fixture(autouse=True)
def packages(monkeypatch, tmp_path):
    fakes.install(monkeypatch)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def folder(tmp_path):
    """The default folder, in which the voice i has the level (i + 1) / 10."""
    folder = tmp_path / "models/kokoro"
    folder.mkdir(parents=True)
    (folder / "kokoro.onnx").write_text("tokens style speed")
    save_voices(folder, {name: np.full((510, 1, 256), (i + 1) / 10, np.float32) for i, name in enumerate(NAMES)})
    return folder


def save_voices(folder, styles):
    np.savez(folder / "voices.npz", **styles)


def test_a_voice_speaks_with_its_style_language_and_speed(folder):
    voice = parse("kokoro:am_adam")
    assert voice.speak("Good\n morning.").samples == pytest.approx(np.full(13, 0.2))
    assert voice.speak("Yes.").sample_rate_hz == 24_000
    assert len(parse("kokoro:am_adam?speed=0.5").speak("Yes.").samples) == 8
    assert [parse(f"kokoro:{name}").language for name in NAMES[:4]] == ["en-us", "en-us", "en-gb", "fr-fr"]


@pytest.mark.parametrize("text", ["", "...", " ☃ ", "?!"])
def test_text_without_phonemes_has_no_speech(folder, text):
    assert len(parse("kokoro:af_heart").speak(text).samples) == 0


def test_a_language_stands_for_its_voices(folder):
    assert kokoro.speakers("en") == ["af_heart", "am_adam", "bf_emma"]
    assert kokoro.speakers("en-gb?speed=0.9") == ["bf_emma?speed=0.9"]
    assert kokoro.speakers("af_heart?speed=0.9") == ["af_heart?speed=0.9"]
    with pytest.raises(UserError, match="has no voice of hi"):
        kokoro.speakers("hi")


def test_a_model_is_loaded_once_with_the_threads_of_the_process(folder, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3,1")
    first, second = (parse(voice).speak.keywords["kokoro"] for voice in ("kokoro:af_heart", "kokoro:am_adam?speed=1.1"))
    assert first is second
    assert onnx.session(Path("models/kokoro/kokoro.onnx")).threads == 3


def test_files_that_have_changed_are_loaded_again(folder):
    assert parse("kokoro:af_heart").speak("Yes.").samples[0] == pytest.approx(0.1)
    save_voices(folder, {"af_heart": np.full((510, 1, 256), 0.5, np.float32)})
    assert parse("kokoro:af_heart").speak("Yes.").samples[0] == pytest.approx(0.5)
    with pytest.raises(UserError, match="has no voice 'am_adam'"):
        parse("kokoro:am_adam")


def test_the_contents_of_the_files_identify_a_voice_and_not_their_place(folder, tmp_path):
    def lines(where):
        return [Line("a", "Yes.", f"kokoro:af_heart?speed=0.9{where}")]

    made = speak_lines(lines(""), tmp_path / "out")
    assert [u.speaker for u in read_manifest(tmp_path / "out")] == ["kokoro:af_heart?speed=0.9"]
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    assert speak_lines(lines(f"&folder={moved}"), tmp_path / "out") == made
    shutil.move(moved, changed := tmp_path / "changed")
    (changed / "kokoro.onnx").write_text("style speed tokens")
    with pytest.raises(UserError, match="other contents of voice_files"):
        speak_lines(lines(f"&folder={changed}"), tmp_path / "out")
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file() and b"elsewhere" in p.read_bytes()]


@pytest.mark.parametrize(
    ("voice", "message"),
    [
        ("kokoro:af_hart", "kokoro has no voice 'af_hart': did you mean af_heart"),
        ("kokoro:", "kokoro has no voice ''"),
        ("kokoro:en", "kokoro has no voice 'en'"),
        ("kokoro:jf_alpha", "speaks Japanese"),
        ("kokoro:af_heart?speed=3", "speed=3: give a factor from 0.5 to 2"),
        ("kokoro:af_heart?speed=nan", "speed=nan: give a factor"),
        ("kokoro:af_heart?speed=0.9,1", "speed=0.9,1: give a factor"),
        ("kokoro:af_heart?pitch=3", "'pitch': give only speed, folder"),
        ("kokoro:af_heart?folder=nowhere", "nowhere does not exist: download"),
    ],
)
def test_an_invalid_voice_is_rejected_with_one_line(folder, voice, message):
    with pytest.raises(UserError, match=message) as error:
        parse(voice)
    assert "\n" not in str(error.value)


STYLE = np.zeros((510, 1, 256), np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "kokoro.onnx").unlink(), r"needs one Kokoro model \(\*.onnx\) and has none"),
        (lambda f: shutil.copy(f / "kokoro.onnx", f / "b.onnx"), r"has 2 \(b.onnx, kokoro.onnx\): add or remove"),
        (lambda f: (f / "voices.npz").unlink(), "needs one Kokoro file of voices .* and has none"),
        (lambda f: (f / "voices.npz").write_bytes(b"PK\3\4 truncated"), "voices.npz is not a complete archive"),
        (lambda f: save_voices(f, {"af_heart": np.array([print], object)}), "voices.npz cannot be read"),
        (lambda f: (f / "voices.npz").write_bytes(b"\x80\x04N."), "voices.npz is not a complete archive"),
        (lambda f: save_voices(f, {"af_heart": np.zeros((511, 1, 256), np.float32)}), "not a file of voices of Kokoro"),
        (lambda f: save_voices(f, {"af_heart": STYLE, "af": STYLE}), "not a file of voices of Kokoro 1.0: 'af' is"),
        (
            lambda f: (f / "kokoro.onnx").write_text("input scales"),
            r"not a model of Kokoro 1.0 \(its inputs are input,",
        ),
        (lambda f: (f / "kokoro.onnx").write_text("damaged"), r"cannot be loaded \(Protobuf parsing failed\)"),
    ],
)
def test_missing_and_invalid_files_are_named(folder, change, message):
    change(folder)
    with pytest.raises(UserError, match=message) as error:
        parse("kokoro:af_heart")
    assert "\n" not in str(error.value)


def test_a_missing_package_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "kokoro_onnx", None)
    with pytest.raises(UserError, match=r"pip install weft-speech\[kokoro\]"):
        parse("kokoro:af_heart")
