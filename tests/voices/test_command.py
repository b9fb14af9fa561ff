"""Programs that keep running: one answer for each text, whatever a program does, and no process that is left over."""

import os
import select
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from weft.data.job import JobConfig
from weft.data.speech import read_manifest
from weft.errors import UserError
from weft.voices import command, program
from weft.voices.engines import language_of, parse, speak, voice_name
from weft.voices.speak import Line, speak_lines

# Writes as many samples as a text has characters. Texts name what goes wrong.
PROGRAM = """
import os, sys, wave
folder = sys.argv[1]
open(f"{folder}/starts", "a").write("x")
for line in sys.stdin:
    text = line.rstrip("\\n")
    if text == "die":
        sys.exit("no voice today")
    if text == "hang":
        sys.stdin.read()
    if text == "banner":
        os.write(1, b"Loading the model\\n")
    with wave.open(f"{folder}/out.wav", "wb") as f:
        f.setparams((1, 2, 8000, 0, "NONE", ""))
        f.writeframes(b"\\0\\x40" * len(text))
    path = "" if text == "..." else f"{folder}/missing.wav" if text == "missing" else f"{folder}/out.wav"
    os.write(1, f"{path}\\n".encode() * (2 if text == "two" else 1))
    if text == "late":
        open(f"{folder}/go").read()
        os.write(1, b"Finished\\n")
"""


@pytest.fixture
def voice(tmp_path):
    (tmp_path / "tts.py").write_text(PROGRAM)
    voice = f"joe@en-gb=command:{shlex.quote(sys.executable)} -S {tmp_path}/tts.py {tmp_path} KEY-123456"
    yield voice
    program.end(tuple(shlex.split(voice.partition("command:")[2])))


def starts(folder: Path) -> int:
    return len((folder / "starts").read_text())


def test_a_program_keeps_running_and_answers_each_text(voice, tmp_path):
    for text in ("One.", "für Olga", "two\nlines", "One."):
        speech = speak(text, voice)
        assert (len(speech.samples), speech.sample_rate_hz) == (len(text), 8000)
        assert speech.samples == pytest.approx(0.5)
    assert len(speak("...", voice).samples) == 0
    assert starts(tmp_path) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("die", "it ended: no voice today"),
        ("hang", "it took more than 0.2 s"),
        ("missing", "not a file"),
        ("banner", "(more than one line|not a file)"),
        ("two", "more than one line"),
    ],
)
def test_a_program_that_fails_is_started_again_for_the_next_text(voice, tmp_path, monkeypatch, text, message):
    assert len(speak("Before.", voice).samples) == 7
    with monkeypatch.context() as patch:
        patch.setattr(command, "TIMEOUT_SEC", 0.2 if text == "hang" else 300)
        with pytest.raises(UserError, match=rf"voice joe .*{message}") as error:
            speak(text, voice)
    assert "\n" not in str(error.value)
    assert "KEY" not in str(error.value)
    assert len(speak("Afterwards.", voice).samples) == 11
    assert starts(tmp_path) == 2


def test_a_line_that_comes_late_is_not_the_answer_to_the_next_text(voice, tmp_path):
    os.mkfifo(tmp_path / "go")
    speak("late", voice)
    (tmp_path / "go").write_text("")
    (server,) = program._running.values()
    select.select([server.process.stdout], [], [])
    with pytest.raises(UserError, match="more than one line"):
        speak("Next.", voice)
    assert len(speak("Afterwards.", voice).samples) == 11


def test_a_program_that_has_ended_between_two_texts_is_started_again(voice):
    speak("One.", voice)
    (server,) = program._running.values()
    server.process.kill()
    server.process.wait()
    assert len(speak("Two.", voice).samples) == 4


def test_a_bad_text_does_not_end_a_job(voice, tmp_path):
    texts = ["one", "die", "three", "banner", "five"]
    lines = [Line(f"l{i}", text, voice) for i, text in enumerate(texts)]
    manifest = speak_lines(lines, tmp_path / "out", JobConfig(max_bad_fraction=0.5))
    assert manifest.counts["skipped"] == ["l1", "l3"]
    utterances = read_manifest(tmp_path / "out")
    assert [(u.text, u.speaker, u.language) for u in utterances] == [(texts[i], "joe", "en-gb") for i in (0, 2, 4)]
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not [path for path in files if b"KEY" in path.read_bytes() or b"tts.py" in path.read_bytes()]


@pytest.mark.parametrize("how", ["returns", "is killed"])
def test_a_program_ends_with_its_process(tmp_path, how):
    os.mkfifo(tmp_path / "open")
    (tmp_path / "tts.py").write_text(f"held = open({str(tmp_path / 'open')!r}, 'w')\n{PROGRAM}")
    arguments = (sys.executable, "-S", f"{tmp_path}/tts.py", str(tmp_path))
    script = f"from weft.voices.program import answer; answer({arguments!r}, 'One.', 60)\n"
    if how == "is killed":
        script += "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    process = subprocess.Popen([sys.executable, "-c", script])
    with open(tmp_path / "open") as held:
        assert held.read() == ""  # until the program, its only writer, has ended
    assert process.wait() == (0 if how == "returns" else -signal.SIGKILL)


def test_a_voice_may_have_a_name_and_a_language():
    speaks = "command:say --key KEY-123456"
    assert (voice_name(f"joe={speaks}"), language_of(f"joe={speaks}")) == ("joe", None)
    assert (voice_name(f"joe@de={speaks}"), language_of(f"joe@de={speaks}")) == ("joe", "de")
    assert parse(f"joe@de={speaks}").identity != parse(f"joe={speaks}").identity != parse(speaks).identity
    assert voice_name(f"{speaks} --voice joe=espeak:en").startswith("command:say-")
    named = parse("ann=espeak:en-gb+f3?speed=150")
    assert (named.name, named.language) == ("ann", "en-gb")
    assert named.speak("Yes.").samples == pytest.approx(speak("Yes.", "espeak:en-gb+f3?speed=150").samples)


def test_a_command_without_a_program_is_rejected():
    with pytest.raises(UserError, match="voice joe names no program"):
        parse("joe=command: ")
