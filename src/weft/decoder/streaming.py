"""Decoding codes as they come: every finished block gives its sound at once.

    stream = decoder.stream(seed=0)
    for codes in generated:
        play(stream.push(codes))
    play(stream.finish())              # the last, unfinished block, and what the vocoder still owes

Chunked equals whole, to the bit: blocks begin at fixed codes, whatever the pushes. What is out never changes, and a
block costs the same wherever it stands. The sound of a block ends `decoder.vocoder.delay_samples` (12 ms) before the
block does; a whole utterance has exactly `decoder.samples_per_code` samples a code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from weft.decoder.vocoder import VocoderState

if TYPE_CHECKING:
    from weft.decoder.decoder import Codes, SpeechDecoder


@dataclass
class DecoderState:
    """All that the rest of an utterance depends on: `waiting` codes of an unfinished block, the `codes` (1, C) before
    it and their log-`mel` (1, C, P), the vocoder's state, and the generator of the noise, drawn in order of codes."""

    waiting: list[int]
    codes: Tensor
    mel: Tensor
    vocoder: VocoderState
    generator: torch.Generator
    num_decoded: int = 0


class DecoderStream:
    """One utterance on its way from codes to sound; nothing of it is shared with another stream."""

    def __init__(self, decoder: SpeechDecoder, seed: int) -> None:
        self._decoder = decoder
        self._state = decoder.new_state(seed)
        self._finished = False

    def push(self, codes: Codes) -> np.ndarray:
        """Take any number of codes; return the samples (float32) of the blocks that they finish.

        Raises UserError, changing nothing, for a code outside the codebook.
        """
        assert not self._finished, "this stream is finished: begin another"
        waiting = self._state.waiting
        waiting.extend(self._decoder.checked(codes))
        sound = [np.zeros(0, np.float32)]
        while len(waiting) >= (size := self._next_block_codes()):
            sound.append(self._decode(size))
        return np.concatenate(sound)

    def finish(self) -> np.ndarray:
        """The samples of what is left. The stream is over."""
        assert not self._finished, "this stream is finished: begin another"
        self._finished = True
        sound = [np.zeros(0, np.float32)]
        if self._state.waiting:
            sound.append(self._decode(len(self._state.waiting)))
        if self._state.num_decoded:
            sound.append(self._decoder.vocoder.flush(self._state.vocoder)[0].cpu().numpy())
        return np.concatenate(sound)

    def _next_block_codes(self) -> int:
        config = self._decoder.flow.config
        return config.block_codes if self._state.num_decoded else config.first_block_codes

    def _decode(self, num_codes: int) -> np.ndarray:
        """Decode the next `num_codes` waiting codes as one block."""
        decoder, state = self._decoder, self._state
        new = torch.tensor([state.waiting[:num_codes]], device=state.codes.device)
        del state.waiting[:num_codes]
        window = torch.cat([state.codes, new], dim=1)
        shape = (1, num_codes, state.mel.shape[2])
        mel = decoder.flow.sample(window, state.mel, self._noise(*shape))
        frames = mel.unflatten(2, (decoder.mel_frames_per_code, -1)).flatten(1, 2)
        samples = decoder.vocoder.push(state.vocoder, frames, self._noise(1, num_codes * decoder.samples_per_code))
        owed_from = 0 if state.num_decoded else decoder.vocoder.delay_samples  # what comes before the beginning
        state.codes = window[:, num_codes:]
        state.mel = torch.cat([state.mel, mel], dim=1)[:, num_codes:]
        state.num_decoded += num_codes
        return samples[0, owed_from:].cpu().numpy()

    def _noise(self, *shape: int) -> Tensor:
        """Normal noise, the same on any device."""
        return torch.randn(shape, generator=self._state.generator).to(self._state.mel.device)
