"""Metrics measure a set of `weft eval prepare` by its directory, and their protocols name it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.eval.conftest import noise
from weft import cli
from weft.audio import save
from weft.errors import UserError
from weft.eval.config import EvalConfig, items_file
from weft.eval.sets import described, items_in


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    """A directory with a set of pairs, salmon, and one of questions, val."""
    for part in ("gender", "rir"):
        for name in ("sample_0_0", "sample_0_1"):
            save(tmp_path / f"published/{part}/{name}.wav", noise(9000, int(name[-1])), 16_000)
    rows = [{"id": "a", "question": "Who?", "answers": ["Ann"]}, {"id": "b", "question": "Where?", "answers": ["here"]}]
    (tmp_path / "val.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare(tmp_path / "published", "salmon", tmp_path / "salmon")
    prepare(
        tmp_path / "val.jsonl", "webquestions", tmp_path / "questions", "--voice", "espeak:en-us", "ann=espeak:en-gb"
    )
    return tmp_path


def prepare(source: Path, name: str, out: Path, *flags: str) -> None:
    assert cli.run(["eval", "prepare", name, "--from", str(source), "--out", str(out), *flags]) == 0


def evaluate(metric: str, model: Path, data: Path, out: Path, *flags: object) -> dict[str, Any]:
    command = ["eval", metric, "--model", model, "--data", data, "--out", out, *flags]
    assert cli.run([str(a) for a in command]) == 0
    return json.loads(out.read_text())["results"]


def test_likelihood_measures_a_set_of_pairs(lm: Path, sets: Path) -> None:
    flags = ["--directions", "SS", "--rules", "mean"]
    result = evaluate("likelihood", lm, sets / "salmon", sets / "a.json", *flags)["SS"]
    by_file = evaluate("likelihood", lm, sets / "salmon/items.jsonl", sets / "b.json", *flags)["SS"]
    assert result["value"] == by_file["value"]
    protocol = result["protocol"]
    assert (protocol["set"], protocol["subset"], protocol["split"]) == ("salmon", "all", None)
    assert protocol["voices"] == ["recordings"]
    assert protocol["fingerprints"]["set"] == json.loads((sets / "salmon/manifest.json").read_text())["fingerprint"]
    assert "set" not in by_file["protocol"]
    items = [json.loads(line) for line in (sets / "a.items.jsonl").read_text().splitlines()]
    assert [item["part"] for item in items] == ["gender", "rir"]


def test_qa_measures_a_set_of_questions_and_takes_shots_from_one(text_lm: Path, sets: Path) -> None:
    result = evaluate("qa", text_lm, sets / "questions", sets / "a.json")["TT"]
    assert result["n"] == 2
    assert (result["protocol"]["set"], result["protocol"]["split"]) == ("webquestions", "val")
    row = {"question": "Why?", "answers": ["so"]}
    (sets / "shots.jsonl").write_text(json.dumps(row))
    prepare(sets / "shots.jsonl", "jsonl", sets / "shots")
    flags = ["--shots", "1", "--examples", sets / "shots"]
    assert evaluate("qa", text_lm, sets / "questions", sets / "b.json", *flags)["TT"]["n"] == 2


def test_a_protocol_has_name_split_and_voices(sets: Path) -> None:
    voices = {"voices": ["ann", "espeak:en-us"]}
    assert described(sets / "questions") == {"set": "webquestions", "split": "val", **voices}
    assert described(sets / "val.jsonl") == {}
    (sets / "manifest.json").write_text('{"made": "by other software"}')
    assert described(sets) == {}


def test_other_directories_and_other_items_are_refused(sets: Path) -> None:
    assert items_in(sets / "val.jsonl", "pairs") == sets / "val.jsonl"
    assert items_in(sets / "salmon", "pairs") == sets / "salmon/items.jsonl"
    with pytest.raises(
        UserError, match=r"salmon is a set of pairs: give a set of questions, or use weft eval likelihood"
    ):
        items_in(sets / "salmon", "questions")
    with pytest.raises(UserError, match=r"questions is a set of questions: give a set of pairs, or use weft eval qa"):
        items_in(sets / "questions", "pairs")
    with pytest.raises(UserError, match=r"published has no manifest.json: give the directory of an eval set"):
        items_in(sets / "published", "pairs")
    with pytest.raises(UserError, match=r"it needs pairs: give --data PAIRS.jsonl"):
        items_file(EvalConfig(sets, sets / "x.json"), "pairs", "it needs pairs")
    shutil.rmtree(sets / "salmon/audio")
    with pytest.raises(UserError, match=r"is not the eval set that was created: .*is missing"):
        items_in(sets / "salmon", "pairs")
