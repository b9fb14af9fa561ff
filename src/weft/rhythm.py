"""The rhythm of a spoken answer: 13 text tokens, 26 speech codes and so on, so that sound begins before the text ends.

    ids = weave(text_ids, audio_ids, begin=begin_of_audio_id, end=end_of_audio_id)      # for training
    rhythm = Rhythm()                                                                   # the same walk, for sampling
    rhythm.part, rhythm.alone, rhythm.over
    rhythm.advance(ended=False)

What ends first says so in its own place, and the other goes on alone to its end:

    text 13, audio 26, text 13, audio 26, text 5 <|begin_of_audio|> audio 80 <|end_of_audio|>
    text 13, audio 20 <|end_of_audio|> text 4

A text of fewer than 13 tokens is thus followed by its whole speech between its markers, as in any other document.

Source: the "streaming thoughts" of GLM-4-Voice (arXiv 2412.02612), where the rhythm is learnt. Here it is enforced, and
the markers are what an enforced rhythm needs to know where text and speech end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal

import numpy as np

TEXT_TOKENS = 13
AUDIO_TOKENS = 26
Part = Literal["text", "audio"]
_PART_TOKENS: dict[Part, int] = {"text": TEXT_TOKENS, "audio": AUDIO_TOKENS}


def weave(text: Sequence[Any] | np.ndarray, audio: Sequence[Any] | np.ndarray, begin: Any, end: Any) -> np.ndarray:
    """Text ids and audio ids of one answer in their rhythm, with the markers `begin` and `end` of audio.

    It weaves whatever belongs to the ids just as well, such as their loss masks.
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
    dtype = np.asarray([begin]).dtype  # an empty list would make floats of everything
    return np.concatenate([np.asarray(piece, dtype) for piece in pieces])


@dataclass
class Rhythm:
    """The place in a woven answer where its next id stands."""

    part: Part = "text"
    """What the next id is, unless it is the marker that this part's modality has ended."""
    alone: bool = False
    """Whether the other modality has ended."""
    over: bool = False
    """Whether both have."""
    silent: bool = True
    """Whether no audio has come yet."""
    _filled_tokens: int = field(default=0, repr=False)

    def advance(self, ended: bool) -> None:
        """Pass an id of the part, or (`ended`) the marker that there are no more of them."""
        assert not self.over, "nothing follows the end of an answer"
        self._filled_tokens += 1
        self.silent &= ended or self.part == "text"
        if ended and self.alone:
            self.over = True
        elif ended or (not self.alone and self._filled_tokens == _PART_TOKENS[self.part]):
            self.alone = ended
            self.part = "audio" if self.part == "text" else "text"
            self._filled_tokens = 0
