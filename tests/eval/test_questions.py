import json
from pathlib import Path

import pytest

from weft.errors import UserError
from weft.eval.questions import Question, read_questions

ROW = {"id": "a", "question": "What is it?", "answers": ["a cat", "cat"]}


def test_questions_have_answers_and_perhaps_audio(tmp_path: Path) -> None:
    rows = [
        ROW,
        {"id": 7, "question": "Who?", "answers": "Ann", "audio": "x/who.wav", "voice": "joe", "category": "names"},
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert read_questions(tmp_path / "q.jsonl") == [
        Question("a", "What is it?", ("a cat", "cat")),
        Question("7", "Who?", ("Ann",), str(tmp_path / "x/who.wav"), "joe", {"category": "names"}),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "line 2 is not a question"),
        ("[1, 2]", "line 2 is not a question"),
        ({**ROW, "id": None}, "line 2 has no id"),
        ({**ROW, "id": "a"}, "has the id 'a' twice"),
        ({**ROW, "id": "b", "question": " "}, "line 2: `question` is ' '"),
        ({**ROW, "id": "b", "answers": []}, r"line 2: `answers` is \[\]: give a list of strings that are not empty"),
        ({**ROW, "id": "b", "answers": ["x", ""]}, "line 2: `answers`"),
        ({**ROW, "id": "b", "answers": None}, "line 2: `answers` is None"),
        ({**ROW, "id": "b", "audio": 3}, "line 2: `audio` is 3: give a path"),
    ],
)
def test_the_message_names_a_line_that_is_not_a_question(tmp_path: Path, row: object, message: str) -> None:
    text = row if isinstance(row, str) else json.dumps(row)
    (tmp_path / "q.jsonl").write_text(json.dumps(ROW) + "\n" + text)
    with pytest.raises(UserError, match=message):
        read_questions(tmp_path / "q.jsonl")


def test_a_file_without_questions_is_named(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text("\n")
    with pytest.raises(UserError, match=r"q.jsonl is empty"):
        read_questions(tmp_path / "q.jsonl")
    with pytest.raises(UserError, match="is not a file"):
        read_questions(tmp_path)
