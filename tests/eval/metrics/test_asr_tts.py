"""`weft eval asr` and `tts`: the error rates of a language model whose answers are known."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.eval.conftest import TEXTS
from weft import cli
from weft.eval.metrics import asr, tts
from weft.eval.text_to_token import Judge
from weft.tokenizer.tokenizer import SpeechTokenizer


def evaluate(metric: str, model: Path, data: Path, out: Path, *flags: object) -> dict[str, Any]:
    command = ("eval", metric, "--model", model, "--data", data, "--out", out, *flags)
    assert cli.run([str(a) for a in command]) == 0
    return json.loads(out.read_text())


@pytest.mark.parametrize(("answers", "rate"), [(TEXTS, 0.0), ([""] * 4, 1.0), (["The cat", *TEXTS[1:]], 1 / 11)])
def test_recognition_by_a_model_with_known_answers(
    answers: list[str], rate: float, lm: Path, speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asr, "transcribe", lambda engine, vocab, codes, rate_hz: answers[: len(codes)])
    found = evaluate("asr", lm, speech, tmp_path / "out.json")
    assert found["results"]["wer"]["value"] == pytest.approx(rate)
    assert (found["results"]["wer"]["n"], found["details"]["left_out_ids"]) == (3, ["3"])
    assert found["results"]["cer"]["protocol"]["direction"] == "ST"
    items = [json.loads(line) for line in (tmp_path / "out.items.jsonl").read_text().splitlines()]
    assert [item["transcript"] for item in items] == answers[:3]


def test_synthesis_is_judged_twice(
    lm: Path, whisper: Path, speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tts, "synthesize", lambda engine, vocab, texts, rate_hz: [[1, 2], [3], []])
    monkeypatch.setattr(Judge, "transcribe", lambda self, codes, languages: TEXTS[: len(codes)])
    monkeypatch.setattr(SpeechTokenizer, "transcribe", lambda self, codes, languages: [""] * len(codes))
    found = evaluate("tts", lm, speech, tmp_path / "out.json", "--judge", whisper)
    assert {name: result["value"] for name, result in found["results"].items()} == {
        "wer, whisper": 0, "cer, whisper": 0, "wer, tokenizer": 1, "cer, tokenizer": 1,
    }  # fmt: skip
    assert found["details"]["without_codes"] == 1
    assert found["results"]["wer, whisper"]["protocol"]["judge"] == "whisper"


def test_models_of_random_weights_give_some_answer(lm: Path, whisper: Path, speech: Path, tmp_path: Path) -> None:
    assert evaluate("asr", lm, speech, tmp_path / "a.json", "--limit", "1")["results"]["wer"]["value"] >= 0
    flags = ["--limit", "1", "--judge", whisper]
    assert evaluate("tts", lm, speech, tmp_path / "t.json", *flags)["results"]["wer, whisper"]["value"] >= 0
