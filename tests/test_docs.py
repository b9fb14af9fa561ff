"""The docs are executed: the commands of the new-language page run, and tables equal the output of commands."""

import json
import re
import shlex
from pathlib import Path

import pytest
from transformers import GlmConfig

from weft import artifacts, cli
from weft.config import recipes_folder

DOCS = Path(__file__).parents[1] / "docs"


def test_the_commands_for_a_new_language_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(recipes_folder())
    commands = []
    for language, block in re.findall(r"```(\w+)\n(.*?)```", (DOCS / "new-language.md").read_text("utf-8"), re.DOTALL):
        if language == "python":
            exec(block, {})
            continue
        for line in block.replace("\\\n", " ").splitlines():
            program, *arguments = shlex.split(line)
            assert program == "weft"
            assert cli.run(arguments) == 0, line
            commands.append(arguments[0])
    assert commands == ["speak", "speak", "train-tokenizer", "train-tokenizer", "eval", "tokenize", "info"]
    found = json.loads((tmp_path / "runs/german/results.json").read_text())["tokenizer"]
    assert found["utterances"] == artifacts.read(tmp_path / "runs/german/codes").counts["utterances"] == 8
    assert found["frame_rate_hz"] == 12.5


def test_the_estimate_of_the_papers_9b_is_current(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    GlmConfig(vocab_size=167744).save_pretrained(tmp_path / "plan-9b")
    recipe = recipes_folder() / "paper/pretrain-9b.toml"
    assert cli.run(["pretrain", str(recipe), "--dry-run", "--base", str(tmp_path / "plan-9b")]) == 2  # without data
    table = capsys.readouterr().out.split("\n\n")[1]
    assert table.startswith("gpus ")
    assert table in (DOCS / "scaling-out.md").read_text("utf-8")
