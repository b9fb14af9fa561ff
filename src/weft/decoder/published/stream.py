"""Streams of the paper's speech decoder, at a constant cost per block.

    stream = PublishedStream(flow, vocoder, seed=0)
    samples = stream.push(codes)                # of the blocks that are complete, less the vocoder's look-ahead
    rest = stream.finish()

A block of codes is decoded together with three blocks before it, whose mel frames are given. The released code decodes
all codes so far instead, at a cost that grows with them. The vocoder's audio is that of the whole mel spectrogram: its
inputs have as much context on both sides as its convolutions reach, and the phases of its source continue.

Shapes: S samples, N codes, T mel frames, M mel bands, K harmonics.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from weft.decoder.published.flow import PublishedFlow
from weft.decoder.published.hift import HiFT
from weft.decoder.stream import Codes, check_codes

_BLOCKS_BEFORE = 3
REACH_FRAMES = 20  # of the vocoder, on each side: 14 by its filters and 5 by the prediction of F0


class PublishedStream:
    """Incremental decoding of one utterance. Any division into pushes gives the same bits."""

    def __init__(self, flow: PublishedFlow, vocoder: HiFT, seed: int) -> None:
        self._flow, self._generator = flow, torch.Generator().manual_seed(seed)
        self._device = flow.to_mel.weight.device
        self._pending: list[int] = []
        self._codes: list[int] = []  # of the blocks before, whose mel is given
        self._mel = torch.zeros(1, flow.mel.num_mels, 0, device=self._device)  # of these codes
        self._num_codes = 0
        self._sound = _Sound(vocoder)
        self._num_samples = 0
        self._ended = False

    def push(self, codes: Codes) -> np.ndarray:
        """Take any number of codes; return the samples (S,) float32 that are complete.

        Raises UserError, without changing the state, for a code outside the codebook.
        """
        assert not self._ended, "this stream has ended: start another"
        self._pending.extend(check_codes(codes, self._flow.num_codes))
        size, audio = self._flow.config.encoder.block_codes, [np.zeros(0, np.float32)]
        while len(self._pending) >= size:
            audio.append(self._decode(size, is_last=False))
        return np.concatenate(audio)

    def finish(self) -> np.ndarray:
        """Return the remaining samples and end the stream."""
        assert not self._ended, "this stream has ended: start another"
        self._ended = True
        if not self._pending and not self._num_codes:
            return np.zeros(0, np.float32)
        return self._decode(len(self._pending), is_last=True)

    @torch.no_grad()
    def _decode(self, num_codes: int, is_last: bool) -> np.ndarray:
        """Decode the next `num_codes` pending codes. The last block has a frame for the samples of a part of one."""
        flow, before = self._flow, self._codes
        first = self._num_codes - len(before)
        self._num_codes += num_codes
        total = -(-self._num_codes * flow.samples_per_code // flow.mel.hop_samples)
        end = total if is_last else flow.num_frames(self._num_codes)
        num_frames, num_given = end - flow.num_frames(first), self._mel.shape[-1]
        codes = before + self._pending[:num_codes]
        del self._pending[:num_codes]
        new = self._mel[..., :0]
        if num_frames > num_given:
            noise = torch.randn(1, flow.mel.num_mels, num_frames, generator=self._generator).to(self._device)
            ids = torch.tensor([codes], device=self._device)
            mel = flow.sample(ids, noise, self._mel)
            new = mel[..., num_given:]
        keep = _BLOCKS_BEFORE * flow.config.encoder.block_codes
        self._codes = codes[-keep:]
        kept = end - flow.num_frames(self._num_codes - len(self._codes))
        self._mel = torch.cat([self._mel, new], dim=-1)[..., num_frames - kept :]
        audio = self._sound.push(new, self._generator, is_last)
        if is_last:
            audio = audio[: self._num_codes * flow.samples_per_code - self._num_samples]
        self._num_samples += len(audio)
        return audio


class _Sound:
    """The vocoder's state: mel frames and source samples behind and ahead of the audio that is out."""

    def __init__(self, vocoder: HiFT) -> None:
        self._vocoder, zeros, waves = vocoder, vocoder.output.weight.new_zeros, vocoder.shape.harmonics + 1
        self._mel = zeros(1, vocoder.spectrogram.config.num_mels, 0)
        self._num_behind = 0  # frames of it whose audio is out
        self._source = zeros(1, 0)  # of these frames
        self._noise = zeros(1, waves, 0)  # of the other frames
        self._cycles = zeros(1, waves)  # at the end of the audio that is out

    def push(self, mel: Tensor, generator: torch.Generator, is_last: bool) -> np.ndarray:
        """Add frames (1, M, T); return the samples (S,) that no later frame changes, or all of them."""
        size = self._vocoder.shape.frame_samples
        shape = (1, self._noise.shape[1], mel.shape[-1] * size)
        self._noise = torch.cat([self._noise, torch.randn(shape, generator=generator).to(mel)], dim=-1)
        self._mel = torch.cat([self._mel, mel], dim=-1)
        num = self._mel.shape[-1] - self._num_behind - (0 if is_last else REACH_FRAMES)
        if num <= 0:
            return np.zeros(0, np.float32)
        f0 = self._vocoder.f0_hz(self._mel)[:, self._num_behind :]
        source = torch.cat([self._source, self._vocoder.source(f0, self._noise, 2 * math.pi * self._cycles)], dim=1)
        samples = self._vocoder.synthesize(self._mel, source)[0, self._num_behind * size :][: num * size]
        self._cycles = (self._cycles + self._vocoder.cycles(f0[:, :num])[..., -1]) % 1
        done = self._num_behind + num
        drop = max(0, done - REACH_FRAMES)
        self._mel, self._noise = self._mel[..., drop:], self._noise[..., num * size :]
        self._source = source[:, drop * size : done * size]
        self._num_behind = done - drop
        return samples.cpu().numpy()
