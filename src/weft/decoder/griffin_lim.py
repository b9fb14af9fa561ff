"""Mel spectrogram to audio as a stream, without a trained model: Griffin-Lim over blocks.

    vocoder = GriffinLim(MelConfig())
    state = vocoder.new_state(batch_size=1)
    samples = vocoder.push(state, mel, noise)          # as many samples as the frames last, `delay_samples` late
    last = vocoder.flush(state)                        # the last `delay_samples`

Each block is inverted given the audio that is already out and stays unchanged (real-time iterative spectrogram
inversion: Zhu, Beauregard, Wyse 2007), with the momentum of fast Griffin-Lim (Perraudin et al. 2013). The result is
intelligible and keeps the pitch, but sounds slightly metallic. `weft.decoder.vocoder` is trained.

Shapes: B batch, S samples, T frames, M mel bands, F linear bands.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from weft.decoder.mel import SILENCE, MelConfig, MelSpectrogram


@dataclass
class GriffinLimState:
    """State between blocks: `mel` (B, carried frames, M), the frames whose audio is not completely out, and `samples`
    (B, S) under them, first what is out, then an estimate that the next block improves."""

    mel: Tensor
    samples: Tensor


class GriffinLim(nn.Module):
    """Streaming Griffin-Lim. It is deterministic, given the noise that initializes the phases."""

    ITERATIONS = 32
    MOMENTUM = 0.99
    MEL_ITERATIONS = 30
    START_LEVEL = 1e-3  # low, so that the estimate dominates where noise overlaps it

    def __init__(self, config: MelConfig) -> None:
        super().__init__()
        self.spectrogram = MelSpectrogram(config)
        self.hop_samples = config.hop_samples
        self.delay_samples = self.spectrogram.margin_samples
        self.carried_frames = -(-config.window_samples // config.hop_samples) - 1

    def new_state(self, batch_size: int) -> GriffinLimState:
        """Return the state before the first frame: silence."""
        config = self.spectrogram.config
        num_samples = self.carried_frames * config.hop_samples + config.window_samples - config.hop_samples
        filters = self.spectrogram.filters
        mel = filters.new_full((batch_size, self.carried_frames, config.num_mels), SILENCE)
        return GriffinLimState(mel, filters.new_zeros(batch_size, num_samples))

    @torch.no_grad()
    def push(self, state: GriffinLimState, mel: Tensor, noise: Tensor) -> Tensor:
        """Return the audio (B, T * hop) of the next frames (B, T, M), which ends `delay_samples` before they do.

        Normal `noise` (B, T * hop) initializes the iteration.
        """
        num_fixed, num_new = self.carried_frames * self.hop_samples, noise.shape[1]
        fixed = state.samples[:, :num_fixed]
        frames = torch.cat([state.mel, mel], dim=1)
        start = torch.cat([state.samples, self.START_LEVEL * noise], dim=1)
        samples = self._invert(self._linear(frames), start, fixed)
        state.mel, state.samples = frames[:, -self.carried_frames :], samples[:, num_new:]
        return samples[:, num_fixed : num_fixed + num_new]

    def flush(self, state: GriffinLimState) -> Tensor:
        """Return the last `delay_samples` of an utterance."""
        num_fixed = self.carried_frames * self.hop_samples
        return state.samples[:, num_fixed : num_fixed + self.delay_samples]

    def _linear(self, mel: Tensor) -> Tensor:
        """Return linear magnitudes (B, T, F) of log-mel (B, T, M) by non-negative least squares."""
        filters = self.spectrogram.filters
        target = mel.exp() @ filters.T
        gram = filters @ filters.T
        x = target.clamp(min=1e-8)
        for _ in range(self.MEL_ITERATIONS):
            x = x * target / (x @ gram).clamp(min=1e-8)
        return x

    def _invert(self, magnitude: Tensor, samples: Tensor, fixed: Tensor) -> Tensor:
        """Return samples near `samples` whose spectrum has `magnitude`; the `fixed` ones at the start do not change."""
        last = torch.zeros_like(magnitude, dtype=torch.complex64)
        for _ in range(self.ITERATIONS):
            spectrum = self.spectrogram.stft(samples)
            ahead = spectrum - self.MOMENTUM / (1 + self.MOMENTUM) * last
            last = spectrum
            phased = magnitude * ahead / ahead.abs().clamp(min=1e-8)
            samples = torch.cat([fixed, self.spectrogram.overlap_add(phased)[:, fixed.shape[1] :]], dim=1)
        return samples
