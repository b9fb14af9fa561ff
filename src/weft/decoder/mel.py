"""Mel spectrograms of a decoder: their settings, computation, and overlap-add of spectra.

    spectrogram = MelSpectrogram(MelConfig())
    mel = spectrogram(samples)          # (B, S) -> (B, T, M)

Shapes: B batch, S samples, T frames, M mel bands, F linear bands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.config import NonNegativeInt, PositiveInt
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
    """Mel bands, from 0 Hz up to `max_hz`."""
    max_hz: NonNegativeInt = 0
    """Highest frequency of the mel bands; 0: half the sample rate."""

    def __post_init__(self) -> None:
        if self.window_samples <= self.hop_samples or (self.window_samples - self.hop_samples) % 2:
            raise UserError(
                f"mel.window_samples is {self.window_samples}: give hop_samples {self.hop_samples} plus an even number"
            )
        if self.max_hz > self.sample_rate_hz / 2:
            raise UserError(
                f"mel.max_hz is {self.max_hz}: give at most half the sample rate of {self.sample_rate_hz} Hz"
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
        filters = mel_filter_bank(
            bands, config.num_mels, 0.0, config.max_hz or rate_hz / 2, rate_hz, norm="slaney", mel_scale="slaney"
        )
        self.register_buffer("filters", torch.from_numpy(filters).float(), persistent=False)
        self.register_buffer("window", torch.hann_window(config.window_samples), persistent=False)

    @property
    def margin_samples(self) -> int:
        """Samples by which a frame extends beyond its hop on each side."""
        return (self.config.window_samples - self.config.hop_samples) // 2

    def forward(self, samples: Tensor) -> Tensor:
        """Return the log-mel (B, T, M) of samples (B, S), S a multiple of the hop, padded with silence at both ends."""
        padded = F.pad(samples.float(), (self.margin_samples, self.margin_samples))
        with torch.autocast(samples.device.type, enabled=False):  # in bf16, quiet bands would be wrong
            return (self.stft(padded).abs() @ self.filters).clamp(min=_MIN_MAGNITUDE).log()

    def stft(self, samples: Tensor) -> Tensor:
        """Return the spectrum (B, T, F) of every complete window of samples (B, S)."""
        frames = samples.unfold(-1, self.config.window_samples, self.config.hop_samples)
        return torch.fft.rfft(frames * self.window)

    def overlap_add(self, spectrum: Tensor) -> Tensor:
        """Return the samples (B, S) whose windows have the least squared error to `spectrum` (B, T, F)."""
        frames = torch.fft.irfft(spectrum, n=self.config.window_samples) * self.window
        weight = self.window.square().expand(1, *frames.shape[1:])
        return self.add(frames) / self.add(weight).clamp(min=1e-3)

    def add(self, frames: Tensor) -> Tensor:
        """Return the sum (B, S) of windows (B, T, window) one hop apart."""
        window, hop = self.config.window_samples, self.config.hop_samples
        num_samples = (frames.shape[1] - 1) * hop + window
        columns = frames.transpose(1, 2)
        return F.fold(columns, (1, num_samples), (1, window), stride=(1, hop))[:, 0, 0]
