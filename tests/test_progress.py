"""Progress lines outside a terminal, a bar on one, and that nothing printed controls the terminal."""

import ast
import io
import sys
import unicodedata
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

import weft
from weft import launch, progress

CONTROLS = "\x1b]0;title\x07\x1b[2J\r\b\x9b2J\x7f\u202e\u2066\u2028\ufeff\udcff"


@pytest.fixture
def clock(monkeypatch):
    now_sec = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now_sec[0])
    return now_sec


@pytest.mark.parametrize(
    ("total", "sec_per_item", "last", "printed"),
    [
        (40, 20, 19, [12, 14, 16, 18]),  # 10 % are 4 items, 30 s are 2
        (100, 1, 100, [20, 30, 40, 50, 60, 70, 80, 90, 100]),  # every 10 %
        (1000, 60, 19, range(11, 20)),  # every item
        (20, 0.21, 20, [20]),  # the first two seconds pass before the end
        (20, 0.1, 20, []),
    ],
)
def test_without_a_terminal_lines_are_printed_at_intervals(capsys, clock, total, sec_per_item, last, printed):
    with progress.bar("train", total=total, done=10) as advance:
        for _ in range(last - 10):
            clock[0] += sec_per_item
            advance(1, "loss 0.5")
    lines = [f"train: {n}/{total}, {(total - n) * sec_per_item:.0f} s left loss 0.5\n" for n in printed]
    assert capsys.readouterr().err == "".join(lines)


def test_a_line_has_the_last_note(capsys, clock):
    with progress.bar("train", total=40) as advance:
        for note in ("loss 0.7", "loss 0.5", "", ""):
            clock[0] += 1
            advance(1, note)
    assert capsys.readouterr().err == "train: 4/40, 36 s left loss 0.5\n"


class TimerOf:
    """A timer that has ended when it is started, or that never ends."""

    def __init__(self, has_ended):
        self.has_ended = has_ended

    def __call__(self, interval_sec, function):
        assert interval_sec == 2
        self.function = function
        return self

    def start(self):
        if self.has_ended:
            self.function()

    def cancel(self):
        pass

    join = cancel


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setattr(
        progress, "Console", lambda stderr: Console(stderr=stderr, force_terminal=True, width=100, color_system=None)
    )


def test_a_terminal_shows_no_bar_for_short_work(capsys, monkeypatch, terminal):
    monkeypatch.setattr(progress, "Timer", TimerOf(has_ended=False))
    with progress.bar("train", total=40) as advance:
        advance(40, "loss 0.5")
    assert capsys.readouterr().err.strip() == ""


def test_a_terminal_shows_the_last_note_and_the_count(capsys, monkeypatch, terminal):
    monkeypatch.setattr(progress, "Timer", TimerOf(has_ended=True))
    with progress.bar("train", total=40, done=10) as advance:
        advance(5, "loss 0.5")
        advance(1)
    shown = capsys.readouterr().err
    assert "16/40" in shown
    assert "loss 0.5" in shown


def test_a_table_aligns_its_columns(capsys):
    progress.table(["dataset", "tokens"], [["text", "1"], ["speech", "1000"]])
    assert capsys.readouterr().err.splitlines() == ["dataset  tokens", "text          1", "speech     1000"]


def test_names_from_data_are_printed_as_they_are_and_on_one_line(capsys, clock, monkeypatch, terminal):
    monkeypatch.setattr(progress, "Timer", TimerOf(has_ended=True))
    name = "[red]a\n\x1b[2J[/b]"
    with progress.bar(name, total=4) as advance:
        advance(1, name)
    assert capsys.readouterr().err.count("[red]a\\n\\x1b[2J[/b]") >= 2
    progress.table(["name", "n"], [[name, name]])
    progress.summary({name: name, "t": {name: {name: 1}}, "list": [name, f"{name} x"]})
    printed = capsys.readouterr()
    assert len(printed.err.splitlines()) == 2
    assert len(printed.out.splitlines()) == 6
    assert "\x1b" not in printed.err + printed.out


@settings(max_examples=30)
@given(st.text() | st.text(st.sampled_from(f"{CONTROLS}ab\n")))
def test_no_text_controls_the_terminal_or_begins_another_line(text):
    with redirect_stdout(io.StringIO()) as printed, redirect_stderr(printed):
        progress.note(text)
        progress.show(text, end="")
        progress.show(text, text)
        progress.write([text], sys.stderr)
        progress.table([text], [[text]])
        progress.summary({f"a{text}": text, "table": {text: {text: text}}, "list": [text], "nested": {text: {}}})
    shown = printed.getvalue()
    assert not {c for c in shown if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")} - set("\n\u200c\u200d")
    assert shown.count("\n") == 1 + 2 + 1 + 2 + 6


def test_only_this_module_prints():
    """Everything that reaches a terminal passes through `progress`, which escapes control characters."""
    folder = Path(weft.__file__).parent
    calls = {"print", "Console", "sys.stdout.write", "sys.stderr.write", "sys.stdout.writelines", "traceback.print_exc",
             "sys.stderr.writelines", "traceback.print_exception"}  # fmt: skip
    found = {
        f"{path.relative_to(folder)} calls {name}"
        for path in folder.rglob("*.py")
        if any(f"{name}(" in (source := path.read_text("utf-8")) for name in calls)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and (name := ast.unparse(node.func)) in calls
    }
    assert found == {"progress.py calls print", "progress.py calls Console"}


def test_a_summary_has_rows_and_tables_and_no_dict(capsys):
    rate = {"rate": 0.1, "low": 0.05, "high": 0.2, "num_units": 9}
    progress.summary(
        {
            "documents": 3,
            "seconds": 21581.355,
            "epsilon": 1e-05,
            "none": None,
            "flags": [True, 2],
            "empty": [],
            "nothing": {},
            "wer": rate,
            "by_words": {"0-9": 0.25, "10-99": 4},
            "speakers": {"ann": {"wer": rate, "n": 1}, "bo": {"wer": rate, "shares": {"0": 0.5}}},
            "deep": {"wer": {"all": {"rate": rate}}},
            "long": {str(i): i for i in range(50)},
            "warnings": ["the first one", "the second one"],
        }
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[:17] == [
        "documents               3",
        "seconds                 21581.4",
        "epsilon                 1e-05",
        "none                    -",
        "flags                   true, 2",
        "empty                   -",
        "wer                     10.0% (5.0% to 20.0%)",
        "by_words",
        "  0-9                     0.25",
        "  10-99                   4",
        "speakers",
        "                         wer  n  shares.0",
        "  ann  10.0% (5.0% to 20.0%)  1         -",
        "  bo   10.0% (5.0% to 20.0%)  -       0.5",
        "deep",
        "  wer",
        "                          rate",
    ]
    assert "  ... and 10 more" in lines
    assert lines[-2:] == ["warnings                the first one", "warnings                the second one"]
    assert not any("{" in line for line in lines)


def test_only_the_first_process_prints(capsys, clock, monkeypatch):
    monkeypatch.setattr(launch, "rank", lambda: 1)
    progress.table(["dataset"], [["text"]])
    progress.summary({"dataset": "text"})
    with progress.bar("train", total=40) as advance:
        clock[0] += 100
        advance(1, note="x")
    assert capsys.readouterr().err == ""
