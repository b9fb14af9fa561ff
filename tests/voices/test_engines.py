"""Voices by name: espeak and any program, and messages about invalid ones."""

import shlex
import sys

import numpy as np
import pytest

from weft.errors import UserError
from weft.voices import espeak
from weft.voices.engines import language_of, speak, voice_name

PYTHON = shlex.quote(sys.executable)


def test_an_espeak_voice_speaks_as_espeak_does():
    speech = speak("Oh.", "espeak:en-us+f2")
    expected = espeak.synthesize("Oh.", espeak.parse("en-us+f2"))
    np.testing.assert_array_equal(speech.samples, expected.samples)
    assert speech.sample_rate_hz == expected.sample_rate_hz
    assert language_of("espeak:EN-us+f2") == "en-us"


def test_any_program_can_be_a_voice(tmp_path):
    program = tmp_path / "a program.py"
    program.write_text(
        "import sys, numpy, soundfile\n"
        "text = open(sys.argv[1], encoding='utf-8').read().strip()\n"
        "soundfile.write(sys.argv[2], numpy.full((len(text), 2), 0.5), 8000)\n"
    )
    voice = f"command:{PYTHON} {shlex.quote(str(program))} {{text_file}} {{out}}"
    speech = speak("für Olga", voice)
    assert speech.sample_rate_hz == 8000
    np.testing.assert_allclose(speech.samples, np.full(8, 0.5), atol=1e-4)
    assert language_of(voice) is None


@pytest.mark.parametrize(
    ("voice", "message"),
    [
        ("en-us", "has no engine: write command:..., espeak:..., kokoro:..., piper:..."),
        ("espeak:en-uss", "did you mean en-us"),
        ("command:say {text_file}", r"lacks \{out\}"),
        ("command:say {out}", r"lacks \{text_file\}"),
        ("command:say '{text_file} {out}", "quote it"),
    ],
)
def test_an_invalid_voice_is_rejected_with_one_line(voice, message):
    for function in (lambda: speak("Yes.", voice), lambda: language_of(voice)):
        with pytest.raises(UserError, match=message) as error:
            function()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("no-such-program-9", "cannot be started"),
        (f"{PYTHON} -S -c 'raise SystemExit(\"no voice today\")'", "no voice today"),
        (f"{PYTHON} -S -c pass", "wrote no file"),
        (f'{PYTHON} -S -c \'open(__import__("sys").argv[2], "w")\'', "wrote no audio"),
    ],
)
def test_a_program_that_fails_is_reported_with_one_line(command, message):
    with pytest.raises(UserError, match=message) as error:
        speak("Yes.", f"command:{command} {{text_file}} {{out}}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "voice",
    [
        f"command:{PYTHON} -S -c 'import sys; sys.exit(\" \".join(sys.argv))' --key KEY-123456 {{text_file}} {{out}}",
        f"command:{PYTHON} -S -c pass --key KEY-123456 {{text_file}} {{out}}",
        "command:no-such-program-9 --key KEY-123456 {text_file} {out}",
        "command:say --key KEY-123456 {text_file}",
        "command:say --key 'KEY-123456 {text_file} {out}",
        "say --key KEY-123456 {text_file} {out}",
        "https://user:KEY-123456@host/voice?key=KEY-123456",
    ],
)
def test_no_message_contains_the_arguments_of_a_command(voice):
    with pytest.raises(UserError) as error:
        speak("Yes.", voice)
    assert "KEY" not in str(error.value)


def test_the_name_of_a_voice_tells_commands_apart_and_hides_their_arguments():
    first, second = (f"command:/opt/piper/piper --key {key} {{text_file}} {{out}}" for key in ("KEY-1", "KEY-2"))
    assert voice_name("espeak:en-us+f2?speed=150") == "espeak:en-us+f2?speed=150"
    assert voice_name(first) == voice_name(first) != voice_name(second)
    assert voice_name(first).startswith("command:piper-")
    assert "KEY" not in voice_name(first)
