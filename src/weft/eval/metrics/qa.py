"""`weft eval qa`: accuracy of answers to written and spoken questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from weft.chat.bundle import Bundle
from weft.config import MODEL, NonNegativeInt, PositiveFloat, PositiveInt
from weft.decoder.decoder import SpeechDecoder
from weft.engine.generate import Engine
from weft.errors import UserError
from weft.eval import contamination
from weft.eval.answers import Answer, Limits, Prompts, chat_answers
from weft.eval.config import EvalConfig, check_output, fingerprints, items_file, load_tokenizer, sampled
from weft.eval.match import has_answer, normalized
from weft.eval.model import TextVocab, load_lm, load_vocab
from weft.eval.questions import Question, read_questions
from weft.eval.results import Result, protocol, write
from weft.eval.sets import items_in
from weft.eval.spoken import SpokenQuestions
from weft.eval.text_to_token import Judge
from weft.files import content_id

Direction = Literal["TT", "TS", "ST", "SS"]
_Answering = Callable[[str, Sequence[Question]], list[Answer]]


@dataclass(frozen=True)
class QaEval(EvalConfig):
    """Settings of the metric `qa`. Its data are questions in JSON lines: id, question, answers, and perhaps audio."""

    model: Annotated[Path, MODEL]
    """Bundle or language model; for TT any causal LM of Hugging Face, a directory or a name on the Hub."""
    directions: tuple[Direction, ...] = ("TT",)
    """Question and answer in text (T) or speech (S)."""
    prompt: Literal["continuation", "chat"] = "continuation"
    """How a model is asked: as a document that it continues, or as the user of a chatbot."""
    shots: NonNegativeInt = 0
    """Number of answered questions before each question, by continuation."""
    examples: Path | None = None
    """Questions to take the shots from, which are sampled by the seed. They must not be those of `data`."""
    voice: str = "espeak:en-us"
    """TTS voice of questions without a recording, and of spoken shots."""
    judge: Annotated[Path | None, MODEL] = None
    """Whisper, a directory or a name on the Hub, that transcribes spoken answers. The tokenizer's own ASR model
    transcribes them as well."""
    max_text_tokens: PositiveInt = 32
    """Longest written answer, by continuation."""
    max_speech_sec: PositiveFloat = 10.0
    """Longest spoken answer."""


def run(config: QaEval) -> None:
    """Measure, and write the results."""
    check_output(config)
    data = items_file(config, "questions", "qa needs questions")
    questions = sampled(read_questions(data), config.limit, config.seed)
    speaks = any(direction[1] == "S" for direction in config.directions)
    if speaks and config.judge is None:
        raise UserError("spoken answers need a Whisper that transcribes them: give --judge WHISPER")
    asked = SpokenQuestions(questions, _examples(config, questions), config.voice, partial(load_tokenizer, config))
    results, by_name = dict[str, Result](), dict[str, list[float | None]]()
    items: list[dict[str, Any]] = [{"id": q.id, "question": q.question, **q.more} for q in questions]
    answer = _by_chat(config, asked) if config.prompt == "chat" else _by_continuation(config, asked)
    for direction in config.directions:
        heard = [q for q in questions if direction[0] == "T" or q.id in asked.audio]
        given = dict(zip((q.id for q in heard), answer(direction, heard), strict=True))
        for name, texts in _texts(config, [given.get(q.id) for q in questions], direction, asked).items():
            for rule, scores in _scores(config, questions, texts).items():
                key = ", ".join(
                    [direction, *([name] if name != "text" else []), *([rule] if rule != "has_answer" else [])]
                )
                used = _protocol(config, direction, rule, name, asked)
                results[key], by_name[key] = Result.of_scores(scores, used, unjudged_is=0.0), scores
            for item, text in zip(items, texts, strict=True):
                item[direction if name == "text" else f"{direction}, {name}"] = text
    details = {"questions": len(questions), "unreadable": asked.unreadable}
    if config.training:
        by_id = {q.id: q.question for q in questions}
        details |= contamination.measure(by_id, config.training, load_vocab(config.model))
    write(config.out, "qa", results, details, items, by_name)


def _protocol(config: QaEval, direction: str, rule: str, judge: str, asked: SpokenQuestions) -> dict[str, Any]:
    parts = ("lm", "tokenizer", "decoder")
    return protocol(
        config,
        direction=direction,
        prompt=config.prompt,
        shots=config.shots,
        match=rule,
        judge=None if judge == "text" else judge,
        voices=asked.voices if direction[0] == "S" else [],
        fingerprints={**fingerprints(config, *parts), "data": str(content_id(asked.questions))},
        max_text_tokens=config.max_text_tokens,
        max_speech_sec=config.max_speech_sec,
    )


def _examples(config: QaEval, questions: Sequence[Question]) -> list[Question]:
    """Return the shots. Raises UserError if there are too few, or if one of them is a question of `data`."""
    if not config.shots:
        return []
    if config.prompt == "chat" or config.examples is None:
        raise UserError("shots need --examples QUESTIONS.jsonl, and the prompt continuation")
    found = read_questions(items_in(config.examples, "questions"))
    asked = {q.question for q in questions}
    if repeated := next((q for q in found if q.question in asked), None):
        raise UserError(f"{config.examples} has question {repeated.id}, which is also in the data: give other examples")
    if len(found) < config.shots:
        raise UserError(f"{config.examples} has {len(found)} questions, less than {config.shots} shots: give more")
    return sampled(found, config.shots, config.seed)


def _by_continuation(config: QaEval, asked: SpokenQuestions) -> _Answering:
    """Return a function that answers the questions in a direction, as documents that are continued."""
    lm = load_lm(config.model)
    if isinstance(lm.vocab, TextVocab) and set(config.directions) - {"TT"}:
        raise UserError("this language model has no speech tokens: give --directions TT, or a model of weft")
    engine = Engine(lm.model)
    codes: dict[str, Sequence[int]] = {}
    if any(direction[0] == "S" for direction in config.directions):
        codes |= asked.codes()
    if asked.examples and set(config.directions) - {"TT"}:
        codes |= asked.example_codes()
    prompts, limits = Prompts(lm.vocab, asked.examples, codes), Limits(config.max_text_tokens, config.max_speech_sec)

    def answer(direction: str, questions: Sequence[Question]) -> list[Answer]:
        ids = [prompts.of(q, codes.get(q.id), direction) for q in questions]
        rate_hz = asked.tokenizer.frame_rate_hz if direction[1] == "S" else 0.0
        return prompts.answers(engine, ids, direction, limits, rate_hz)

    return answer


def _by_chat(config: QaEval, asked: SpokenQuestions) -> _Answering:
    """Return a function that answers the questions in a direction, as a chatbot."""
    bundle = Bundle.from_pretrained(config.model)
    audio = asked.audio if any(direction[0] == "S" for direction in config.directions) else {}
    limits = Limits(config.max_text_tokens, config.max_speech_sec)
    return lambda direction, questions: chat_answers(bundle, questions, audio, direction, limits)


def _texts(
    config: QaEval, answers: Sequence[Answer | None], direction: str, asked: SpokenQuestions
) -> dict[str, list[str | None]]:
    """Return the answers as text, None without one: what is written, or transcripts of the speech by each judge."""
    if direction[1] == "T":
        return {"text": [None if answer is None else answer.text or "" for answer in answers]}
    assert config.judge is not None
    judge = Judge(config.judge, SpeechDecoder.from_pretrained(config.model / "decoder"), config.seed)
    codes = [answer.codes or [] for answer in answers if answer]
    languages = [config.language or "en"] * len(codes)
    texts = {judge.name: judge.transcribe(codes, languages)}
    if not asked.tokenizer.model.config.encoder_only:
        texts["tokenizer"] = asked.tokenizer.transcribe(codes, languages)
    rows = {name: iter(found) for name, found in texts.items()}
    return {name: [None if answer is None else next(row) for answer in answers] for name, row in rows.items()}


def _scores(
    config: QaEval, questions: Sequence[Question], texts: Sequence[str | None]
) -> dict[str, list[float | None]]:
    """Return 1 for a right answer, 0 for another, and None without one, by rule."""
    rules: dict[str, Callable[[str, Sequence[str]], bool]] = {
        "has_answer": has_answer,
        "normalized": partial(normalized, language=config.language),
    }
    pairs = [(text, q.answers) for q, text in zip(questions, texts, strict=True)]
    return {
        name: [None if text is None else float(rule(text, answers)) for text, answers in pairs]
        for name, rule in rules.items()
    }
