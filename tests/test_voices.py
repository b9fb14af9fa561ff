"""Voices: speech that depends on text and voice alone, errors a user can mend, corpora that survive a kill."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import espeakng_loader
import numpy as np
import pytest
import soundfile

from weft import artifacts
from weft.data.corpus import read_manifest
from weft.errors import UserError
from weft.voices import Line, corpus_settings, language_of, speak, speak_corpus

TEXT = "The sailor left the harbor."
VOICES = ("espeak:en-us", "espeak:en-gb+f3?speed=150&pitch=60", "espeak:en-us+whisper")
PYTHON = shlex.quote(sys.executable)


def test_speech_depends_on_text_and_voice_alone() -> None:
    """A repeat differs in nothing, whatever another voice (a breathy one too) said in between, in any thread."""
    first = {voice: speak(TEXT, voice) for voice in VOICES}
    for voice in reversed(VOICES):
        speak("Quite another sentence, and a longer one at that!", VOICES[1])
        np.testing.assert_array_equal(speak(TEXT, voice).samples, first[voice].samples)
    with ThreadPoolExecutor(4) as pool:
        for again in pool.map(lambda _: speak(TEXT, VOICES[0]), range(8)):
            np.testing.assert_array_equal(again.samples, first[VOICES[0]].samples)


def test_speech_is_sound() -> None:
    speech = speak(TEXT, "espeak:en-us")
    assert speech.samples.dtype == np.float32
    assert speech.samples.ndim == 1
    assert 1.0 < len(speech.samples) / speech.sample_rate_hz < 3.0
    assert 0.1 < np.abs(speech.samples).max() <= 1.0
    assert not speak("...", "espeak:en-us").samples.any()


def test_voice_settings_are_heard() -> None:
    def seconds(voice: str) -> float:
        return len(speak(TEXT, voice).samples)

    def pitch_hz(voice: str) -> float:
        speech = speak("Oh.", voice)
        x = speech.samples - speech.samples.mean()
        correlation = np.correlate(x, x, "full")[len(x) - 1 :]
        least, most = speech.sample_rate_hz // 400, speech.sample_rate_hz // 60
        return speech.sample_rate_hz / (least + correlation[least:most].argmax())

    assert seconds("espeak:en-us?speed=120") > 1.2 * seconds("espeak:en-us") > 1.2 * seconds("espeak:en-us?speed=220")
    assert pitch_hz("espeak:en-us?pitch=90") > 1.2 * pitch_hz("espeak:en-us?pitch=10")
    assert not np.array_equal(speak(TEXT, "espeak:en-us").samples, speak(TEXT, "espeak:en-gb").samples)
    assert language_of("espeak:EN-us+f2") == "en-us"


@pytest.mark.parametrize(
    ("voice", "said"),
    [
        ("en-us", "names no engine"),
        ("espeak:en-uss", "did you mean en-us"),
        ("espeak:", "no voice"),
        ("espeak:en-us+f33", "no variant 'f33': did you mean f3"),
        ("espeak:en-us?volume=3", "'volume': only speed and pitch"),
        ("espeak:en-us?speed=fast", "speed=fast: give a whole number from 80 to 450"),
        ("espeak:en-us?pitch=100", "from 0 to 99"),
        ("command:say {text_file}", r"no \{out\}"),
        ("command:say '{text_file} {out}", "quote it"),
        ("command:no-such-program-9 {text_file} {out}", "does not start"),
        (f"command:{PYTHON} -c 'raise SystemExit(\"no voice today\")' {{text_file}} {{out}}", "no voice today"),
        (f"command:{PYTHON} -c pass {{text_file}} {{out}}", "wrote no file"),
        (f'command:{PYTHON} -c \'open(__import__("sys").argv[2], "w")\' {{text_file}} {{out}}', "wrote no sound"),
    ],
)
def test_a_voice_that_cannot_speak_is_refused_in_one_line(voice: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        speak(TEXT, voice)
    assert "\n" not in str(error.value)


def test_espeak_without_its_data_is_an_error_and_not_the_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(espeakng_loader, "get_data_path", lambda: str(tmp_path))
    with pytest.raises(UserError, match="espeak-ng cannot read"):
        speak(TEXT, VOICES[0])


def test_any_program_can_be_a_voice(tmp_path: Path) -> None:
    program = tmp_path / "a program.py"
    program.write_text(
        "import sys, numpy, soundfile\n"
        "text = open(sys.argv[1], encoding='utf-8').read().strip()\n"
        "soundfile.write(sys.argv[2], numpy.full((len(text), 2), 0.5), 8000)\n"
    )
    speech = speak("für Olga", f"command:{PYTHON} {shlex.quote(str(program))} {{text_file}} {{out}}")
    assert speech.sample_rate_hz == 8000
    np.testing.assert_allclose(speech.samples, np.full(8, 0.5), atol=1e-4)


def some_lines(count: int = 80) -> list[Line]:
    """Short lines, two of them with nothing to say."""
    lines = [Line(f"line-{i}", f"This is line {i}.", VOICES[i % 2]) for i in range(count)]
    lines[3] = Line("line-3", "  \n", VOICES[0])
    lines[40] = Line("line-40", "...", VOICES[1])
    return lines


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("voices") / "corpus"
    speak_corpus(some_lines(), out)
    return out


def test_a_corpus_is_a_manifest_of_sound_files(corpus: Path) -> None:
    utterances = read_manifest(corpus)
    spoken = [line for line in some_lines() if line.text.strip(" .\n")]
    assert [u.id for u in utterances] == [line.id for line in spoken]
    assert [u.text for u in utterances] == [line.text for line in spoken]
    assert [u.speaker for u in utterances] == [line.voice for line in spoken]
    assert {u.language for u in utterances} == {"en-us", "en-gb"}
    for utterance in utterances[:5]:
        sound = soundfile.info(utterance.audio)
        assert (sound.samplerate, sound.channels, sound.subtype) == (16_000, 1, "PCM_16")
        assert sound.duration == pytest.approx(utterance.seconds, abs=1e-3)
    assert artifacts.read(corpus, "audio").counts["skipped"] == ["line-3", "line-40"]
    assert artifacts.is_made(corpus, "audio", corpus_settings(some_lines()))


def test_sound_files_hold_what_the_voice_says(tmp_path: Path) -> None:
    """At the voice's own rate nothing is resampled, and FLAC loses nothing but the sixteenth bit's half."""
    speech = speak(TEXT, VOICES[0])
    speak_corpus([Line("a", TEXT, VOICES[0])], tmp_path / "corpus", sample_rate_hz=speech.sample_rate_hz)
    written, rate_hz = soundfile.read(tmp_path / "corpus" / "audio" / "a.flac", dtype="float32")
    assert rate_hz == speech.sample_rate_hz
    np.testing.assert_allclose(written, speech.samples, atol=1 / 32768)


def test_workers_change_nothing(corpus: Path, tmp_path: Path) -> None:
    progress: list[tuple[int, int]] = []
    report = speak_corpus(some_lines(), tmp_path / "out", 2, on_progress=lambda done, of: progress.append((done, of)))
    assert artifacts.fingerprint(tmp_path / "out") == artifacts.fingerprint(corpus)
    assert progress[-1] == (80, 80)
    assert progress == sorted(progress)
    assert report.num_utterances == 78
    assert report.skipped == ("line-3", "line-40")
    assert report.seconds == pytest.approx(sum(u.seconds for u in read_manifest(corpus)), abs=1e-3)


def test_an_interruption_is_neither_lost_nor_loses_sound() -> None:
    """It comes while espeak-ng calls back, where Python can only drop it: it must come out of `speak` instead."""
    dropped: list[object] = []
    before, sys.unraisablehook = sys.unraisablehook, dropped.append
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Timer(0.1, signal.raise_signal, [signal.SIGINT]).start()
        with pytest.raises(KeyboardInterrupt):
            speak(TEXT * 200, VOICES[0])
    finally:
        sys.unraisablehook = before
        signal.signal(signal.SIGINT, handler)
    assert not dropped


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_quietly_with_their_parent(sign: signal.Signals, tmp_path: Path) -> None:
    program = (
        "import signal, sys; from pathlib import Path; from weft.voices import Line, speak_corpus\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored where the tests run in the background
        f"lines = [Line(f'l{{i}}', 'This is line number %d.' % i, {VOICES[0]!r}) for i in range(20_000)]\n"
        "if __name__ == '__main__':\n"
        "    try: speak_corpus(lines, Path(sys.argv[1]), 2, on_progress=lambda *_: print('some', flush=True))\n"
        "    except KeyboardInterrupt: sys.exit(130)\n"
    )
    (tmp_path / "p.py").write_text(program)
    command = [sys.executable, str(tmp_path / "p.py"), str(tmp_path / "out")]
    job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert job.stdout is not None
    job.stdout.readline()
    if sign == signal.SIGINT:
        os.killpg(job.pid, sign)  # as a terminal does, to parent and workers alike
    else:
        job.kill()
    _, said = job.communicate(timeout=60)  # its pipes close when the last of them has ended
    assert job.returncode == (130 if sign == signal.SIGINT else -sign)
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_a_killed_corpus_goes_on(corpus: Path, tmp_path: Path) -> None:
    """Killed after its first lines, it keeps their files as they are and ends up the same as undisturbed."""
    lines = json.dumps([(line.id, line.text, line.voice) for line in some_lines()])
    program = (
        "import json, os, signal, sys; from pathlib import Path; from weft.voices import Line, speak_corpus\n"
        "lines = [Line(*line) for line in json.loads(sys.argv[1])]\n"
        "speak_corpus(lines, Path(sys.argv[2]), on_progress=lambda *_: os.kill(os.getpid(), signal.SIGKILL))\n"
    )
    out = tmp_path / "out"
    killed = subprocess.run([sys.executable, "-c", program, lines, str(out)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not out.exists()
    begun = sorted((tmp_path / "out.partial" / "audio").iterdir())
    assert 0 < len(begun) < 78
    written_ns = {path.name: path.stat().st_mtime_ns for path in begun}
    speak_corpus(some_lines(), out)
    assert artifacts.fingerprint(out) == artifacts.fingerprint(corpus)
    assert {name: os.stat(out / "audio" / name).st_mtime_ns for name in written_ns} == written_ns


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([Line("a", "Yes.", VOICES[0]), Line("a", "No.", VOICES[0])], "id 'a' occurs twice"),
        ([Line("../a", "Yes.", VOICES[0])], "cannot name a sound file"),
        ([Line("a", "Yes.", "espeak:xx-yy")], "no voice 'xx-yy'"),
        ([Line("a", "Yes.", "command:say {out}")], re.escape("no {text_file}")),
        ([Line("a", " ", VOICES[0])], "nothing to speak"),
        ([], "nothing to speak"),
    ],
)
def test_a_corpus_that_cannot_be_spoken_leaves_nothing(lines: list[Line], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        speak_corpus(lines, tmp_path / "out")
    assert not (tmp_path / "out").exists()
