"""Ratings of answers by a language model at a URL with OpenAI's chat protocol.

    judge = LlmJudge("https://api.openai.com/v1", model="gpt-4o", key=os.environ.get("OPENAI_API_KEY"))
    verdicts = judge.verdicts([("What is 2 + 2?", "Four.", None), ...], "general")     # 1 to 10
    verdicts = judge.verdicts([("What is 2 + 2?", "Four.", ["4"]), ...], "knowledge")  # 1 for a correct answer, else 0

A verdict that has no rating is asked for again, three times in total; then the answer is not judged. Everything that
the judge wrote is kept. The two kinds are those of the paper, whose prompts are not published.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from weft import progress
from weft.engine.server import Server
from weft.errors import UserError

Kind = Literal["general", "knowledge"]
_MAX_VERDICTS, _CONCURRENCY = 3, 8
_RATING = re.compile(r"rating\W{0,5}(\d+)", re.IGNORECASE)

PROMPTS: dict[Kind, str] = {
    "general": (
        "You rate the answer of a voice assistant to a user. Consider whether the answer is correct, helpful, relevant "
        "to the question and easy to understand when it is heard. A short answer can be a good answer.\n\n"
        "Question: {question}\n\nAnswer: {answer}\n\n"
        "Explain your judgement in one or two sentences. Then write a last line of the form `Rating: N`, where N is a "
        "whole number from 1 (useless) to 10 (perfect)."
    ),
    "knowledge": (
        "You decide whether the answer of a voice assistant to a question is correct. It is correct if it contains one "
        "of the reference answers, or says the same in other words, and does not contradict it.\n\n"
        "Question: {question}\n\nReference answers: {references}\n\nAnswer: {answer}\n\n"
        "Explain your judgement in one sentence. Then write a last line of the form `Rating: N`, where N is 1 if the "
        "answer is correct and 0 if it is not."
    ),
}
_RANGES: dict[Kind, tuple[int, int]] = {"general": (1, 10), "knowledge": (0, 1)}


@dataclass(frozen=True)
class Verdict:
    """The rating of an answer, None if the judge gave none, and all texts that it wrote about it."""

    rating: int | None
    texts: tuple[str, ...]


class LlmJudge:
    """A judge: the first model that the server lists, or the one of a name."""

    def __init__(
        self,
        url: str,
        model: str | None = None,
        key: str | None = None,
        timeout_sec: float = 120.0,
        wait_sec: float = 1.0,
    ) -> None:
        """Ask the server for its models, if none is named. Raises UserError if it does not answer."""
        self._server = Server(url, timeout_sec, wait_sec, key)
        self.model = model or self._server.ask("models", None, lambda answer: str(answer["data"][0]["id"]))

    def verdicts(self, answers: Sequence[tuple[str, str, Sequence[str] | None]], kind: Kind) -> list[Verdict]:
        """Return a verdict on each (question, answer, reference answers), at temperature 0."""
        pool = ThreadPoolExecutor(_CONCURRENCY)
        with progress.bar("judge", len(answers)) as advance:

            def judge(given: tuple[str, str, Sequence[str] | None]) -> Verdict:
                verdict = self._verdict(*given, kind)
                advance()
                return verdict

            try:
                return list(pool.map(judge, answers))
            finally:
                pool.shutdown(cancel_futures=True)

    def _verdict(self, question: str, answer: str, references: Sequence[str] | None, kind: Kind) -> Verdict:
        prompt = PROMPTS[kind].format(question=question, answer=answer, references="; ".join(references or ()))
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
        }
        texts: list[str] = []
        for attempt in range(_MAX_VERDICTS):
            try:
                texts.append(self._server.ask("chat/completions", {**body, "seed": attempt}, _content))
            except UserError as e:
                return Verdict(None, (*texts, f"error: {e}"))
            if (rating := rating_of(texts[-1], kind)) is not None:
                return Verdict(rating, tuple(texts))
        return Verdict(None, tuple(texts))


def _content(answer: Any) -> str:
    text = answer["choices"][0]["message"]["content"]
    if not isinstance(text, str):
        raise ValueError("it has no text")
    return text


def rating_of(text: str, kind: Kind) -> int | None:
    """Return the last rating of a verdict, None if there is none or if it is outside the scale."""
    found = _RATING.findall(text)
    low, high = _RANGES[kind]
    return int(found[-1]) if found and low <= int(found[-1]) <= high else None
