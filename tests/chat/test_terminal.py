"""`weft chat`: one spoken turn from file to file, and a conversation in the terminal."""

import io

import numpy as np
import pytest

from tests.chat.conftest import noise
from weft.audio import load, save
from weft.chat import terminal
from weft.chat.answer import Reply
from weft.chat.session import ChatSession, respond
from weft.chat.terminal import ChatConfig, run
from weft.errors import UserError, printable


@pytest.fixture(autouse=True)
def _load_no_models(bundle, monkeypatch):
    monkeypatch.setattr(terminal.Bundle, "from_pretrained", lambda folder: bundle)


def test_one_spoken_turn_from_file_to_file(bundle, tmp_path, capsys):
    save(tmp_path / "in.wav", noise(30_000), 16_000)
    run(ChatConfig(tmp_path, wav=tmp_path / "in.wav", out=tmp_path / "out.wav", max_sec=1))
    expected = respond(bundle, load(tmp_path / "in.wav"), max_sec=1)
    assert expected.first_audio_ms > 0
    assert expected.text in capsys.readouterr().out
    assert len(load(tmp_path / "out.wav")) == len(expected.samples)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros(0), "contains no samples"),
        (np.full(1, 0.5), r"has only 0\.0001 s of audio: give a file with speech"),
        (np.zeros(30_000), "is silent: give a file with speech"),
        (np.full(30_000, 1e-4), "is silent"),
    ],
)
def test_a_turn_without_speech_is_an_error_before_the_bundle_is_loaded(tmp_path, monkeypatch, samples, message):
    monkeypatch.setattr(terminal.Bundle, "from_pretrained", lambda folder: pytest.fail("loaded"))
    save(tmp_path / "in.wav", samples, 16_000)
    with pytest.raises(UserError, match=rf"in\.wav {message}"):
        run(ChatConfig(tmp_path, wav=tmp_path / "in.wav"))


def test_typed_text_that_is_not_utf8_is_answered(bundle, tmp_path, monkeypatch):
    stdin = io.TextIOWrapper(io.BytesIO(b"the c\xff\0at\n\n"), encoding="utf-8")
    monkeypatch.setattr("sys.stdin", stdin)
    typed = []
    monkeypatch.setattr(ChatSession, "add_text", lambda self, text: typed.append(text))
    monkeypatch.setattr(ChatSession, "answer", lambda self, max_sec: iter(()))
    run(ChatConfig(tmp_path))
    assert typed == ["the c\ufffdat"]


@pytest.mark.parametrize("is_spoken", [True, False])
def test_an_answer_cannot_control_the_terminal_and_keeps_its_lines(tmp_path, monkeypatch, capsys, is_spoken):
    pieces = ["père", "\n\x1b]0;title\x07", "\u202e\x9b2J\r.", "\n", "b"]
    monkeypatch.setattr(ChatSession, "answer", lambda self, max_sec: iter(map(Reply, pieces)))
    lines = iter(["the cat", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    out = tmp_path / "a\x1b[2J.wav"
    save(tmp_path / "in.wav", noise(30_000), 16_000)
    run(ChatConfig(tmp_path, wav=tmp_path / "in.wav" if is_spoken else None, out=out))
    shown = capsys.readouterr().out
    assert "père\n\\x1b]0;title\\x07\\u202e\\x9b2J\\r.\nb\n" in shown
    assert shown.replace("\n", "").isprintable()


def test_an_output_that_is_not_a_wav_file_is_an_error_before_the_bundle_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(terminal.Bundle, "from_pretrained", lambda folder: pytest.fail("loaded"))
    save(tmp_path / "in.wav", noise(100), 16_000)
    with pytest.raises(UserError, match=r"must have the suffix \.wav"):
        run(ChatConfig(tmp_path, wav=tmp_path / "in.wav", out=tmp_path / "out.mp3"))


def test_a_conversation_in_the_terminal(bundle, tmp_path, monkeypatch, capsys):
    lines = iter(["the cat", "the dog", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    run(ChatConfig(tmp_path, out=tmp_path / "answers", max_sec=1))
    session = ChatSession(bundle)
    for line in ("the cat", "the dog"):
        session.add_text(line)
        list(session.answer(1))
    answers = [s.text for s in session.history if s.role == "assistant" and s.type == "text"]
    shown = capsys.readouterr().out
    assert len(answers) == 2
    assert all("\n".join(map(printable, answer.split("\n"))) in shown for answer in answers)
    assert [p.name for p in sorted((tmp_path / "answers").iterdir())] == ["answer-1.wav", "answer-2.wav"]
