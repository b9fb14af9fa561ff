"""Questions as speech: recordings, or speech of a voice, and their codes, which are computed when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np

from weft.audio import load, resample
from weft.data.skipped import Skipped
from weft.errors import UserError
from weft.eval.questions import Question
from weft.tokenizer.tokenizer import SpeechTokenizer
from weft.voices.engines import speak, voice_name


class SpokenQuestions:
    """Questions, and examples with answers."""

    def __init__(
        self,
        questions: Sequence[Question],
        examples: Sequence[Question],
        voice: str,
        load_tokenizer: Callable[[], SpeechTokenizer],
    ) -> None:
        self.questions, self.examples = questions, examples
        self._voice, self._load_tokenizer = voice, load_tokenizer
        self.unreadable: dict[str, str] = {}
        """Reasons by id."""

    @property
    def voices(self) -> list[str]:
        """Names of all voices of the questions."""
        found = {q.voice or "recordings" for q in self.questions if q.audio}
        return sorted(found | ({voice_name(self._voice)} if any(not q.audio for q in self.questions) else set()))

    @cached_property
    def tokenizer(self) -> SpeechTokenizer:
        """The speech tokenizer."""
        return self._load_tokenizer()

    @cached_property
    def audio(self) -> dict[str, np.ndarray]:
        """The questions at 16 kHz, by id, without those whose recording cannot be read (`unreadable`)."""
        skipped, found = Skipped(), dict[str, np.ndarray]()
        for question in self.questions:
            with skipped.on_error(question.id):
                found[question.id] = self._audio(question)
        self.unreadable |= dict(skipped.bad)
        if not found:
            raise UserError(f"no question can be read: the first is {' ('.join(skipped.bad[0])})")
        return found

    def codes(self) -> dict[str, Sequence[int]]:
        """Return the codes of the questions, by id."""
        return self._encoded(self.audio)

    def example_codes(self) -> dict[str, Sequence[int]]:
        """Return the codes of the questions (by id) and of the answers ("ID.answer") of the examples."""
        answers = {f"{q.id}.answer": self._spoken(q.answers[0]) for q in self.examples}
        return self._encoded({q.id: self._audio(q) for q in self.examples} | answers)

    def _encoded(self, audio: Mapping[str, np.ndarray]) -> dict[str, Sequence[int]]:
        return {name: c.tolist() for name, c in zip(audio, self.tokenizer.encode([*audio.values()]), strict=True)}

    def _audio(self, question: Question) -> np.ndarray:
        return load(question.audio) if question.audio else self._spoken(question.question)

    def _spoken(self, text: str) -> np.ndarray:
        speech = speak(text, self._voice)
        return resample(speech.samples, speech.sample_rate_hz)
