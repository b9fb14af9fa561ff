"""Tokenizing as the sound arrives: every finished block (of 2 s) gives its codes at once.

    stream = tokenizer.stream()
    for chunk in microphone:
        codes = stream.push(chunk)
    codes = stream.finish()            # of the last, unfinished block

Chunked equals whole: any chunking gives the codes of `SpeechTokenizer.encode`. A block is finished when 2.5 ms more
than its samples were heard, which its last log-mel frame needs. The tokenizer must have causal convolutions, blocks
and a fixed log-mel floor: with anything else, what was heard depends on what comes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from weft.audio import HALF_WINDOW_SAMPLES, LOOK_AHEAD_SAMPLES, mirror
from weft.errors import UserError
from weft.tokenizer.encoder import SAMPLES_PER_FRAME
from weft.tokenizer.packed import Recordings, first_half, new_state

if TYPE_CHECKING:
    from weft.tokenizer.tokenizer import SpeechTokenizer


class TokenizerStream:
    """The state of one conversation's ear: samples not yet encoded, what came just before them, the encoder's cache."""

    def __init__(self, tokenizer: SpeechTokenizer) -> None:
        config = tokenizer.model.config
        if config.log_mel_floor != "fixed":
            raise _cannot_stream("its log-mel floor depends on the whole window", 'log_mel_floor = "fixed"')
        if not config.causal_convolution:
            raise _cannot_stream("its convolutions hear later frames", "causal_convolution = true")
        if not config.block_frames:
            raise _cannot_stream("its attention sees the whole window", "block_frames = 100")
        self._tokenizer = tokenizer
        tokenizer.log_mel.to(tokenizer.device)
        self._waiting = np.zeros(0, np.float32)
        self._begin_window()

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Hear mono 16 kHz samples (any number); return the codes (uint16) of the blocks that they finish."""
        self._waiting = np.concatenate([self._waiting, np.asarray(samples, dtype=np.float32)])
        codes = [np.zeros(0, np.uint16)]
        while len(self._waiting) >= self._block_samples + LOOK_AHEAD_SAMPLES:
            codes.append(self._encode(self._block_samples, self._block_samples))
        return np.concatenate(codes)

    def finish(self) -> np.ndarray:
        """The codes of what is left, padded with silence to a whole code; the stream begins anew."""
        codes = [np.zeros(0, np.uint16)]
        while len(self._waiting):
            whole = -(-len(self._waiting) // self._tokenizer.samples_per_code) * self._tokenizer.samples_per_code
            num_samples = min(whole, self._block_samples)
            heard = min(len(self._waiting), num_samples)
            self._waiting = np.pad(self._waiting, (0, num_samples - heard))
            codes.append(self._encode(num_samples, heard))
        self._begin_window()
        return np.concatenate(codes)

    def _begin_window(self) -> None:
        self._state = new_state(self._tokenizer.model)
        self._before: torch.Tensor | None = None
        self._codes_left = self._tokenizer.codes_per_window

    @property
    def _block_samples(self) -> int:
        """Samples of the next block: the last one of a window may be shorter."""
        return min(self._tokenizer.codes_per_block, self._codes_left) * self._tokenizer.samples_per_code

    @torch.inference_mode()
    def _encode(self, num_samples: int, num_real: int) -> np.ndarray:
        """Codes of the next `num_samples`, of which `num_real` are sound and the rest padding."""
        block, self._waiting = self._waiting[:num_samples], self._waiting[num_samples:]
        self._codes_left -= num_samples // self._tokenizer.samples_per_code
        last_of_window = not self._codes_left
        after = np.zeros(LOOK_AHEAD_SAMPLES, np.float32)
        if not last_of_window:
            heard = self._waiting[:LOOK_AHEAD_SAMPLES]
            after[: len(heard)] = heard
        x = torch.from_numpy(np.concatenate([block, after]))[None].to(self._tokenizer.device)
        before = mirror(x) if self._before is None else self._before
        self._before = x[:, num_samples - HALF_WINDOW_SAMPLES : num_samples]
        model = self._tokenizer.model
        features = self._tokenizer.log_mel.frames(torch.cat([before, x], dim=-1))
        size = Recordings([num_samples // SAMPLES_PER_FRAME], [-(-num_real // SAMPLES_PER_FRAME)])
        codes = model.quantizer.nearest(first_half(model, list(features), size, self._state))
        if last_of_window:
            self._begin_window()
        return codes.cpu().numpy().astype(np.uint16)


def _cannot_stream(why: str, remedy: str) -> UserError:
    return UserError(f"this tokenizer cannot stream: {why}; train one with {remedy}, or tokenize whole recordings")
