import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from weft import cli
from weft.artifacts import Manifest, read


class Prepared:
    """The manifest and the items of a set that was prepared from a source."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest: Manifest = read(folder, "eval_set")
        self.items = [json.loads(line) for line in (folder / "items.jsonl").read_text("utf-8").splitlines()]
        self.counts: dict[str, Any] = self.manifest.counts


@pytest.fixture
def prepare(tmp_path: Path) -> Callable[..., Prepared]:
    """Run `weft eval prepare`."""

    def run(name: str, source: Path, *flags: str, out: str = "out") -> Prepared:
        command = ["eval", "prepare", name, "--from", source, "--out", tmp_path / out, *flags]
        assert cli.run([str(argument) for argument in command]) == 0
        return Prepared(tmp_path / out)

    return run


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run `weft eval prepare`, which fails and leaves nothing behind, and return its message of one line."""

    def run(name: str, source: Path, *flags: str) -> str:
        command = ["eval", "prepare", name, "--from", source, "--out", tmp_path / "out", *flags]
        capsys.readouterr()
        assert cli.run([str(argument) for argument in command]) == 2
        assert not list(tmp_path.glob("out*"))
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        return message

    return run
