"""Answers of language models to written and spoken questions.

    prompts = Prompts(vocab, examples)                               # of a base model, which continues them
    answers = prompts.answers(engine, prompts.of(questions, codes, "ST"), "ST", Limits())
    answers = chat_answers(bundle, questions, audio, "SS", Limits())  # of a chatbot

A base model gets the examples and the question as a document that it continues with an answer:

    TT  "Question: {question}\\nAnswer: {answer}\\n\\n", ...
    ST  speech of the question, "\\nAnswer: {answer}\\n\\n", ...
    TS  "Question: {question}\\n", speech of the answer, ...
    SS  speech of the question, speech of the answer, ...

A written answer ends at the end of a line, and a spoken one at its marker. The paper's prompts are not published.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from weft import progress
from weft.chat.bundle import Bundle
from weft.chat.session import ChatSession
from weft.engine.generate import Engine, Generated, Request, Sampling
from weft.errors import UserError
from weft.eval.likelihood import ids_of
from weft.eval.model import TextVocab, Vocab
from weft.eval.questions import Question

GREEDY = Sampling(temperature=0)
_MAX_REPEATS = 8  # of a cycle of ids, after which generation ends


@dataclass(frozen=True)
class Limits:
    """Longest answers."""

    text_tokens: int = 32
    speech_sec: float = 10.0


@dataclass(frozen=True)
class Answer:
    """An answer as text, as codes, or both."""

    text: str | None = None
    codes: Sequence[int] | None = None


class Prompts:
    """Prompts of a base model, each with the same examples."""

    def __init__(
        self, vocab: Vocab, examples: Sequence[Question] = (), codes: Mapping[str, Sequence[int]] | None = None
    ) -> None:
        """`codes` has those of the examples' questions by "ID" and of their answers by "ID.answer"."""
        self._vocab, self._examples, self._codes = vocab, examples, codes or {}

    def of(self, question: Question, codes: Sequence[int] | None, direction: str) -> np.ndarray:
        """Return the ids of a prompt. Spoken questions need their codes."""
        start = self._vocab.document_start_ids
        parts = [start if len(start) else np.array([self._vocab.eos_id])]
        for example in self._examples:
            parts += self._asked(example, self._codes.get(example.id), direction)
            parts += self._answered(example, direction)
        return np.concatenate([*parts, *self._asked(question, codes, direction, is_last=True)])

    def _asked(
        self, question: Question, codes: Sequence[int] | None, direction: str, is_last: bool = False
    ) -> list[np.ndarray]:
        """Return the ids of a question, and of what precedes the answer."""
        vocab = self._vocab
        if direction == "TT":
            # The space belongs to the first word of the answer, as tokenizers join them.
            return [vocab.text_ids(f"Question: {question.question}\nAnswer:")]
        if direction == "TS":
            asked = [vocab.text_ids(f"Question: {question.question}\n")]
        else:
            assert codes is not None, f"question {question.id} has no codes"
            assert not isinstance(vocab, TextVocab), "this language model has no speech tokens"
            asked = [vocab.speech_ids(codes)]
        if direction == "ST":
            return [*asked, vocab.text_ids("\nAnswer:")]
        assert not isinstance(vocab, TextVocab), "this language model has no speech tokens"
        return [*asked, np.array([vocab.begin_of_audio_id])] if is_last else asked

    def _answered(self, example: Question, direction: str) -> list[np.ndarray]:
        """Return the ids of the answer of an example, and of what precedes the next question."""
        if direction in ("TT", "ST"):
            return [self._vocab.text_ids(f" {example.answers[0]}\n\n")]
        assert not isinstance(self._vocab, TextVocab), "this language model has no speech tokens"
        return [self._vocab.speech_ids(self._codes[f"{example.id}.answer"])]

    def answers(
        self, engine: Engine, prompts: Sequence[np.ndarray], direction: str, limits: Limits, code_rate_hz: float
    ) -> list[Answer]:
        """Return the likeliest continuations of prompts. Raises UserError for one that does not fit the model."""
        vocab, is_text = self._vocab, direction in ("TT", "ST")
        if is_text:
            allowed, stop, num = ids_of(vocab, "text"), {vocab.eos_id}, limits.text_tokens
        else:
            assert not isinstance(vocab, TextVocab), "this language model has no speech tokens"
            allowed, stop = [*ids_of(vocab, "speech"), vocab.end_of_audio_id], {vocab.end_of_audio_id}
            num = max(1, int(limits.speech_sec * code_rate_hz))
        longest = max(len(ids) for ids in prompts) + num
        if longest > engine.max_positions:
            raise UserError(
                f"a prompt and its answer have {longest} ids, more than the model's {engine.max_positions} positions: "
                "give fewer shots, or a lower limit"
            )
        requests = [Request(ids.tolist(), num) for ids in prompts]
        found = continuations(engine, requests, stop, allowed)
        if is_text:
            return [Answer(text=first_line(vocab.tokenizer.decode(g.ids))) for g in found]
        assert not isinstance(vocab, TextVocab)
        return [Answer(codes=vocab.ids_to_codes(g.ids).tolist()) for g in found]


def continuations(
    engine: Engine, requests: Sequence[Request], stop_ids: Collection[int], allowed: Collection[int]
) -> list[Generated]:
    """Return the likeliest continuations of requests, in order."""
    found: list[Generated] = []
    with progress.bar("answer", len(requests)) as advance:
        for first in range(0, len(requests), engine.batch_size):
            chunk = requests[first : first + engine.batch_size]
            found += engine.generate(chunk, GREEDY, stop_ids, allowed, _MAX_REPEATS)
            advance(len(chunk))
    return found


def first_line(text: object) -> str:
    """Return the first line of a continuation that is not empty."""
    return str(text).lstrip().partition("\n")[0].strip()


def chat_answers(
    bundle: Bundle, questions: Sequence[Question], audio: Mapping[str, np.ndarray], direction: str, limits: Limits
) -> list[Answer]:
    """Return the answers of a chatbot, text and codes in alternation, by its template; `audio` is by question."""
    answers = []
    with progress.bar("chat", len(questions)) as advance:
        for question in questions:
            session = ChatSession(bundle, seed=0, sampling=GREEDY)
            if direction[0] == "S":
                session.add_speech(audio[question.id])
            else:
                session.add_text(question.question)
            text = "".join(reply.text for reply in session.answer(limits.speech_sec))
            spoken = [code for s in session.history if s.role == "assistant" for code in s.codes or ()]
            answers.append(Answer(text, spoken))
            advance()
    return answers
