"""What a speech tokenizer takes from speech, and how it uses its codebook, on speech with transcripts.

    found = measure(tokenizer, utterances)
    found["wer"]["rate"], found["open"]["wer"]["rate"], found["perplexity"], found["warnings"]

Errors are counted twice, by the same weights: through the bottleneck, where the ASR model reads codes, and with the
bottleneck open, where its second half reads the pooled hidden states themselves. What lies between is the price of
quantizing for this model. It is no ceiling: pooling, blocks and the fine-tune are in both figures, and the second half
was trained on codes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from weft.errors import UserError
from weft.records import Utterance
from weft.tokenizer.hearing import Hearing, hear
from weft.tokenizer.quantizer import collapse, health, most_frequent_share
from weft.tokenizer.tokenizer import SpeechTokenizer
from weft.wer import character_error_rate, normalize, word_error_rate


def measure(tokenizer: SpeechTokenizer, utterances: Sequence[Utterance]) -> dict[str, Any]:
    """Errors through the bottleneck and with it open, and the codebook's health, as results.json has them.

    `wer` and `cer` are pooled, with 95 % bootstrap intervals over utterances; `empty_share` is that of transcripts
    without a word; `open` has the same three. `bits_per_sec` is the entropy of the codes in use times their rate,
    `nominal_bits_per_sec` what the codebook could carry; `most_frequent_share` is the share of all tokens that the ten
    most frequent codes take. Utterances without a word in their transcripts are left out. Raises UserError where none
    is left, for sound that cannot be read, and for a tokenizer that cannot transcribe.
    """
    told = [u for u in utterances if normalize(u.text or "")]
    if not told:
        raise UserError("there is no speech with transcripts to measure on: give a manifest with `text`")
    heard = hear(tokenizer, told, also_open=True)
    warning = collapse(heard.counts)
    return {
        "utterances": len(told),
        "seconds": round(sum(heard.seconds), 2),
        **_read(told, heard.texts),
        "open": _read(told, heard.texts_open),
        **codebook(heard.counts, tokenizer.frame_rate_hz),
        "speakers": _speakers(told, heard),
        "warnings": [warning] if warning else [],
    }


def _errors(utterances: Sequence[Utterance], read: Sequence[str]) -> dict[str, Any]:
    """Word and character error rates of transcripts."""
    pairs = [u.text or "" for u in utterances], read
    return {"wer": asdict(word_error_rate(*pairs)), "cer": asdict(character_error_rate(*pairs))}


def _read(utterances: Sequence[Utterance], read: Sequence[str]) -> dict[str, Any]:
    """Error rates, and the share of transcripts without a word."""
    return {**_errors(utterances, read), "empty_share": sum(not normalize(text) for text in read) / len(read)}


def _speakers(utterances: Sequence[Utterance], heard: Hearing) -> dict[str, dict[str, Any]]:
    """Each known speaker's figures, through the bottleneck, most errors first."""
    rows: dict[str, list[int]] = {}
    for i, u in enumerate(utterances):
        if u.speaker:
            rows.setdefault(u.speaker, []).append(i)
    found = {
        name: {
            "utterances": len(of),
            "seconds": round(sum(heard.seconds[i] for i in of), 2),
            **_errors([utterances[i] for i in of], [heard.texts[i] for i in of]),
        }
        for name, of in rows.items()
    }
    return dict(sorted(found.items(), key=lambda item: -item[1]["cer"]["rate"]))


def codebook(counts: Tensor, frame_rate_hz: float) -> dict[str, float]:
    """A codebook's health and bit rates, from how often each code (K,) was used."""
    used, tokens = health(counts), int(counts.sum())
    return {
        "frame_rate_hz": frame_rate_hz,
        "tokens": tokens,
        "num_codes": len(counts),
        "codes_used": used.codes_used,
        "codes_used_share": used.codes_used_share,
        "perplexity": used.perplexity,
        "most_frequent_share": most_frequent_share(counts),
        "bits_per_sec": used.bits * frame_rate_hz,
        "nominal_bits_per_sec": math.log2(len(counts)) * frame_rate_hz,
    }
