"""Transcripts of utterances by a tokenizer's own ASR model, and its error rates.

found = transcribe_utterances(tokenizer, utterances)
found.texts, usage_of(found.counts)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from weft import progress
from weft.audio import SAMPLE_RATE_HZ, load
from weft.records import Utterance
from weft.text.error_rate import character_error_rate, word_error_rate
from weft.tokenizer.codebook import usage_of
from weft.tokenizer.tokenizer import SpeechTokenizer

_UTTERANCES_PER_CALL = 32  # between two updates of the progress bar


@dataclass(frozen=True)
class Transcripts:
    """Transcripts of utterances, through the codes and (if requested) from unquantized hidden states.

    `seconds` has the duration and `codes` the codes of each utterance, and `counts` (K,) the uses of each code by all.
    """

    texts: list[str]
    texts_unquantized: list[str]
    seconds: list[float]
    counts: Tensor
    codes: list[np.ndarray]


def transcribe_utterances(
    tokenizer: SpeechTokenizer,
    utterances: Sequence[Utterance],
    unquantized: bool = False,
    distort: Callable[[np.ndarray, str], np.ndarray] | None = None,
) -> Transcripts:
    """Encode utterances and transcribe their codes, in the languages of the manifest.

    `distort` changes the samples of an utterance, given its id.
    Raises UserError for unreadable audio, an unsupported language, and a tokenizer that cannot transcribe.
    """
    found = Transcripts([], [], [], torch.zeros(tokenizer.num_codes, dtype=torch.long), [])
    with progress.bar("transcribe", len(utterances)) as advance:
        for first in range(0, len(utterances), _UTTERANCES_PER_CALL):
            chunk = utterances[first : first + _UTTERANCES_PER_CALL]
            languages = [u.language for u in chunk]
            audio = [load(u.audio) for u in chunk]
            if distort is not None:
                audio = [distort(x, u.id) for x, u in zip(audio, chunk, strict=True)]
            codes = tokenizer.encode(audio)
            found.codes.extend(codes)
            for c in codes:
                found.counts.add_(torch.bincount(torch.from_numpy(c.astype("int64")), minlength=tokenizer.num_codes))
            found.seconds.extend(len(samples) / SAMPLE_RATE_HZ for samples in audio)
            found.texts.extend(tokenizer.transcribe(codes, languages))
            if unquantized:
                found.texts_unquantized.extend(tokenizer.transcribe_unquantized(audio, languages))
            advance(len(chunk))
    return found


def measure(tokenizer: SpeechTokenizer, utterances: Sequence[Utterance]) -> dict[str, float]:
    """Return error rates and codebook use on transcribed speech, under the names of a manifest's counts."""
    found, references = transcribe_utterances(tokenizer, utterances), [u.text or "" for u in utterances]
    wer, usage = word_error_rate(references, found.texts), usage_of(found.counts)
    return {
        "wer": wer.rate,
        "wer_low": wer.low,
        "wer_high": wer.high,
        "wer_words": wer.num_units,
        "cer": character_error_rate(references, found.texts).rate,
        "codes_used_share": usage.codes_used_fraction,
        "perplexity": usage.perplexity,
        "bits_per_sec": usage.bits * tokenizer.frame_rate_hz,
    }
