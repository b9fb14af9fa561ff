"""An answer while it is generated: ids in, text and audio out.

answer = AnswerStream(bundle, seed=0)
while not answer.schedule.over:
    reply = answer.push(next_id)               # an id that bundle.allowed(answer.schedule) permits
reply = answer.finish()                        # the rest of the text, and the audio of the last block
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from weft.alternation import ChunkSchedule
from weft.chat.bundle import Bundle
from weft.records import Segment

_INCOMPLETE = "\ufffd"  # the text of an incomplete character


@dataclass(frozen=True)
class Reply:
    """A piece of an answer: new text, new mono float32 samples (S,) at the decoder's sample rate, or neither."""

    text: str = ""
    samples: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))

    @property
    def is_empty(self) -> bool:
        return not self.text and not len(self.samples)


class AnswerStream:
    """The state of one answer."""

    def __init__(self, bundle: Bundle, seed: int) -> None:
        self.schedule = ChunkSchedule()
        self.codes: list[int] = []
        self._bundle = bundle
        self._text_ids: list[int] = []
        self._num_returned = 0  # characters of the text that replies have contained
        self._decoder = bundle.decoder.stream(seed)
        self._decoder_finished = False

    @property
    def text(self) -> str:
        """The text so far."""
        return str(self._bundle.vocab.tokenizer.decode(self._text_ids, clean_up_tokenization_spaces=False))

    def push(self, next_id: int) -> Reply:
        """Add the next id, and return what it adds to the answer."""
        part, ended = self.schedule.modality, next_id in self._bundle.ends(self.schedule)
        self.schedule.advance(ended)
        if ended:
            return Reply(samples=self._last_samples()) if part == "audio" else Reply()
        if part == "text":
            self._text_ids.append(next_id)
            return Reply(text=self._new_text())
        codes = self._bundle.vocab.ids_to_codes([next_id])
        self.codes.extend(codes.tolist())
        return Reply(samples=self._decoder.push(codes))

    def finish(self) -> Reply:
        """Return the rest of the answer, which ends here even if it is not over."""
        return Reply(self._new_text(last=True), self._last_samples())

    def closing_ids(self) -> list[int]:
        """Return the ids that end an interrupted answer, as `interleave_chunks` would in training."""
        vocab, schedule = self._bundle.vocab, self.schedule
        if schedule.over or schedule.silent or (schedule.modality == "text" and schedule.alone):
            return []
        if schedule.modality == "audio":
            return [vocab.end_of_audio_id]
        return [vocab.begin_of_audio_id, vocab.end_of_audio_id]

    def segments(self) -> list[Segment]:
        """Return the text and the speech so far as segments of a dialogue document."""
        text, speech = Segment.of_text(self.text, "assistant"), Segment.of_speech(self.codes, None, "assistant")
        return [*([text] if text.text else []), *([speech] if self.codes else [])]

    def _new_text(self, last: bool = False) -> str:
        text = self.text
        if text.endswith(_INCOMPLETE) and not last:
            return ""
        new, self._num_returned = text[self._num_returned :], len(text)
        return new

    def _last_samples(self) -> np.ndarray:
        if self._decoder_finished:
            return np.zeros(0, np.float32)
        self._decoder_finished = True
        return self._decoder.finish()
