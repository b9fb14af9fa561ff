"""A spoken conversation, streaming in and out: what `weft chat` and a server both run.

    session = ChatSession(Bundle.load("runs/demo"), seed=0)
    for chunk in microphone:
        session.hear(chunk)                        # 16 kHz; the language model follows while the user speaks
    for reply in session.answer():
        show(reply.text); play(reply.samples)      # as soon as they exist, text first
    session.hear(...)                              # the next turn; closing the answer interrupts it

An answer keeps the rhythm of `weft.rhythm`: no text where sound is due, and no sound where text is. The first sound
comes after 13 text tokens and the decoder's first block of codes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np

from weft.artifacts import check_writable
from weft.audio import load, save
from weft.chat.answer import AnswerStream, Reply
from weft.chat.bundle import Bundle
from weft.config import Natural, Positive
from weft.engine.generate import Sampling
from weft.errors import UserError
from weft.records import Segment
from weft.rhythm import AUDIO_TOKENS, TEXT_TOKENS

__all__ = ["Answer", "Bundle", "ChatConfig", "ChatSession", "Reply", "chat", "respond"]

SAMPLING = Sampling(temperature=0.2, top_p=0.8)  # those of GLM-4-Voice's demo
MAX_ANSWER_SEC = 30.0
_CLOSING_TOKENS = 2  # at most, after an answer that was cut off


class ChatSession:
    """One conversation. All that changes is its own, so any number can share a bundle; the seed decides the answers.

    `history` holds the finished turns as a dialogue document does, which is how the language model saw them.
    """

    def __init__(self, bundle: Bundle, seed: int = 0, sampling: Sampling = SAMPLING) -> None:
        self.history: list[Segment] = []
        self._bundle, self._vocab = bundle, bundle.vocab
        self._seed, self._sampling = seed, sampling
        self._lm = bundle.engine.session(seed)
        self._ear = bundle.tokenizer.stream()
        self._heard: list[int] = []  # codes of the speech under way in the user's turn
        self._due: list[int] = bundle.vocab.document_start_ids.tolist()  # ids that the model sees with the next ones
        self._turn: str | None = None

    @property
    def ids(self) -> list[int]:
        """All ids of the conversation so far, those of the user's unfinished block of sound left out."""
        return self._lm.ids + self._due

    def hear(self, samples: np.ndarray) -> None:
        """The user speaks: mono 16 kHz samples, any number. Raises UserError when the model's positions are full."""
        self._begin_turn()
        self._take(self._ear.push(samples))
        self._feed_due()

    def read(self, text: str) -> None:
        """The user writes. Raises UserError when the model's positions are full."""
        self._begin_turn()
        self._end_speech()
        self._due.extend(self._vocab.text_ids(text).tolist())
        self.history.append(Segment.of_text(text, "user", loss=False))
        self._feed_due()

    def answer(self, max_sec: float = MAX_ANSWER_SEC) -> Iterator[Reply]:
        """The assistant's turn, with at most `max_sec` seconds of sound, piece by piece; close it to interrupt.

        Raises ValueError when the user has not had a turn, UserError when the model's positions are full.
        """
        if self._turn != "user":
            raise ValueError("answer() needs a turn of the user before it")
        self._end_speech()
        self._due.extend(self._vocab.turn_start_ids("assistant").tolist())
        self._feed_due()
        self._turn = "assistant"
        answer = AnswerStream(self._bundle, self._seed + len(self.history))
        try:
            for reply in self._replies(answer, max_sec):
                if not reply.is_empty:
                    yield reply
        finally:
            if self._lm.ids[-1] == self._vocab.begin_of_audio_id:
                self._lm.ids.pop()  # of audio that never came
            self._due.extend(answer.closing_ids())
            self.history.extend(answer.segments())
            self._turn = None

    def _replies(self, answer: AnswerStream, max_sec: float) -> Iterator[Reply]:
        """Draw ids until the answer is over, has `max_sec` of sound, or fills the model's positions."""
        max_codes = int(max_sec * self._bundle.tokenizer.frame_rate_hz)
        max_ids = (max_codes // AUDIO_TOKENS + 1) * (AUDIO_TOKENS + TEXT_TOKENS)
        room = self._bundle.engine.max_positions - len(self._lm.ids) - _CLOSING_TOKENS
        if room < 1:
            raise UserError(
                f"the conversation fills the model's {self._bundle.engine.max_positions} positions: begin a new one"
            )
        for _ in range(min(max_ids, room)):
            if answer.rhythm.over or len(answer.codes) >= max_codes:
                break
            drawn = self._lm.sample(self._sampling, self._bundle.allowed(answer.rhythm))
            reply = answer.take(drawn)
            if answer.rhythm.over and drawn != self._vocab.end_of_audio_id:
                self._lm.ids.pop()  # the end of a turn, which the model has not seen: the next turn writes its own
            yield reply
        yield answer.finish()

    def _begin_turn(self) -> None:
        if self._turn == "assistant":
            raise ValueError("an answer is under way: finish or close it first")
        if self._turn is None:
            self._due.extend(self._vocab.turn_start_ids("user").tolist())
            self._turn = "user"

    def _take(self, codes: np.ndarray) -> None:
        if not len(codes):
            return
        if not self._heard:
            self._due.append(self._vocab.begin_of_audio_id)
        self._due.extend(self._vocab.codes_to_ids(codes).tolist())
        self._heard.extend(codes.tolist())

    def _end_speech(self) -> None:
        self._take(self._ear.finish())
        if self._heard:
            self._due.append(self._vocab.end_of_audio_id)
            self.history.append(Segment.of_speech(self._heard, None, "user", loss=False))
            self._heard = []

    def _feed_due(self) -> None:
        self._lm.feed(self._due)
        self._due = []


@dataclass(frozen=True)
class Answer:
    """A whole spoken answer."""

    text: str
    """What was written."""
    samples: np.ndarray
    """What was said: mono float32 (S,), none for an answer without sound."""
    sample_rate_hz: int
    """Of `samples`."""
    first_audio_ms: float | None
    """Wall time from the end of the user's speech to the first samples; None where there are none."""
    codes: list[int]
    """The codes of `samples`."""


def respond(bundle: Bundle, samples: np.ndarray, seed: int = 0, max_sec: float = MAX_ANSWER_SEC) -> Answer:
    """Answer one spoken turn, mono 16 kHz `samples` (S,), as if they had been heard while they were said.

    `first_audio_ms` thus begins when all finished blocks of the question are already encoded and read.
    """
    session = ChatSession(bundle, seed)
    session.hear(samples)
    ended_sec, first_audio_ms, said = time.perf_counter(), None, []
    for reply in session.answer(max_sec):
        if len(reply.samples) and first_audio_ms is None:
            first_audio_ms = 1000 * (time.perf_counter() - ended_sec)
        said.append(reply)
    text = "".join(reply.text for reply in said)
    speech = np.concatenate([np.zeros(0, np.float32), *(reply.samples for reply in said)])
    codes = [code for s in session.history if s.role == "assistant" for code in s.codes or ()]
    return Answer(text, speech, bundle.decoder.sample_rate_hz, first_audio_ms, codes)


@dataclass(frozen=True)
class ChatConfig:
    """Whom to talk to, and how."""

    model: Path
    """Bundle: a folder with tokenizer/, decoder/ and lm/."""
    wav: Path | None = None
    """Sound file with one spoken turn; without it, a conversation in the terminal, in which you write."""
    out: Path | None = None
    """WAV file for the spoken answer; in a conversation, a folder for answer-1.wav, answer-2.wav and so on."""
    max_sec: Positive = MAX_ANSWER_SEC
    """Longest answer in seconds."""
    seed: Natural = 0
    """Seed of the answers."""


def chat(config: ChatConfig) -> None:
    """One spoken turn, or a conversation that an empty line ends. Raises UserError for a bundle that does not fit."""
    if config.max_sec <= 0:
        raise UserError(f"max_sec is {config.max_sec}: give more than 0 seconds")
    samples = None if config.wav is None else load(config.wav)
    if config.out is not None and samples is not None:
        check_writable(config.out, ".wav")
    bundle = Bundle.load(config.model)
    if samples is None:
        _converse(bundle, config)
        return
    answer = respond(bundle, samples, config.seed, config.max_sec)
    print(answer.text)
    if config.out is not None:
        save(config.out, answer.samples, answer.sample_rate_hz)
        first = "no sound" if answer.first_audio_ms is None else f"first sound after {answer.first_audio_ms:.0f} ms"
        print(f"{config.out}: {len(answer.samples) / answer.sample_rate_hz:.2f} s, {first}")


def _converse(bundle: Bundle, config: ChatConfig) -> None:
    print("Write to the model; an empty line ends the conversation.")
    session = ChatSession(bundle, config.seed)
    for turn in count(1):
        try:
            written = input("> ").strip()
        except EOFError:
            return
        if not written:
            return
        session.read(written)
        said = [np.zeros(0, np.float32)]
        for reply in session.answer(config.max_sec):
            print(reply.text, end="", flush=True)
            said.append(reply.samples)
        print()
        if config.out is not None:
            save(config.out / f"answer-{turn}.wav", np.concatenate(said), bundle.decoder.sample_rate_hz)
