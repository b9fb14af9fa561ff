"""Mel spectrogram to audio as a stream, without a trained model: Griffin-Lim over blocks.

    vocoder = Vocoder(MelConfig())
    state = vocoder.new_state(batch_size=1)
    samples = vocoder.push(state, mel, noise)          # as many samples as the frames last, `delay_samples` late
    last = vocoder.flush(state)                        # the last `delay_samples`

Each block is inverted given the audio that is already out and stays unchanged (real-time iterative spectrogram
inversion: Zhu, Beauregard, Wyse 2007), with the momentum of fast Griffin-Lim (Perraudin et al. 2013). The result is
intelligible and keeps the pitch, but sounds slightly metallic. A trained vocoder can replace it.

Shapes: B batch, S samples, T frames, M mel bands, F linear bands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.config import PositiveInt
from weft.errors import UserError

_MIN_MAGNITUDE = 1e-5
SILENCE = math.log(_MIN_MAGNITUDE)  # log-mel of silence


@dataclass(frozen=True)
class MelConfig:
    """The mel spectrogram that the decoder predicts."""

    sample_rate_hz: PositiveInt = 16_000
    """Sample rate."""
    window_samples: PositiveInt = 640
    """Analysis window: 40 ms resolves the harmonics of a low voice and keeps onsets sharp."""
    hop_samples: PositiveInt = 256
    """Samples between frames."""
    num_mels: PositiveInt = 80
    """Mel bands, from 0 Hz up to half the sample rate."""

    def __post_init__(self) -> None:
        if self.window_samples <= self.hop_samples or (self.window_samples - self.hop_samples) % 2:
            raise UserError(
                f"mel.window_samples is {self.window_samples}: give hop_samples {self.hop_samples} plus an even number"
            )


class MelSpectrogram(nn.Module):
    """Natural logarithm of mel magnitudes. Frame t is centred on the middle of samples [t, t + 1) * hop."""

    filters: Tensor
    window: Tensor

    def __init__(self, config: MelConfig) -> None:
        super().__init__()
        from transformers.audio_utils import mel_filter_bank

        self.config = config
        rate_hz, bands = config.sample_rate_hz, 1 + config.window_samples // 2
        filters = mel_filter_bank(bands, config.num_mels, 0.0, rate_hz / 2, rate_hz, norm="slaney", mel_scale="slaney")
        self.register_buffer("filters", torch.from_numpy(filters).float(), persistent=False)
        self.register_buffer("window", torch.hann_window(config.window_samples), persistent=False)

    @property
    def margin_samples(self) -> int:
        """Samples by which a frame extends beyond its hop on each side."""
        return (self.config.window_samples - self.config.hop_samples) // 2

    def forward(self, samples: Tensor) -> Tensor:
        """Return the log-mel (B, T, M) of samples (B, S), S a multiple of the hop, padded with silence at both ends."""
        padded = F.pad(samples, (self.margin_samples, self.margin_samples))
        magnitude = self.stft(padded).abs()
        return (magnitude @ self.filters).clamp(min=_MIN_MAGNITUDE).log()

    def stft(self, samples: Tensor) -> Tensor:
        """Return the spectrum (B, T, F) of every complete window of samples (B, S)."""
        frames = samples.unfold(-1, self.config.window_samples, self.config.hop_samples)
        return torch.fft.rfft(frames * self.window)

    def overlap_add(self, spectrum: Tensor) -> Tensor:
        """Return the samples (B, S) whose windows have the least squared error to `spectrum` (B, T, F)."""
        frames = torch.fft.irfft(spectrum, n=self.config.window_samples) * self.window
        weight = self.window.square().expand(1, *frames.shape[1:])
        return self._add(frames) / self._add(weight).clamp(min=1e-3)

    def _add(self, frames: Tensor) -> Tensor:
        window, hop = self.config.window_samples, self.config.hop_samples
        num_samples = (frames.shape[1] - 1) * hop + window
        columns = frames.transpose(1, 2)
        return F.fold(columns, (1, num_samples), (1, window), stride=(1, hop))[:, 0, 0]


@dataclass
class VocoderState:
    """State between blocks: `mel` (B, carried frames, M), the frames whose audio is not completely out, and `samples`
    (B, S) under them, first what is out, then an estimate that the next block improves."""

    mel: Tensor
    samples: Tensor


class Vocoder(nn.Module):
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

    def new_state(self, batch_size: int) -> VocoderState:
        """Return the state before the first frame: silence."""
        config = self.spectrogram.config
        num_samples = self.carried_frames * config.hop_samples + config.window_samples - config.hop_samples
        filters = self.spectrogram.filters
        mel = filters.new_full((batch_size, self.carried_frames, config.num_mels), SILENCE)
        return VocoderState(mel, filters.new_zeros(batch_size, num_samples))

    @torch.no_grad()
    def push(self, state: VocoderState, mel: Tensor, noise: Tensor) -> Tensor:
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

    def flush(self, state: VocoderState) -> Tensor:
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
