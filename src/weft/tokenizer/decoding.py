"""Greedy decoding of transcripts from the encoder output of a BottleneckWhisper.

Shapes: B rows, N tokens of the encoder, D width, L text tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache

from weft.asr.transcribe import must_end
from weft.asr.whisper import Prompt
from weft.tokenizer.encoder import ENCODER_HZ, BottleneckWhisper


def greedy_decode(
    model: BottleneckWhisper, prompt: Prompt, encoded: Tensor, valid: Tensor, languages: Sequence[str | None]
) -> list[list[int]]:
    """Decode the encoder output (B, N, D) with valid tokens (B, N) into text ids, including the prompt.

    A language of None is detected. A transcript ends where it `must_end`. Raises UserError for a language that the
    Whisper lacks.
    """
    whisper = model.whisper_config
    end_id: Any = whisper.eos_token_id
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    ids = _prompt_ids(model, prompt, encoded, valid, languages)
    decoded, ended = [ids], torch.zeros(len(encoded), 1, dtype=torch.bool, device=encoded.device)
    seconds = valid.sum(1) * (model.config.pooling / ENCODER_HZ)
    for _ in range(whisper.max_target_positions - ids.shape[1]):
        ids = model.text_logits(encoded, valid, ids, cache)[:, -1:].argmax(-1)
        decoded.append(ids.masked_fill(ended, end_id))
        ended |= (ids == end_id) | must_end(torch.cat(decoded[1:], dim=1), seconds)[:, None]
        if ended.all():
            break
    return torch.cat(decoded, dim=1).tolist()


def _prompt_ids(
    model: BottleneckWhisper, prompt: Prompt, encoded: Tensor, valid: Tensor, languages: Sequence[str | None]
) -> Tensor:
    """Return the prompt (B, L) of each row, with the most likely language where none is given."""
    start = torch.full((len(encoded), 1), prompt.start, device=encoded.device)
    if not prompt.languages:
        return torch.cat([start, start.new_tensor(prompt.rest).expand(len(encoded), -1)], dim=1)
    known = start.new_tensor(list(prompt.languages.values()))
    likeliest = known[model.text_logits(encoded, valid, start)[:, -1, known].argmax(-1)].tolist()
    ids = [prompt.languages[prompt.code(name)] if name else i for name, i in zip(languages, likeliest, strict=True)]
    return start.new_tensor([[prompt.start, i, *prompt.rest] for i in ids])
