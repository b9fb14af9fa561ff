"""`weft eval qa`: the accuracy is known for an oracle, a coin and a model that is always wrong."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.eval.conftest import noise
from weft import cli
from weft.audio import save
from weft.engine.generate import Engine, Generated, Request
from weft.errors import UserError
from weft.eval.answers import Answer, Prompts
from weft.eval.model import load_lm
from weft.eval.questions import Question, read_questions
from weft.eval.text_to_token import Judge
from weft.tokenizer.tokenizer import SpeechTokenizer

NUM = 60


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    rows = [{"id": str(i), "question": f"What is {i}?", "answers": [f"cat {i}"], "kind": "cats"} for i in range(NUM)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def evaluate(model: Path, data: Path, out: Path, *flags: object) -> dict[str, Any]:
    assert cli.run([str(a) for a in ("eval", "qa", "--model", model, "--data", data, "--out", out, *flags)]) == 0
    return json.loads(out.read_text())


def answering(monkeypatch: pytest.MonkeyPatch, model: Path, answers: Callable[[int], str]) -> list[Sequence[Request]]:
    """Make the engine answer the n-th question with a text; return the requests."""
    vocab, seen = load_lm(model).vocab, list[Sequence[Request]]()

    def generate(self: Engine, requests: Sequence[Request], *_: object) -> list[Generated]:
        seen.append(requests)
        return [Generated(vocab.text_ids(answers(i)).tolist(), True) for i in range(len(requests))]

    monkeypatch.setattr(Engine, "generate", generate)
    return seen


@pytest.mark.parametrize("name", ["oracle", "coin", "wrong"])
def test_the_accuracy_of_a_known_model(
    name: str, text_lm: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coin = np.random.default_rng(0).integers(0, 2, NUM)
    right = {"oracle": np.ones(NUM), "wrong": np.zeros(NUM), "coin": coin}[name]
    answering(monkeypatch, text_lm, lambda i: f" It is cat {i}.\nQuestion" if right[i] else f" A dog.\ncat {i}")
    found = evaluate(text_lm, data, tmp_path / "out.json")
    result = found["results"]["TT"]
    assert (result["value"], result["n"], result["unjudged"]) == (pytest.approx(right.mean()), NUM, 0)
    assert result["low"] <= result["value"] <= result["high"]
    if name == "coin":
        assert result["low"] < 0.5 < result["high"]
    protocol = result["protocol"]
    assert (protocol["match"], protocol["prompt"], protocol["shots"], protocol["judge"]) == (
        "has_answer", "continuation", 0, None,
    )  # fmt: skip
    items = [json.loads(line) for line in (tmp_path / "out.items.jsonl").read_text().splitlines()]
    assert items[3] == {
        "id": "3", "question": "What is 3?", "kind": "cats", "TT": "It is cat 3." if right[3] else "A dog.",
        "scores": {"TT": right[3], "TT, normalized": right[3]},
    }  # fmt: skip


def test_answers_in_text_are_equal_after_speech_tokens_are_added(
    text_lm: Path, lm: Path, data: Path, tmp_path: Path
) -> None:
    evaluate(text_lm, data, tmp_path / "before.json", "--max-text-tokens", "5")
    evaluate(lm, data, tmp_path / "after.json", "--max-text-tokens", "5")
    before, after = (
        [json.loads(line)["TT"] for line in (tmp_path / f"{name}.items.jsonl").read_text().splitlines()]
        for name in ("before", "after")
    )
    assert before == after
    assert any(before)


def test_examples_precede_every_question_in_its_modality(
    text_lm: Path, lm: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"id": f"e{i}", "question": f"Which {i}?", "answers": [f"dog {i}", "hound"]} for i in range(3)]
    (tmp_path / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    seen = answering(monkeypatch, text_lm, lambda i: " x")
    evaluate(text_lm, data, tmp_path / "a.json", "--shots", "2", "--examples", tmp_path / "examples.jsonl")
    text = load_lm(text_lm).vocab.tokenizer.decode(seen[0][1].ids)
    chosen = [row for row in rows if row["question"] in text]
    assert len(chosen) == 2
    shots = "".join(f"Question: {row['question']}\nAnswer: {row['answers'][0]}\n\n" for row in chosen)
    assert text.endswith(f"{shots}Question: What is 1?\nAnswer:")
    vocab = load_lm(lm).vocab
    example, asked = Question("e", "Which?", ("dog",)), Question("q", "What?", ("cat",))
    prompts = Prompts(vocab, [example], {"e": [1, 2], "e.answer": [3]})
    begin, end = [vocab.begin_of_audio_id], [vocab.end_of_audio_id]
    code = lambda *c: vocab.codes_to_ids(c).tolist()  # noqa: E731
    start = vocab.document_start_ids.tolist() or [vocab.eos_id]
    assert prompts.of(asked, [4], "SS").tolist() == [
        *start, *begin, *code(1, 2), *end, *begin, *code(3), *end, *begin, *code(4), *end, *begin,
    ]  # fmt: skip
    assert prompts.of(asked, [4], "ST").tolist() == [
        *start, *begin, *code(1, 2), *end, *vocab.text_ids("\nAnswer:"), *vocab.text_ids(" dog\n\n"),
        *begin, *code(4), *end, *vocab.text_ids("\nAnswer:"),
    ]  # fmt: skip
    assert prompts.of(asked, None, "TS").tolist()[-1:] == begin


def test_spoken_answers_are_transcribed_by_both_judges(
    lm: Path, whisper: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Whisper hears every answer, and the tokenizer none; one recording cannot be read."""
    rows = [json.loads(line) for line in data.read_text().splitlines()][:4]
    for i, row in enumerate(rows[:3]):
        save(tmp_path / f"{i}.wav", noise(9000, i), 16_000)
        row |= {"audio": f"{i}.wav" if i else "missing.wav", "voice": "joe"}
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(Judge, "transcribe", lambda self, codes, languages: [f"cat {i + 1}" for i in range(len(codes))])
    monkeypatch.setattr(SpeechTokenizer, "transcribe", lambda self, codes, languages: ["" for _ in codes])
    flags = ["--directions", "SS", "ST", "--judge", whisper, "--max-speech-sec", "0.4", "--max-text-tokens", "3"]
    found = evaluate(lm, data, tmp_path / "out.json", *flags)
    results = found["results"]
    assert {"SS, whisper", "SS, whisper, normalized", "SS, tokenizer", "ST", "ST, normalized"} <= results.keys()
    assert (results["SS, whisper"]["value"], results["SS, whisper"]["n"], results["SS, whisper"]["unjudged"]) == (
        0.75,
        4,
        1,
    )
    assert results["SS, tokenizer"]["value"] == 0
    assert results["ST"]["protocol"]["voices"] == ["espeak:en-us", "joe"]
    assert list(found["details"]["unreadable"]) == ["0"]


def test_a_chatbot_is_asked_by_its_template(
    lm: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def answers(bundle: Any, questions: Sequence[Question], audio: Any, direction: str, limits: Any) -> list[Answer]:
        asked.append((direction, sorted(audio)))
        return [Answer(f"cat {q.id}", [1]) for q in questions]

    monkeypatch.setattr("weft.eval.metrics.qa.chat_answers", answers)
    found = evaluate(lm, data, tmp_path / "out.json", "--prompt", "chat", "--directions", "TT", "ST", "--limit", "5")
    assert [result["value"] for result in found["results"].values()] == [1.0] * 4
    assert asked[0] == ("TT", asked[1][1])
    assert len(asked[1][1]) == 5


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--directions", "ST"], "no speech tokens"),
        (["--directions", "SS"], "give --judge WHISPER"),
        (["--shots", "1"], "need --examples"),
        (["--shots", "1", "--examples", "DATA"], "which is also in the data"),
        (["--max-text-tokens", "9999"], "more than the model's 256 positions: give fewer shots"),
    ],
)
def test_what_cannot_be_asked_is_rejected(
    flags: list[str], message: str, text_lm: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["eval", "qa", "--model", text_lm, "--data", data, "--out", tmp_path / "x.json"]
    given = [str(data) if flag == "DATA" else flag for flag in flags]
    assert cli.run([*map(str, command), *given]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()


def test_more_shots_than_examples_are_rejected(text_lm: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text(json.dumps({"id": "e", "question": "Which?", "answers": ["dog"]}))
    assert len(read_questions(tmp_path / "one.jsonl")) == 1
    from weft.eval.metrics.qa import QaEval, run

    config = QaEval(text_lm, tmp_path / "x.json", (data,), shots=2, examples=tmp_path / "one.jsonl")
    with pytest.raises(UserError, match="has 1 questions, less than 2 shots"):
        run(config)
