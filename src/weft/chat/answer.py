"""An answer in the making: ids in, text and sound out, as soon as they exist.

answer = AnswerStream(bundle, seed=0)
while not answer.rhythm.over:
    reply = answer.take(next_id)               # an id that bundle.allowed(answer.rhythm) permits
reply = answer.finish()                        # what the decoder still holds: the last sound is never lost
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from weft.chat.bundle import Bundle
from weft.records import Segment
from weft.rhythm import Rhythm

_HALF_A_CHARACTER = "\ufffd"


@dataclass(frozen=True)
class Reply:
    """A piece of an answer: new text, or new mono float32 samples (S,) at the decoder's rate, or neither."""

    text: str = ""
    samples: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))

    @property
    def is_empty(self) -> bool:
        return not self.text and not len(self.samples)


class AnswerStream:
    """The state of one answer: its place in the rhythm, its text and codes so far, and its voice."""

    def __init__(self, bundle: Bundle, seed: int) -> None:
        self.rhythm = Rhythm()
        self.codes: list[int] = []
        self._bundle = bundle
        self._text_ids: list[int] = []
        self._num_shown = 0  # characters of the text that replies have given
        self._voice = bundle.decoder.stream(seed)
        self._voice_finished = False

    @property
    def text(self) -> str:
        """The text so far."""
        return str(self._bundle.vocab.tokenizer.decode(self._text_ids, clean_up_tokenization_spaces=False))

    def take(self, drawn: int) -> Reply:
        """Pass the next id, and get what it adds."""
        part, ended = self.rhythm.part, drawn in self._bundle.ends(self.rhythm)
        self.rhythm.advance(ended)
        if ended:
            return Reply(samples=self._last_samples()) if part == "audio" else Reply()
        if part == "text":
            self._text_ids.append(drawn)
            return Reply(text=self._new_text())
        codes = self._bundle.vocab.ids_to_codes([drawn])
        self.codes.extend(codes.tolist())
        return Reply(samples=self._voice.push(codes))

    def finish(self) -> Reply:
        """What is left when no more ids follow, whether or not the answer is over."""
        return Reply(self._new_text(last=True), self._last_samples())

    def closing_ids(self) -> list[int]:
        """The ids that end an answer which was cut off as `weave` would: a model goes on from nothing else."""
        vocab, rhythm = self._bundle.vocab, self.rhythm
        if rhythm.over or rhythm.silent or (rhythm.part == "text" and rhythm.alone):
            return []
        if rhythm.part == "audio":
            return [vocab.end_of_audio_id]
        return [vocab.begin_of_audio_id, vocab.end_of_audio_id]

    def segments(self) -> list[Segment]:
        """What was written and what was said, as a dialogue document holds them."""
        text, speech = Segment.of_text(self.text, "assistant"), Segment.of_speech(self.codes, None, "assistant")
        return [*([text] if text.text else []), *([speech] if self.codes else [])]

    def _new_text(self, last: bool = False) -> str:
        text = self.text
        if text.endswith(_HALF_A_CHARACTER) and not last:
            return ""
        new, self._num_shown = text[self._num_shown :], len(text)
        return new

    def _last_samples(self) -> np.ndarray:
        if self._voice_finished:
            return np.zeros(0, np.float32)
        self._voice_finished = True
        return self._voice.finish()
