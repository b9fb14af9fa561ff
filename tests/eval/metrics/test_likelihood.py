"""`weft eval likelihood` measures pairs of endings in text by any causal LM, and in speech by models of weft."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.eval.conftest import noise
from weft import cli
from weft.audio import save
from weft.lm.init import InitLmConfig
from weft.lm.init import run as init_lm

ROWS = [
    {"id": "a", "beginning": "The cat sat.", "right": "It slept.", "wrong": "On the mat"},
    {"id": "b", "beginning": "Ann sat. The cat", "right": "On the mat Ann sat.", "wrong": "The 9 cats"},
]


def evaluate(model: Path, pairs: Path, out: Path, *flags: object) -> dict[str, Any]:
    command = ["eval", "likelihood", "--model", model, "--data", pairs, "--out", out, *flags]
    assert cli.run([str(a) for a in command]) == 0
    return json.loads(out.read_text())


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_text_is_measured_by_any_causal_lm_and_equally_after_speech_tokens_are_added(
    text_lm: Path, bundle: Path, pairs: Path, tmp_path: Path
) -> None:
    init_lm(InitLmConfig(tmp_path / "lm", bundle / "tokenizer", base=text_lm))
    flags = ["--directions", "TT", "--one-modality", "--rules", "mean", "total", "per_byte", "mutual_information"]
    before = evaluate(text_lm, pairs, tmp_path / "before.json", *flags)
    after = evaluate(tmp_path / "lm", pairs, tmp_path / "after.json", *flags)
    assert before["results"].keys() == {"TT", "TT, total", "TT, per_byte", "TT, mutual_information"}
    items = [
        [json.loads(line) for line in (tmp_path / f"{name}.items.jsonl").read_text().splitlines()]
        for name in ("before", "after")
    ]
    for one, other in zip(*items, strict=True):
        assert one["id"] == other["id"]
        for rule, values in one["TT"].items():
            assert other["TT"][rule] == pytest.approx(values, abs=1e-4)
    for name, result in before["results"].items():
        assert (result["n"], result["value"]) == (2, after["results"][name]["value"])
        assert (result["protocol"]["direction"], result["protocol"]["ids"]) == ("TT", "of one modality")


def test_a_model_without_speech_tokens_measures_text_only(
    text_lm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("beginning", "right", "wrong"):
        save(tmp_path / f"{name}.wav", noise(9000, 0), 16_000)
    row = {**ROWS[0], **{f"{name}_audio": f"{name}.wav" for name in ("beginning", "right", "wrong")}}
    (tmp_path / "spoken.jsonl").write_text(json.dumps(row))
    command = ["eval", "likelihood", "--model", text_lm, "--data", tmp_path / "spoken.jsonl"]
    assert cli.run([str(a) for a in (*command, "--out", tmp_path / "x.json")]) == 2
    assert "no speech tokens" in capsys.readouterr().err


def test_recordings_and_synthesized_speech_are_measured_in_all_directions(
    bundle: Path, lm: Path, pairs: Path, tmp_path: Path
) -> None:
    found = evaluate(lm, pairs, tmp_path / "spoken.json", "--voice", "espeak:en-us")
    assert {"TT", "ST", "TS", "SS"} <= found["results"].keys()
    assert found["results"]["SS"]["protocol"]["voices"] == ["espeak:en-us"]
    assert found["results"]["TT"]["protocol"]["voices"] == []
    assert set(found["results"]["SS"]["protocol"]["fingerprints"]) == {"lm", "tokenizer", "text_to_token", "data"}
    for name in ("beginning", "right", "wrong"):
        save(tmp_path / f"{name}.wav", noise(9000, 0), 16_000)
    recorded = {"id": "c", **{f"{name}_audio": f"{name}.wav" for name in ("right", "wrong")}, "voice": "joe"}
    (tmp_path / "words.jsonl").write_text(json.dumps(recorded))
    words = evaluate(lm, tmp_path / "words.jsonl", tmp_path / "words.json", "--directions", "SS")
    assert words["results"]["SS"]["value"] == 0.5  # the endings are the same sound
    assert words["results"]["SS"]["protocol"]["voices"] == ["joe"]


def test_pairs_are_needed_and_a_text_that_cannot_be_spoken_is_unjudged(
    bundle: Path,
    lm: Path,
    pairs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert cli.run(["eval", "likelihood", "--model", str(lm), "--out", str(tmp_path / "x.json")]) == 2
    assert "give --data PAIRS.jsonl" in capsys.readouterr().err

    def synthesize(self: object, texts: list[str], *_: object) -> list[list[int]]:
        return [[] if "9" in text else [1, 2] for text in texts]

    monkeypatch.setattr("weft.text_to_token.synthesize.Synthesizer.synthesize", synthesize)
    found = evaluate(lm, pairs, tmp_path / "spoken.json", "--directions", "SS")
    assert (found["results"]["SS"]["n"], found["results"]["SS"]["unjudged"]) == (2, 1)
    assert found["details"]["not_spoken"] == ["b"]
