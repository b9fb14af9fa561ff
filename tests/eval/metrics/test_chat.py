"""`weft eval chat`: ratings by a stand-in for a judge, and the error rate of spoken answers."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.completions import StandIn, served
from weft import cli
from weft.eval.answers import Answer
from weft.eval.text_to_token import Judge


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [{"id": str(i), "question": f"Question {i}?", "topic": "cats"} for i in range(4)]
    (tmp_path / "open.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "open.jsonl"


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The chatbot answers "the cat N", and the Whisper hears "cat N"."""

    def chat(bundle: Any, questions: Any, audio: Any, direction: str, limits: Any) -> list[Answer]:
        return [Answer(f"the cat {q.id}", [int(q.id)]) for q in questions]

    monkeypatch.setattr("weft.eval.metrics.chat.chat_answers", chat)
    monkeypatch.setattr(Judge, "transcribe", lambda self, codes, languages: [f"cat {c[0]}" for c in codes])


def evaluate(lm: Path, data: Path, tmp_path: Path, judge: StandIn, *flags: object) -> dict[str, Any]:
    with served(judge) as url:
        command = (
            "eval",
            "chat",
            "--model",
            lm,
            "--data",
            data,
            "--out",
            tmp_path / "out.json",
            "--judge-url",
            url,
            *flags,
        )
        assert cli.run([str(a) for a in command]) == 0
    return json.loads((tmp_path / "out.json").read_text())


@pytest.mark.usefixtures("answers")
def test_ratings_and_spoken_words(lm: Path, whisper: Path, data: Path, tmp_path: Path) -> None:
    """The judge rates by the number in the answer; one verdict has no rating, and is no part of the mean."""

    def rate(body: dict[str, Any]) -> tuple[int, Any]:
        answer = body["messages"][0]["content"].partition("Answer: ")[2]
        number = int(answer.partition("cat ")[2][0])
        return 200, {"choices": [{"message": {"content": f"Rating: {3 * number}"}}]}

    flags = ["--directions", "TT", "TS", "--whisper", whisper]
    found = evaluate(lm, data, tmp_path, StandIn(rate), *flags)
    results = found["results"]
    assert (results["TT"]["value"], results["TT"]["n"], results["TT"]["unjudged"]) == (6.0, 4, 1)
    assert results["TS, wer"]["value"] == pytest.approx(1 / 3)
    protocol = results["TS"]["protocol"]
    assert (protocol["judge"], protocol["temperature"], protocol["kind"]) == ("spoken", 0, "general")
    assert "{question}" in protocol["prompt"]
    items = [json.loads(line) for line in (tmp_path / "out.items.jsonl").read_text().splitlines()]
    assert items[1]["TS"] == {"answer": "cat 1", "verdicts": ["Rating: 3"]}
    assert items[0]["TT"]["verdicts"] == ["Rating: 0"] * 3
    assert items[1]["scores"] == {"TT": 3.0, "TS": 3.0, "TS, wer": [1, 3]}
    assert items[0]["topic"] == "cats"


@pytest.mark.usefixtures("answers")
def test_knowledge_counts_an_answer_that_was_not_judged_as_wrong(lm: Path, data: Path, tmp_path: Path) -> None:
    rows = [{**json.loads(line), "answers": ["cat 1"]} for line in data.read_text().splitlines()]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    judge = StandIn(lambda body: (200, {"choices": [{"message": {"content": "Rating: 1" if "cat 1\n" in
        body["messages"][0]["content"].partition("Answer: ")[2] else "I do not know"}}]}))  # fmt: skip
    found = evaluate(lm, data, tmp_path, judge, "--directions", "TT", "--kind", "knowledge")
    assert (found["results"]["TT"]["value"], found["results"]["TT"]["unjudged"]) == (0.25, 3)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give --judge-url URL"),
        (["--judge-url", "http://127.0.0.1:9/v1", "--directions", "SS"], "give --whisper WHISPER"),
        (["--judge-url", "http://127.0.0.1:9/v1", "--kind", "knowledge", "--directions", "TT"], "`answers` is None"),
    ],
)
def test_what_is_missing_is_named(
    flags: list[str], message: str, lm: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["eval", "chat", "--model", str(lm), "--data", str(data), "--out", str(tmp_path / "x.json"), *flags]
    assert cli.run(command) == 2
    assert message in capsys.readouterr().err
