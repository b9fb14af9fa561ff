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
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from weft import progress
from weft.audio import SAMPLE_RATE_HZ, load
from weft.errors import UserError
from weft.records import Utterance
from weft.tokenizer.quantizer import health
from weft.tokenizer.tokenizer import SpeechTokenizer
from weft.wer import character_error_rate, normalize, word_error_rate

_CHUNK_UTTERANCES = 256  # in memory at once
_MOST_FREQUENT = 10
_LEAST_USED_SHARE = 0.1  # of the codes that could be in use, below which a codebook has collapsed
_LARGEST_HEAD = 0.6  # share of all tokens that ten codes may take: silence, in one or a few codes, stays below


@dataclass(frozen=True)
class _Heard:
    """Utterances with what was read of them through codes and with the bottleneck open, and their seconds."""

    utterances: list[Utterance] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    through: list[str] = field(default_factory=list)
    open: list[str] = field(default_factory=list)

    def errors(self, read: Sequence[str], of: Sequence[int] | None = None) -> dict[str, Any]:
        """Word and character error rates of transcripts, or of some of them."""
        chosen = range(len(read)) if of is None else of
        pairs = [self.utterances[i].text or "" for i in chosen], [read[i] for i in chosen]
        return {"wer": asdict(word_error_rate(*pairs)), "cer": asdict(character_error_rate(*pairs))}

    def speakers(self) -> dict[str, dict[str, Any]]:
        """Each known speaker's figures, through the bottleneck, most errors first."""
        rows: dict[str, list[int]] = {}
        for i, u in enumerate(self.utterances):
            if u.speaker:
                rows.setdefault(u.speaker, []).append(i)
        found = {
            name: {
                "utterances": len(of),
                "seconds": round(sum(self.seconds[i] for i in of), 2),
                **self.errors(self.through, of),
            }
            for name, of in rows.items()
        }
        return dict(sorted(found.items(), key=lambda item: -item[1]["cer"]["rate"]))


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
    heard, counts = _hear(tokenizer, told)
    return {
        "utterances": len(told),
        "seconds": round(sum(heard.seconds), 2),
        **heard.errors(heard.through),
        "empty_share": _empty_share(heard.through),
        "open": {**heard.errors(heard.open), "empty_share": _empty_share(heard.open)},
        **codebook(counts, tokenizer.frame_rate_hz),
        "speakers": heard.speakers(),
        "warnings": warnings(counts),
    }


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
        "most_frequent_share": _head(counts),
        "bits_per_sec": used.bits * frame_rate_hz,
        "nominal_bits_per_sec": math.log2(len(counts)) * frame_rate_hz,
    }


def warnings(counts: Tensor) -> list[str]:
    """What is wrong with a codebook used so often (K,), and what to do about it: empty where it is healthy.

    Of a codebook far larger than the speech is long, as many codes are expected to be in use as there are tokens.
    """
    used, usable = int((counts > 0).sum()), min(len(counts), int(counts.sum()))
    if used < _LEAST_USED_SHARE * usable:
        what = f"only {used} of {len(counts)} codes are in use, on {int(counts.sum())} tokens"
    elif len(counts) > 10 * _MOST_FREQUENT and _head(counts) > _LARGEST_HEAD:
        what = f"{_MOST_FREQUENT} of {len(counts)} codes take {_head(counts):.0%} of the tokens"
    else:
        return []
    return [
        f"the codebook has collapsed: {what}. Train again with unused codes restarted sooner (restart_every_steps, "
        "restart_share = 0.1 of model.quantizer), with fewer codes or more speech, or with kind = 'fsq', which has no "
        "codebook to lose; the training's log/metrics.jsonl shows when it went"
    ]


def _hear(tokenizer: SpeechTokenizer, utterances: Sequence[Utterance]) -> tuple[_Heard, Tensor]:
    """What is read of the utterances both ways, and how often each code (K,) was used."""
    heard, counts = _Heard(), torch.zeros(tokenizer.num_codes, dtype=torch.long)
    with progress.bar("tokenizer", len(utterances)) as advance:
        for first in range(0, len(utterances), _CHUNK_UTTERANCES):
            chunk = utterances[first : first + _CHUNK_UTTERANCES]
            audio = [load(u.audio) for u in chunk]
            codes = tokenizer.encode(audio)
            for c in codes:
                counts += torch.bincount(torch.from_numpy(c.astype("int64")), minlength=tokenizer.num_codes)
            heard.utterances.extend(chunk)
            heard.seconds.extend(len(samples) / SAMPLE_RATE_HZ for samples in audio)
            heard.through.extend(tokenizer.transcribe(codes))
            heard.open.extend(tokenizer.transcribe_open(audio))
            advance(len(chunk))
    return heard, counts


def _empty_share(read: Sequence[str]) -> float:
    return sum(not normalize(text) for text in read) / len(read)


def _head(counts: Tensor) -> float:
    return float(counts.topk(min(_MOST_FREQUENT, len(counts))).values.sum() / counts.sum().clamp(min=1))
