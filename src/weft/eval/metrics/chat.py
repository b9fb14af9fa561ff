"""`weft eval chat`: ratings of a chatbot's answers by a language model, and how well they are spoken."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from weft.chat.bundle import Bundle
from weft.config import MODEL, PositiveFloat
from weft.errors import UserError
from weft.eval import contamination
from weft.eval.answers import Answer, Limits, chat_answers
from weft.eval.config import EvalConfig, check, fingerprints, items_file, load_tokenizer, sampled
from weft.eval.llm_judge import PROMPTS, Kind, LlmJudge, Verdict
from weft.eval.questions import read_questions
from weft.eval.results import Result, protocol, write
from weft.eval.spoken import SpokenQuestions
from weft.eval.text_to_token import Judge
from weft.files import content_id
from weft.text.error_rate import word_errors

Direction = Literal["TT", "TS", "ST", "SS"]


@dataclass(frozen=True)
class ChatEval(EvalConfig):
    """Settings of the metric `chat`. Its data are questions in JSON lines; "knowledge" needs their answers."""

    judge_url: str = ""
    """URL of a server with OpenAI's chat protocol, such as https://api.openai.com/v1. A key is that of the environment
    variable OPENAI_API_KEY."""
    judge_model: str | None = None
    """Model that rates the answers; not set: the first that the server lists."""
    kind: Kind = "general"
    """Rating from 1 to 10, or whether the answer is correct."""
    directions: tuple[Direction, ...] = ("ST",)
    """Question and answer in text (T) or speech (S). A spoken answer is rated by its transcript."""
    whisper: Annotated[Path | None, MODEL] = None
    """Whisper, a directory or a name on the Hub, that transcribes spoken answers. Their word error rate, compared with
    the text of the same answers, is reported as well."""
    voice: str = "espeak:en-us"
    """TTS voice of questions without a recording."""
    max_speech_sec: PositiveFloat = 30.0
    """Longest spoken answer."""


def run(config: ChatEval) -> None:
    """Measure, and write the results. Raises UserError without a judge, and if the server does not answer."""
    if not config.judge_url:
        raise UserError("chat needs a language model that rates the answers: give --judge-url URL")
    data = items_file(config, "questions", "chat needs questions")
    if config.whisper is None and any(direction[1] == "S" for direction in config.directions):
        raise UserError("spoken answers need a Whisper that transcribes them: give --whisper WHISPER")
    check(config, ("tokenizer", "decoder", "lm"))
    found = read_questions(data, needs_answers=config.kind == "knowledge")
    questions = sampled(found, config.limit, config.seed)
    judge = LlmJudge(config.judge_url, config.judge_model, os.environ.get("OPENAI_API_KEY"))
    bundle = Bundle.from_pretrained(config.model)
    asked = SpokenQuestions(questions, (), config.voice, partial(load_tokenizer, config))
    results, scores = dict[str, Result](), dict[str, list[Any]]()
    items: list[dict[str, Any]] = [{"id": q.id, "question": q.question, **q.more} for q in questions]
    for direction in config.directions:
        answers = _answers(config, bundle, asked, direction)
        texts = {name: answer.text or "" for name, answer in answers.items()}
        if direction[1] == "S":
            whisper = Judge(config.whisper or Path(), bundle.decoder, config.seed)
            written, texts = texts, _heard(config, whisper, answers)
            name = f"{direction}, wer"
            scores[name] = [word_errors(written[q.id], texts[q.id]) if q.id in texts else None for q in questions]
            used = _protocol(config, direction, asked, judge=whisper.name, match="basic")
            if counts := [counts for counts in scores[name] if counts and counts[1]]:
                results[name] = Result.of_counts(counts, used)
        given = [(q.question, texts[q.id], q.answers) for q in questions if q.id in texts]
        verdicts = dict(zip(texts, judge.verdicts(given, config.kind), strict=True))
        scores[direction] = [_rating(verdicts.get(q.id)) for q in questions]
        used = _protocol(config, direction, asked, judge=judge.model, prompt=PROMPTS[config.kind], temperature=0)
        unjudged_is = 0.0 if config.kind == "knowledge" else None
        results[direction] = Result.of_scores(scores[direction], used, unjudged_is)
        for item, question in zip(items, questions, strict=True):
            if question.id in verdicts:
                item[direction] = {"answer": texts[question.id], "verdicts": verdicts[question.id].texts}
    details = {"questions": len(questions), "kind": config.kind, "unreadable": asked.unreadable}
    details |= contamination.measure({q.id: q.question for q in questions}, config.training, bundle.vocab)
    write(config.out, "chat", results, details, items, scores)


def _answers(config: ChatEval, bundle: Bundle, asked: SpokenQuestions, direction: str) -> dict[str, Answer]:
    """Return the answers by question, without those to questions that cannot be read."""
    audio = asked.audio if direction[0] == "S" else {}
    heard = [q for q in asked.questions if direction[0] == "T" or q.id in audio]
    found = chat_answers(bundle, heard, audio, direction, Limits(speech_sec=config.max_speech_sec))
    return {q.id: answer for q, answer in zip(heard, found, strict=True)}


def _heard(config: ChatEval, whisper: Judge, answers: Mapping[str, Answer]) -> dict[str, str]:
    """Return the transcripts of spoken answers."""
    languages = [config.language or "en"] * len(answers)
    texts = whisper.transcribe([answer.codes or [] for answer in answers.values()], languages)
    return dict(zip(answers, texts, strict=True))


def _protocol(config: ChatEval, direction: str, asked: SpokenQuestions, **settings: Any) -> dict[str, Any]:
    known = {**fingerprints(config, "lm", "tokenizer", "decoder"), "data": str(content_id(asked.questions))}
    voices = asked.voices if direction[0] == "S" else []
    return protocol(config, direction=direction, kind=config.kind, voices=voices, fingerprints=known, **settings)


def _rating(verdict: Verdict | None) -> float | None:
    return None if verdict is None or verdict.rating is None else float(verdict.rating)
