import subprocess
import sys
import time
from pathlib import Path

import pytest

from weft import cli


def weft(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "weft", *arguments], capture_output=True, text=True, timeout=120)


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'cyclopts'} & set(sys.modules)"
    code = f"import sys; from weft.cli import run; run(['--help']); print('HEAVY', {heavy})"
    begun_sec = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "HEAVY set()" in done.stdout
    assert all(verb in done.stdout for verb in cli.VERBS)
    assert time.monotonic() - begun_sec < 10  # imports no torch, so it cannot take that long anywhere


@pytest.mark.parametrize("verb", list(cli.VERBS))
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([verb, "--help"]) == 0
    assert "Usage" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tokenise"], ["tokenise", "did you mean", "tokenize"]),
        (["info", "no/such/folder"], ["no/such/folder", "does not exist"]),
        (["train-tokenizer"], ["RECIPE.toml"]),
        (["train-tokenizer", "missing.toml"], ["missing.toml", "does not exist"]),
        (["tokenize", "a.wav", "--tokenizr", "x"], ["tokenizr"]),
        (["info", "a", "true"], ["true belongs to no flag", "a switch stands alone"]),
        (["speak", "missing.txt", "--out", "x"], ["missing.txt", "does not exist"]),
    ],
)
def test_mistakes_end_with_one_line_and_status_2(
    arguments: list[str],
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(arguments) == 2
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    assert complaint.startswith("weft: ")
    for word in words:
        assert word in complaint
    assert not list(tmp_path.iterdir())


def test_unknown_keys_of_a_recipe_are_refused_with_the_nearest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.toml").write_text('out = "x"\nspeech = ["y"]\n[train]\nsteps = 3\nlearning_rte = 1\n')
    assert cli.run(["train-tokenizer", str(tmp_path / "r.toml")]) == 2
    assert "learning_rte" in capsys.readouterr().err


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import errno

    from weft import info

    def full(_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "runs/x")

    monkeypatch.setattr(info, "run", full)
    assert cli.run(["info", "anything"]) == 2
    assert capsys.readouterr().err == (
        "weft: runs/x: No space left on device; free some space and run the same command again, it goes on from here\n"
    )
