"""Mel spectrogram to sound in a stream, without a trained model: Griffin-Lim over blocks.

    vocoder = Vocoder(MelConfig())
    state = vocoder.new_state(batch_size=1)
    samples = vocoder.push(state, mel, noise)          # as many samples as the frames last, `delay_samples` late
    last = vocoder.flush(state)                        # the `delay_samples` still owed

Each block is inverted given the sound that is already out, which stays as it is (real-time iterative spectrogram
inversion: Zhu, Beauregard, Wyse 2007), with fast Griffin-Lim's momentum (Perraudin et al. 2013). It is intelligible
and keeps pitch, and it sounds like what it is: slightly metallic. A trained vocoder can take its place behind the
same three calls.

Shapes: B batch, S samples, T frames, M mel bands, F linear bands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.config import Count
from weft.errors import UserError

_LEAST_MAGNITUDE = 1e-5
SILENCE = math.log(_LEAST_MAGNITUDE)  # the log-mel of no sound


@dataclass(frozen=True)
class MelConfig:
    """The mel spectrogram that the decoder predicts."""

    sample_rate_hz: Count = 16_000
    """Samples a second."""
    window_samples: Count = 640
    """Analysis window: 40 ms resolves a low voice's harmonics, so that its pitch survives, yet keeps onsets sharp."""
    hop_samples: Count = 256
    """Samples between frames."""
    num_mels: Count = 80
    """Mel bands, from 0 Hz up to half the sample rate."""

    def __post_init__(self) -> None:
        if self.window_samples <= self.hop_samples or (self.window_samples - self.hop_samples) % 2:
            raise UserError(
                f"mel.window_samples is {self.window_samples}: choose more than hop_samples {self.hop_samples}, "
                "by an even number"
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
        """How far a frame reaches beyond its own hop, to each side."""
        return (self.config.window_samples - self.config.hop_samples) // 2

    def forward(self, samples: Tensor) -> Tensor:
        """Samples (B, S), S a multiple of the hop, to log-mel (B, T, M); silence lies beyond both ends."""
        padded = F.pad(samples, (self.margin_samples, self.margin_samples))
        magnitude = self.stft(padded).abs()
        return (magnitude @ self.filters).clamp(min=_LEAST_MAGNITUDE).log()

    def stft(self, samples: Tensor) -> Tensor:
        """Spectrum (B, T, F) of every whole window in samples (B, S)."""
        frames = samples.unfold(-1, self.config.window_samples, self.config.hop_samples)
        return torch.fft.rfft(frames * self.window)

    def overlap_add(self, spectrum: Tensor) -> Tensor:
        """The samples (B, S) whose windows come nearest to `spectrum` (B, T, F) in squared error."""
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
    """What the vocoder remembers between blocks: `mel` (B, carried frames, M), the frames whose sound is not all out;
    `samples` (B, S), the sound under them: first what is out, then a guess that the next block improves."""

    mel: Tensor
    samples: Tensor


class Vocoder(nn.Module):
    """Streaming Griffin-Lim. Deterministic, given the noise that its phases start from."""

    ITERATIONS = 32
    MOMENTUM = 0.99
    MEL_ITERATIONS = 30
    START_LEVEL = 1e-3  # quiet, so that where starting noise meets the guess, the guess leads

    def __init__(self, config: MelConfig) -> None:
        super().__init__()
        self.spectrogram = MelSpectrogram(config)
        self.hop_samples = config.hop_samples
        self.delay_samples = self.spectrogram.margin_samples
        self.carried_frames = -(-config.window_samples // config.hop_samples) - 1

    def new_state(self, batch_size: int) -> VocoderState:
        """The state before the first frame: silence."""
        config = self.spectrogram.config
        num_samples = self.carried_frames * config.hop_samples + config.window_samples - config.hop_samples
        filters = self.spectrogram.filters
        mel = filters.new_full((batch_size, self.carried_frames, config.num_mels), SILENCE)
        return VocoderState(mel, filters.new_zeros(batch_size, num_samples))

    @torch.no_grad()
    def push(self, state: VocoderState, mel: Tensor, noise: Tensor) -> Tensor:
        """Sound of the next frames (B, T, M), as (B, T * hop) samples that end `delay_samples` before the frames do.

        `noise` is normal, (B, T * hop): where the iteration starts.
        """
        num_fixed, num_new = self.carried_frames * self.hop_samples, noise.shape[1]
        fixed = state.samples[:, :num_fixed]
        frames = torch.cat([state.mel, mel], dim=1)
        start = torch.cat([state.samples, self.START_LEVEL * noise], dim=1)
        samples = self._invert(self._linear(frames), start, fixed)
        state.mel, state.samples = frames[:, -self.carried_frames :], samples[:, num_new:]
        return samples[:, num_fixed : num_fixed + num_new]

    def flush(self, state: VocoderState) -> Tensor:
        """The last `delay_samples` of an utterance."""
        num_fixed = self.carried_frames * self.hop_samples
        return state.samples[:, num_fixed : num_fixed + self.delay_samples]

    def _linear(self, mel: Tensor) -> Tensor:
        """Linear magnitudes (B, T, F) of log-mel (B, T, M): non-negative least squares by multiplicative updates."""
        filters = self.spectrogram.filters
        target = mel.exp() @ filters.T
        gram = filters @ filters.T
        x = target.clamp(min=1e-8)
        for _ in range(self.MEL_ITERATIONS):
            x = x * target / (x @ gram).clamp(min=1e-8)
        return x

    def _invert(self, magnitude: Tensor, samples: Tensor, fixed: Tensor) -> Tensor:
        """Samples near `samples` whose spectrum has `magnitude`, the `fixed` ones at the beginning left alone."""
        last = torch.zeros_like(magnitude, dtype=torch.complex64)
        for _ in range(self.ITERATIONS):
            spectrum = self.spectrogram.stft(samples)
            ahead = spectrum - self.MOMENTUM / (1 + self.MOMENTUM) * last
            last = spectrum
            phased = magnitude * ahead / ahead.abs().clamp(min=1e-8)
            samples = torch.cat([fixed, self.spectrogram.overlap_add(phased)[:, fixed.shape[1] :]], dim=1)
        return samples
