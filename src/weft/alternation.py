"""Alternation of text and speech in a spoken answer: 13 text tokens, 26 speech codes, and so on.

    ids = interleave_chunks(text_ids, audio_ids, begin=begin_of_audio_id, end=end_of_audio_id)
    schedule = ChunkSchedule()                  # for sampling
    schedule.advance(ended=False)

Speech can therefore be played before the text is complete. When one modality ends, the rest of the other follows:

    text 13, audio 26, text 13, audio 26, text 5 <|begin_of_audio|> audio 80 <|end_of_audio|>
    text 13, audio 20 <|end_of_audio|> text 4

A text of fewer than 13 tokens is followed by all of its speech between markers, as in other documents.

Source: the "streaming thoughts" of GLM-4-Voice (arXiv 2412.02612), where the alternation is learned. Here it is
enforced, and the markers are the ends of text and of speech.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal

import numpy as np

TEXT_TOKENS = 13
AUDIO_TOKENS = 26
Modality = Literal["text", "audio"]
_CHUNK_TOKENS: dict[Modality, int] = {"text": TEXT_TOKENS, "audio": AUDIO_TOKENS}


def interleave_chunks(
    text: Sequence[Any] | np.ndarray, audio: Sequence[Any] | np.ndarray, begin: Any, end: Any
) -> np.ndarray:
    """Return text ids (T,) and audio ids (A,) of an answer in alternation, with the markers `begin` and `end` of audio.

    Other values per id, such as a loss mask, can be interleaved in the same way.
    """
    pieces: list[Sequence[Any] | np.ndarray] = []
    for i in count():
        text_part = text[i * TEXT_TOKENS : (i + 1) * TEXT_TOKENS]
        if len(text_part) < TEXT_TOKENS:
            pieces += [text_part, [begin], audio[i * AUDIO_TOKENS :], [end]]
            break
        audio_part = audio[i * AUDIO_TOKENS : (i + 1) * AUDIO_TOKENS]
        pieces += [text_part, audio_part]
        if len(audio_part) < AUDIO_TOKENS:
            pieces += [[end], text[(i + 1) * TEXT_TOKENS :]]
            break
    dtype = np.asarray([begin]).dtype  # that of an empty list would be float
    return np.concatenate([np.asarray(piece, dtype) for piece in pieces])


@dataclass
class ChunkSchedule:
    """The state of an answer while it is sampled."""

    modality: Modality = "text"
    """The modality of the next id, which may also be the marker of its end."""
    alone: bool = False
    """Whether the other modality has ended."""
    over: bool = False
    """Whether both modalities have ended."""
    silent: bool = True
    """Whether there is no audio yet."""
    _filled_tokens: int = field(default=0, repr=False)

    def advance(self, ended: bool) -> None:
        """Advance by one id: one of the part, or the marker of its end (`ended`)."""
        assert not self.over, "the answer has ended"
        self._filled_tokens += 1
        self.silent &= ended or self.modality == "text"
        if ended and self.alone:
            self.over = True
        elif ended or (not self.alone and self._filled_tokens == _CHUNK_TOKENS[self.modality]):
            self.alone = ended
            self.modality = "audio" if self.modality == "text" else "text"
            self._filled_tokens = 0
