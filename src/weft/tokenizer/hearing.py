"""What a trained tokenizer hears in utterances: the transcripts of its own ASR model, and how it uses its codes.

heard = hear(tokenizer, utterances)
heard.texts, health(heard.counts)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weft import progress
from weft.audio import SAMPLE_RATE_HZ, load
from weft.records import Utterance
from weft.tokenizer.tokenizer import SpeechTokenizer

_CHUNK_UTTERANCES = 256  # in memory at once


@dataclass(frozen=True)
class Hearing:
    """What was read of each utterance through codes and, where asked for, with the bottleneck open; the seconds of
    each; and how often each code (K,) was used for all of them."""

    texts: list[str]
    texts_open: list[str]
    seconds: list[float]
    counts: Tensor


def hear(tokenizer: SpeechTokenizer, utterances: Sequence[Utterance], also_open: bool = False) -> Hearing:
    """Encode utterances and read them back, in the languages that they name.

    Raises UserError for sound that cannot be read, for a language that the tokenizer does not know, and for a tokenizer
    that cannot transcribe.
    """
    heard = Hearing([], [], [], torch.zeros(tokenizer.num_codes, dtype=torch.long))
    with progress.bar("tokenizer", len(utterances)) as advance:
        for first in range(0, len(utterances), _CHUNK_UTTERANCES):
            chunk = utterances[first : first + _CHUNK_UTTERANCES]
            languages = [u.language for u in chunk]
            audio = [load(u.audio) for u in chunk]
            codes = tokenizer.encode(audio)
            for c in codes:
                heard.counts.add_(torch.bincount(torch.from_numpy(c.astype("int64")), minlength=tokenizer.num_codes))
            heard.seconds.extend(len(samples) / SAMPLE_RATE_HZ for samples in audio)
            heard.texts.extend(tokenizer.transcribe(codes, languages))
            if also_open:
                heard.texts_open.extend(tokenizer.transcribe_open(audio, languages))
            advance(len(chunk))
    return heard
