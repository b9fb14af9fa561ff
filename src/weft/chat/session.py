"""A spoken conversation with streaming input and output.

    session = ChatSession(Bundle.from_pretrained("runs/demo"), seed=0)
    for chunk in microphone:
        session.add_speech(chunk)                  # 16 kHz; the language model processes it while the user speaks
    for reply in session.answer():
        show(reply.text); play(reply.samples)      # as soon as they are generated
    session.add_speech(...)                        # the next turn

Text and speech of an answer alternate (`weft.alternation`): the first audio needs 13 text tokens and a block of codes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from weft.alternation import AUDIO_TOKENS, TEXT_TOKENS
from weft.chat.answer import AnswerStream, Reply
from weft.chat.bundle import Bundle
from weft.engine.sampling import Sampling
from weft.errors import UserError
from weft.records import Segment

SAMPLING = Sampling(temperature=0.2, top_p=0.8)  # as in the demo of GLM-4-Voice
MAX_ANSWER_SEC = 30.0
_MAX_CLOSING_TOKENS = 2  # after an interrupted answer


class ChatSession:
    """One conversation. Any number of them can share a bundle. The seed determines the answers.

    `history` contains the finished turns as segments of a dialogue document.

    Example:
        >>> import weft
        >>> session = weft.ChatSession(weft.Bundle.from_pretrained("runs/demo"), seed=0)
        >>> session.add_text("What is the capital of Norland?")
        >>> text = "".join(reply.text for reply in session.answer(max_sec=2.0))
        >>> session.history[0].role
        'user'
    """

    def __init__(self, bundle: Bundle, seed: int = 0, sampling: Sampling = SAMPLING) -> None:
        self.history: list[Segment] = []
        self._bundle, self._vocab = bundle, bundle.vocab
        self._seed, self._sampling = seed, sampling
        self._lm = bundle.engine.session(seed)
        self._tokenizer = bundle.tokenizer.stream()
        self._codes: list[int] = []  # of the speech that is being added
        self._pending: list[int] = bundle.vocab.document_start_ids.tolist()  # ids to feed with the next ones
        self._turn: str | None = None

    @property
    def ids(self) -> list[int]:
        """All ids of the conversation, without the user's incomplete block of audio."""
        return self._lm.ids + self._pending

    def add_speech(self, samples: np.ndarray) -> None:
        """Add mono 16 kHz samples to the user's turn. Raises UserError if the model's positions are full."""
        self._begin_turn()
        self._add_codes(self._tokenizer.push(samples))
        self._feed()

    def add_text(self, text: str) -> None:
        """Add text to the user's turn. Raises UserError if the model's positions are full."""
        self._begin_turn()
        self._end_speech()
        self._pending.extend(self._vocab.text_ids(text).tolist())
        self.history.append(Segment.of_text(text, "user", loss=False))
        self._feed()

    def answer(self, max_sec: float = MAX_ANSWER_SEC) -> Iterator[Reply]:
        """Yield the assistant's turn, with at most `max_sec` seconds of audio, in pieces.

        Close the iterator to interrupt it. Raises ValueError without a user turn, and UserError if the context is full.
        """
        if self._turn != "user":
            raise ValueError("answer() needs a turn of the user before it")
        self._end_speech()
        self._pending.extend(self._vocab.turn_start_ids("assistant").tolist())
        self._feed()
        self._turn = "assistant"
        answer = AnswerStream(self._bundle, self._seed + len(self.history))
        try:
            for reply in self._replies(answer, max_sec):
                if not reply.is_empty:
                    yield reply
        finally:
            if answer.schedule.silent and self._lm.ids[-1] == self._vocab.begin_of_audio_id:
                self._lm.ids.pop()  # no audio follows it
            self._pending.extend(answer.closing_ids())
            self.history.extend(answer.segments())
            self._turn = None

    def _replies(self, answer: AnswerStream, max_sec: float) -> Iterator[Reply]:
        """Sample ids until the answer is over, has `max_sec` of audio, or fills the model's positions."""
        max_codes = int(max_sec * self._bundle.tokenizer.frame_rate_hz)
        max_ids = (max_codes // AUDIO_TOKENS + 1) * (AUDIO_TOKENS + TEXT_TOKENS)
        max_positions = self._bundle.engine.max_positions
        room = max_positions - len(self._lm.ids) - _MAX_CLOSING_TOKENS
        if room < 1:
            raise UserError(f"the conversation fills the model's {max_positions} positions: start a new one")
        for _ in range(min(max_ids, room)):
            if answer.schedule.over or len(answer.codes) >= max_codes:
                break
            next_id = self._lm.sample(self._sampling, self._bundle.allowed(answer.schedule))
            reply = answer.push(next_id)
            if answer.schedule.over and next_id != self._vocab.end_of_audio_id:
                self._lm.ids.pop()  # the end of a turn, which the next turn adds
            yield reply
        yield answer.finish()

    def _begin_turn(self) -> None:
        if self._turn == "assistant":
            raise ValueError("an answer is not finished: exhaust or close its iterator first")
        if self._turn is None:
            self._pending.extend(self._vocab.turn_start_ids("user").tolist())
            self._turn = "user"

    def _add_codes(self, codes: np.ndarray) -> None:
        if not len(codes):
            return
        if not self._codes:
            self._pending.append(self._vocab.begin_of_audio_id)
        self._pending.extend(self._vocab.codes_to_ids(codes).tolist())
        self._codes.extend(codes.tolist())

    def _end_speech(self) -> None:
        self._add_codes(self._tokenizer.finish())
        if self._codes:
            self._pending.append(self._vocab.end_of_audio_id)
            self.history.append(Segment.of_speech(self._codes, None, "user", loss=False))
            self._codes = []

    def _feed(self) -> None:
        self._lm.feed(self._pending)
        self._pending = []


@dataclass(frozen=True)
class Answer:
    """A complete spoken answer."""

    text: str
    samples: np.ndarray
    """Mono float32 (S,), empty for an answer without audio."""
    sample_rate_hz: int
    first_audio_ms: float | None
    """Time from the end of the user's speech to the first samples; None without audio."""
    codes: list[int]
    """The codes of `samples`."""


def respond(bundle: Bundle, samples: np.ndarray, seed: int = 0, max_sec: float = MAX_ANSWER_SEC) -> Answer:
    """Answer one spoken turn, mono 16 kHz `samples` (S,), as if they were streamed.

    The time to the first audio therefore excludes the complete blocks of the question.
    """
    session = ChatSession(bundle, seed)
    session.add_speech(samples)
    start_sec, first_audio_ms, replies = time.perf_counter(), None, []
    for reply in session.answer(max_sec):
        if len(reply.samples) and first_audio_ms is None:
            first_audio_ms = 1000 * (time.perf_counter() - start_sec)
        replies.append(reply)
    text = "".join(reply.text for reply in replies)
    speech = np.concatenate([np.zeros(0, np.float32), *(reply.samples for reply in replies)])
    codes = [code for s in session.history if s.role == "assistant" for code in s.codes or ()]
    return Answer(text, speech, bundle.decoder.sample_rate_hz, first_audio_ms, codes)
