"""Progress lines outside a terminal, and a bar on one."""

import pytest
from rich.console import Console

from weft import launch, progress


@pytest.fixture
def clock(monkeypatch):
    now_sec = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now_sec[0])
    return now_sec


def test_a_line_is_printed_every_ten_seconds_without_a_terminal(capsys, clock):
    with progress.bar("train", total=40, done=10) as advance:
        for _ in range(25):
            clock[0] += 1
            advance(1, "loss 0.5")
    assert capsys.readouterr().err == "train: 20/40, 20 s left loss 0.5\ntrain: 30/40, 10 s left loss 0.5\n"


def test_a_line_has_the_last_note(capsys, clock):
    with progress.bar("train", total=40) as advance:
        for note in ("loss 0.7", "loss 0.5", *[""] * 8):
            clock[0] += 1
            advance(1, note)
    assert capsys.readouterr().err == "train: 10/40, 30 s left loss 0.5\n"


def test_a_terminal_shows_the_last_note_and_the_count(capsys, monkeypatch):
    monkeypatch.setattr(
        progress, "Console", lambda stderr: Console(stderr=stderr, force_terminal=True, width=100, color_system=None)
    )
    with progress.bar("train", total=40, done=10) as advance:
        advance(5, "loss 0.5")
        advance(1)
    shown = capsys.readouterr().err
    assert "16/40" in shown
    assert "loss 0.5" in shown


def test_a_table_aligns_its_columns(capsys):
    progress.table(["dataset", "tokens"], [["text", "1"], ["speech", "1000"]])
    assert capsys.readouterr().err.splitlines() == ["dataset  tokens", "text          1", "speech     1000"]


def test_only_the_first_process_prints(capsys, clock, monkeypatch):
    monkeypatch.setattr(launch, "rank", lambda: 1)
    progress.table(["dataset"], [["text"]])
    with progress.bar("train", total=40) as advance:
        clock[0] += 100
        advance(1, note="x")
    assert capsys.readouterr().err == ""
