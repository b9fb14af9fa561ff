"""Tokenizing as the sound arrives: every finished block of 2 s gives its codes at once.

    stream = tokenizer.stream()
    for chunk in microphone:
        codes = stream.push(chunk)
    codes = stream.finish()            # of the last, unfinished block

Chunked equals whole: any chunking gives the codes of `SpeechTokenizer.encode`. A block is finished when 2.5 ms more
than its samples were heard, which its last log-mel frame needs. The tokenizer must have a fixed log-mel floor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from weft.audio import HALF_WINDOW_SAMPLES, LOOK_AHEAD_SAMPLES, mirror
from weft.errors import UserError

if TYPE_CHECKING:
    from weft.tokenizer.tokenizer import SpeechTokenizer


class TokenizerStream:
    """The state of one conversation's ear: samples not yet encoded, what came just before them, the encoder's cache."""

    def __init__(self, tokenizer: SpeechTokenizer) -> None:
        if tokenizer.model.config.log_mel_floor != "fixed":
            raise UserError(
                "this tokenizer's log-mel floor depends on the whole window: train it with a fixed one to stream"
            )
        self._tokenizer = tokenizer
        self._block_samples = tokenizer.codes_per_block * tokenizer.samples_per_code
        self._blocks_per_window = tokenizer.codes_per_window // tokenizer.codes_per_block
        self._waiting = np.zeros(0, np.float32)
        self._begin_window()

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Hear mono 16 kHz samples (any number); return the codes (uint16) of the blocks that they finish."""
        self._waiting = np.concatenate([self._waiting, np.asarray(samples, dtype=np.float32)])
        codes = [np.zeros(0, np.uint16)]
        while len(self._waiting) >= self._block_samples + LOOK_AHEAD_SAMPLES:
            codes.append(self._encode(self._block_samples))
        return np.concatenate(codes)

    def finish(self) -> np.ndarray:
        """The codes of what is left, padded with silence to a whole code; the stream begins anew."""
        codes = [np.zeros(0, np.uint16)]
        while len(self._waiting):
            whole = -(-len(self._waiting) // self._tokenizer.samples_per_code) * self._tokenizer.samples_per_code
            num_samples = min(whole, self._block_samples)
            self._waiting = np.pad(self._waiting, (0, max(0, num_samples - len(self._waiting))))
            codes.append(self._encode(num_samples))
        self._begin_window()
        return np.concatenate(codes)

    def _begin_window(self) -> None:
        self._state = self._tokenizer.model.new_state()
        self._before: torch.Tensor | None = None
        self._num_blocks = 0

    @torch.inference_mode()
    def _encode(self, num_samples: int) -> np.ndarray:
        block, self._waiting = self._waiting[:num_samples], self._waiting[num_samples:]
        last_of_window = self._num_blocks == self._blocks_per_window - 1
        after = np.zeros(LOOK_AHEAD_SAMPLES, np.float32)
        if not last_of_window:
            heard = self._waiting[:LOOK_AHEAD_SAMPLES]
            after[: len(heard)] = heard
        x = torch.from_numpy(np.concatenate([block, after]))[None]
        before = mirror(x) if self._before is None else self._before
        self._before = x[:, num_samples - HALF_WINDOW_SAMPLES : num_samples]
        model = self._tokenizer.model
        features = self._tokenizer.log_mel.frames(torch.cat([before, x], dim=-1))
        codes = model.quantizer.nearest(model.first_half(features, state=self._state))
        self._num_blocks += 1
        if last_of_window:
            self._begin_window()
        return codes[0].cpu().numpy().astype(np.uint16)
