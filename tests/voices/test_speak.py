"""Corpora of synthesized speech: their contents, and what remains when the command is killed."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from tests.ranks import CONTEXT
from weft import artifacts, progress
from weft.data import job
from weft.data.job import JobConfig
from weft.data.speech import read_manifest
from weft.errors import UserError
from weft.voices.engines import speak, voice_name
from weft.voices.speak import Line, SpeakConfig, run, speak_lines

VOICES = ("espeak:en-us", "espeak:en-gb+f3?speed=150&pitch=60")


def some_lines() -> list[Line]:
    """Return short lines, two of them without anything to pronounce."""
    lines = [Line(f"line-{i}", f"This is {i}.", VOICES[i % 2]) for i in range(80)]
    lines[3] = Line("line-3", "  \n", VOICES[0])
    lines[40] = Line("line-40", "...", VOICES[1])
    return lines


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("voices") / "corpus"
    speak_lines(some_lines(), out)
    return out


def test_a_corpus_is_a_manifest_and_audio_files(corpus: Path) -> None:
    utterances = read_manifest(corpus)
    pronounced = [line for line in some_lines() if line.text.strip(" .\n")]
    assert [u.id for u in utterances] == [line.id for line in pronounced]
    assert [u.text for u in utterances] == [line.text for line in pronounced]
    assert [u.speaker for u in utterances] == [line.voice for line in pronounced]
    assert {u.language for u in utterances} == {"en-us", "en-gb"}
    for utterance in utterances[:5]:
        audio = soundfile.info(utterance.audio)
        assert (audio.samplerate, audio.channels, audio.subtype) == (16_000, 1, "PCM_16")
        assert audio.duration == pytest.approx(utterance.seconds, abs=1e-3)


def test_the_manifest_counts_utterances_and_lists_skipped_lines(corpus: Path) -> None:
    counts = artifacts.read(corpus, "audio").counts
    assert counts["num_utterances"] == 78
    assert counts["skipped"] == ["line-3", "line-40"]
    assert counts["seconds"] == pytest.approx(sum(u.seconds or 0 for u in read_manifest(corpus)), abs=1e-3)


def test_audio_files_contain_the_speech_of_the_voice(corpus: Path) -> None:
    speech = speak("This is 0.", VOICES[0])
    expected = soxr.resample(speech.samples, speech.sample_rate_hz, 16_000, quality="HQ")
    written, rate_hz = soundfile.read(corpus / "audio" / "line-0.flac", dtype="float32")
    assert rate_hz == 16_000
    np.testing.assert_allclose(written, expected, atol=1 / 32768)


def test_a_failing_command_skips_its_lines_and_is_stored_nowhere(tmp_path: Path) -> None:
    (tmp_path / "voice.py").write_text(
        "import sys, numpy, soundfile\n"
        "assert 'bad' not in open(sys.argv[3]).read()\n"
        "soundfile.write(sys.argv[4], numpy.full(8000, 0.5), 8000)\n"
    )
    voice = f"command:{sys.executable} {tmp_path}/voice.py --key KEY-123456 {{text_file}} {{out}}"
    lines = [Line(f"l{i}", text, voice) for i, text in enumerate(["one", "bad", "three"])]
    manifest = speak_lines(lines, tmp_path / "out", JobConfig(max_bad_fraction=0.5))
    assert (manifest.counts["num_utterances"], manifest.counts["skipped"]) == (2, ["l1"])
    assert {u.speaker for u in read_manifest(tmp_path / "out")} == {voice_name(voice)}
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file() and b"KEY" in path.read_bytes()]
    with pytest.raises(UserError, match="1 of 3 items are bad") as error:
        speak_lines(lines, tmp_path / "none")
    assert "KEY" not in str(error.value)


def test_lines_of_files_take_the_voices_in_turn(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One.\n\nTwo.\n")
    (tmp_path / "b.txt").write_text("Three.\n")
    run(SpeakConfig((tmp_path / "a.txt", tmp_path / "b.txt"), tmp_path / "out", VOICES))
    assert [(u.id, u.text, u.speaker) for u in read_manifest(tmp_path / "out")] == [
        ("a-1", "One.", VOICES[0]),
        ("a-3", "Two.", VOICES[1]),
        ("b-1", "Three.", VOICES[0]),
    ]


def test_speeds_are_sampled_for_each_line_under_one_name(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Yes.\n" * 12)
    voices = ("espeak:en-us?speed=120,250", "espeak:en-gb")
    made = [run(SpeakConfig((tmp_path / "a.txt",), tmp_path / name, voices, seed=3)) for name in ("out", "again")]
    assert made[0] == made[1]
    utterances = read_manifest(tmp_path / "out")
    assert [u.speaker for u in utterances] == ["espeak:en-us", "espeak:en-gb"] * 6
    assert len({u.seconds for u in utterances[::2]}) == 2
    assert len({u.seconds for u in utterances[1::2]}) == 1
    with pytest.raises(UserError, match="other contents of lines"):
        run(SpeakConfig((tmp_path / "a.txt",), tmp_path / "out", voices, seed=4))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist: give a text file"),
        (b"\n \n", "all lines are empty"),
        (b"\xff", "cannot be read: not UTF-8"),
    ],
)
def test_a_file_without_text_is_rejected(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.txt.* {message}|a\.txt: {message}"):
        run(SpeakConfig((tmp_path / "a.txt",), tmp_path / "out"))


def test_the_number_of_workers_does_not_change_the_corpus(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "get_context", lambda method: CONTEXT)
    made = speak_lines(some_lines(), tmp_path / "out", JobConfig(workers=2))
    assert made == artifacts.read(corpus)


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_quietly_with_their_parent(sign: signal.Signals, tmp_path: Path) -> None:
    program = (
        "import signal, sys\n"
        "from contextlib import contextmanager\n"
        "from pathlib import Path\n"
        "from weft import progress\n"
        "from weft.data.job import JobConfig\n"
        "from weft.voices.speak import Line, speak_lines\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored where the tests run in the background
        f"lines = [Line(f'l{{i}}', f'This is {{i}}.', {VOICES[0]!r}) for i in range(20_000)]\n"
        "@contextmanager\n"
        "def bar(*_, **__): yield lambda *_: print('advanced', flush=True)\n"
        "progress.bar = bar\n"
        "if __name__ == '__main__':\n"
        "    try: speak_lines(lines, Path(sys.argv[1]), JobConfig(workers=2))\n"
        "    except KeyboardInterrupt: sys.exit(130)\n"
    )
    (tmp_path / "p.py").write_text(program)
    command = [sys.executable, str(tmp_path / "p.py"), str(tmp_path / "out")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    for _ in range(3):  # tasks, so that both workers have started
        assert process.stdout.readline() == "advanced\n"
    if sign == signal.SIGINT:
        os.killpg(process.pid, sign)  # as a terminal does, to parent and workers alike
    else:
        process.kill()
    _, errors = process.communicate(timeout=60)  # its pipes are closed when the last of them has ended
    assert process.returncode == (130 if sign == signal.SIGINT else -sign)
    assert "Traceback" not in errors
    assert not (tmp_path / "out").exists()


def speak_until_killed(out: Path) -> None:
    """Speak lines in a process that is killed when the first task has been finished."""

    @contextmanager
    def bar(*_, **__):
        yield lambda: os.kill(os.getpid(), signal.SIGKILL)

    progress.bar = bar
    speak_lines(some_lines(), out)


def test_a_killed_command_is_resumed_with_the_same_result(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = CONTEXT.Process(target=speak_until_killed, args=(out,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not out.exists()
    finished = sorted((tmp_path / "out.partial" / "audio").iterdir())
    assert 0 < len(finished) < 78
    written_ns = {path.name: path.stat().st_mtime_ns for path in finished}
    assert speak_lines(some_lines(), out) == artifacts.read(corpus)
    assert {name: os.stat(out / "audio" / name).st_mtime_ns for name in written_ns} == written_ns


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([Line("a", "Yes.", VOICES[0]), Line("a", "No.", VOICES[0])], "id 'a' occurs twice"),
        ([Line("../a", "Yes.", VOICES[0])], "cannot be a file name"),
        ([Line("a", "Yes.", "espeak:xx-yy")], "no voice 'xx-yy'"),
        ([Line("a", "Yes.", "command:say {out}")], r"lacks \{text_file\}"),
        ([Line("a", " ", VOICES[0])], "no line contains a pronounceable character: give other text"),
        ([], "no line contains a pronounceable character: give other text"),
    ],
)
def test_lines_that_cannot_be_spoken_leave_no_artifact(lines: list[Line], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        speak_lines(lines, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_pipe_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"pipe is not a text file"):
        run(SpeakConfig(text=(tmp_path / "pipe",), out=tmp_path / "out"))


def test_the_sample_rate_is_a_setting(tmp_path):
    (tmp_path / "lines.txt").write_text("The cat sat.\n")
    run(SpeakConfig((tmp_path / "lines.txt",), tmp_path / "out", sample_rate_hz=24_000))
    [row] = map(json.loads, (tmp_path / "out/manifest.jsonl").read_text().splitlines())
    audio = soundfile.info(str(tmp_path / "out" / row["audio"]))
    assert audio.samplerate == 24_000
    assert row["seconds"] == pytest.approx(audio.duration, abs=1e-3)
    with pytest.raises(UserError, match="sample_rate_hz = 24000"):
        run(SpeakConfig((tmp_path / "lines.txt",), tmp_path / "out"))
    with pytest.raises(UserError, match="give 8000 to 96000"):
        run(SpeakConfig((tmp_path / "lines.txt",), tmp_path / "other", sample_rate_hz=400))
