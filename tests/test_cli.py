import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from weft import cli, info


def test_help_is_fast_and_loads_no_large_library() -> None:
    code = (
        "import sys; from weft.cli import run; run(['--help']);"
        "print('LOADED', {'torch', 'transformers', 'cyclopts'} & set(sys.modules))"
    )
    before = os.times()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    after = os.times()
    cpu_sec = after.children_user - before.children_user + after.children_system - before.children_system
    assert "LOADED set()" in done.stdout
    assert all(name in done.stdout for name in cli.COMMANDS)
    assert cpu_sec < 0.3


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([name, "--help"]) == 0
    assert "Usage" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tokenise"], ["tokenise", "did you mean", "tokenize"]),
        (["info", "no/such/directory"], ["no/such/directory", "does not exist"]),
        (["train-tokenizer"], ["RECIPE.toml"]),
        (["train-tokenizer", "missing.toml"], ["missing.toml", "does not exist"]),
        (["tokenize", "a.wav", "--tokenizr", "x"], ["tokenizr"]),
        (["info", "a", "true"], ["true belongs to no flag", "A switch is --NAME"]),
        (["info"], ["info: --path is missing, see --help"]),
        (["speak", "missing.txt", "--out", "x"], ["missing.txt", "does not exist"]),
    ],
)
def test_user_errors_are_one_line_with_status_2(
    arguments: list[str],
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(arguments) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert message.startswith("weft: ")
    for word in words:
        assert word in message
    assert not list(tmp_path.iterdir())


def test_an_unknown_key_of_a_recipe_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.toml").write_text('out = "x"\nspeech = ["y"]\n[train]\nsteps = 3\nlearning_rte = 1\n')
    assert cli.run(["train-tokenizer", str(tmp_path / "r.toml")]) == 2
    assert "learning_rte" in capsys.readouterr().err


def test_a_full_disk_is_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "runs/x")

    monkeypatch.setattr(info, "run", fail)
    assert cli.run(["info", "anything"]) == 2
    assert capsys.readouterr().err == (
        "weft: runs/x: No space left on device; free some space, and run the same command again to resume\n"
    )


def test_an_interruption_has_status_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(info, "run", interrupt)
    assert cli.run(["info", "anything"]) == 130
    assert "weft: interrupted; run the same command again to resume" in capsys.readouterr().err


def test_counts_are_printed_without_tables() -> None:
    counts = {"documents": 3, "ratio": 0.123456, "by_words": {"0-9": 0.25, "10-99": 4}, "empty": {}, "table": {"a": {}}}
    lines = ["documents               3", "ratio                   0.1235", "by_words                0-9 0.25, 10-99 4"]
    assert list(cli._lines(counts)) == lines
