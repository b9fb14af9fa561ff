"""Questions with their answers: their files, and their speech.

    questions = read_questions(Path("questions.jsonl"))     # {"id", "question", "answers", "audio"} per line

`answers` are the accepted ones, the first for examples in a prompt. `audio` is a path relative to the file; without it,
a voice speaks the question. Other keys, such as `category`, are kept for the items of the results.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weft.errors import UserError
from weft.text.inputs import id_of, numbered_lines, parse_json


@dataclass(frozen=True)
class Question:
    """A question, its accepted answers, and its recording, if there is one."""

    id: str
    question: str
    answers: tuple[str, ...]
    audio: str | None = None
    voice: str | None = None
    """Name of the speaker or TTS voice of the recording."""
    more: Mapping[str, Any] = field(default_factory=dict)


def read_questions(path: Path, needs_answers: bool = True) -> list[Question]:
    """Read questions from JSONL. Raises UserError for a file without any, and for a line that is not a question."""
    if not path.is_file():
        raise UserError(f"{path} is not a file: give questions as JSON lines")
    lines = numbered_lines(path.read_bytes().splitlines())
    questions = [_question(line, f"{path} line {number}", path.parent, needs_answers) for number, line in lines]
    if not questions:
        raise UserError(f"{path} is empty: write one JSON object per line, with id, question and answers")
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise UserError(f"{path} has the id {question.id!r} twice: make ids unique")
        seen.add(question.id)
    return questions


def _question(line: bytes, where: str, folder: Path, needs_answers: bool) -> Question:
    try:
        row = dict(parse_json(line))
    except (ValueError, TypeError) as e:
        raise UserError(f"{where} is not a question ({e}): give id, question and answers") from e
    name, text, answers = id_of(row.pop("id", None)), row.pop("question", None), row.pop("answers", None)
    audio, voice = row.pop("audio", None), row.pop("voice", None)
    if not name:
        raise UserError(f"{where} has no id: give one")
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{where}: `question` is {text!r}: give a string that is not empty")
    answers = [answers] if isinstance(answers, str) else answers
    given = isinstance(answers, list) and all(isinstance(a, str) and a.strip() for a in answers)
    if (answers is not None or needs_answers) and not (given and answers):
        raise UserError(f"{where}: `answers` is {answers!r}: give a list of strings that are not empty")
    if audio is not None and not isinstance(audio, str):
        raise UserError(f"{where}: `audio` is {audio!r}: give a path")
    return Question(name, text, tuple(answers or ()), str(folder / audio) if audio else None, voice, row)
