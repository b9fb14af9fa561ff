"""The vocoder of the paper's speech decoder: HiFT, harmonics filtered by a network with an inverse STFT.

    vocoder = HiFT(HiFTShape(), MelConfig(22_050, 1024, 256, 80, 8000))
    samples = vocoder(mel)                                  # (B, T, M) -> (B, S), with random noise and phases
    f0 = vocoder.f0_hz(mel)                                 # (B, T), the steps of the same, from mel (B, M, T)
    source = vocoder.source(f0, noise, phases)              # (B, S)
    samples = vocoder.synthesize(mel, source)               # (B, S)

Shapes: B batch, T mel frames, S samples, C channels, M mel bands, K harmonics.

Sources: the released GLM-4-Voice decoder, after CosyVoice (arXiv 2407.05407); HiFTNet (arXiv 2309.09493), neural source
filters (arXiv 1904.12088), iSTFTNet (arXiv 2203.02395), Snake (arXiv 2006.08195).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.artifacts import loading
from weft.config import PositiveInt
from weft.decoder.mel import MelConfig, MelSpectrogram
from weft.decoder.pitch import f0_hz
from weft.decoder.vocoder import CONFIG, WEIGHTS
from weft.files import read_json_object, write_json
from weft.weights import load_weights, save_weights, weights_of

_SLOPE, _LAST_SLOPE = 0.1, 0.01
_DILATIONS = (1, 3, 5)
_KERNELS, _SOURCE_KERNELS = (3, 7, 11), (7, 11)
_VOICED_HZ, _SINE_LEVEL, _NOISE_LEVEL = 10.0, 0.1, 0.003
_MAX_MAGNITUDE, _MAX_SAMPLE = 1e2, 0.99


@dataclass(frozen=True)
class HiFTShape:
    """Shape of the vocoder. The defaults are published."""

    channels: PositiveInt = 512
    """Channels at the frame rate; each of the two up-samplings halves them."""
    f0_channels: PositiveInt = 512
    """Channels of the F0 predictor."""
    harmonics: PositiveInt = 8
    """Harmonics above F0."""
    upsampling: PositiveInt = 8
    """Factor of each of the two up-samplings."""
    fft_samples: PositiveInt = 16
    """Window of the inverse STFT."""
    hop_samples: PositiveInt = 4
    """Hop of the inverse STFT."""

    @property
    def frame_samples(self) -> int:
        """Samples per mel frame."""
        return self.upsampling**2 * self.hop_samples


class HiFT(nn.Module):
    """The vocoder."""

    window: Tensor

    def __init__(self, shape: HiFTShape, mel: MelConfig) -> None:
        super().__init__()
        assert mel.hop_samples == shape.frame_samples, "HiFT is for another mel spectrogram"
        self.shape, self.spectrogram, self.hop_samples = shape, MelSpectrogram(mel), mel.hop_samples
        num_mels = mel.num_mels
        channels, up, bins = shape.channels, shape.upsampling, shape.fft_samples + 2
        sizes = [num_mels] + 5 * [shape.f0_channels]
        self.f0_layers = nn.ModuleList(nn.Conv1d(a, b, 3, padding=1) for a, b in pairwise(sizes))
        self.f0_out = nn.Linear(shape.f0_channels, 1)
        self.source_mix = nn.Linear(shape.harmonics + 1, 1)
        self.input = nn.Conv1d(num_mels, channels, 7, padding=3)
        levels = [channels // 2, channels // 4]
        self.ups = nn.ModuleList(nn.ConvTranspose1d(2 * size, size, 2 * up, up, up // 2) for size in levels)
        self.source_downs = nn.ModuleList(
            [nn.Conv1d(bins, levels[0], 2 * up, up, up // 2), nn.Conv1d(bins, levels[1], 1)]
        )
        self.source_filters = nn.ModuleList(
            _Filter(size, kernel) for size, kernel in zip(levels, _SOURCE_KERNELS, strict=True)
        )
        self.filters = nn.ModuleList(_Filter(size, kernel) for size in levels for kernel in _KERNELS)
        self.output = nn.Conv1d(levels[1], bins, 7, padding=3)
        self.register_buffer("window", torch.hann_window(shape.fft_samples), persistent=False)

    @classmethod
    def from_files(cls, folder: Path) -> HiFT:
        """Load what `write_files` wrote. Raises UserError for invalid files."""
        with loading(folder, "a vocoder"):
            config = read_json_object(folder / CONFIG)
            vocoder = cls(HiFTShape(**config["hift"]), MelConfig(**config["mel"]))
            load_weights(vocoder, folder / WEIGHTS)
            return vocoder.eval()

    def write_files(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        """Write weights in `dtype` and configuration into the directory of an artifact."""
        save_weights(weights_of(self, dtype), folder / WEIGHTS)
        write_json(folder / CONFIG, {"hift": asdict(self.shape), "mel": asdict(self.spectrogram.config)})

    def forward(self, mel: Tensor) -> Tensor:
        """Return the samples (B, S) of log-mel frames (B, T, M), with random noise and phases."""
        mel = mel.transpose(1, 2)
        waves = self.shape.harmonics + 1
        noise = torch.randn(len(mel), waves, mel.shape[-1] * self.hop_samples, device=mel.device)
        phases = F.pad(2 * math.pi * torch.rand(len(mel), waves - 1, device=mel.device), (1, 0))
        with torch.no_grad():
            source = self.source(self.f0_hz(mel), noise, phases)
        return self.synthesize(mel, source)

    def f0_loss(self, mel: Tensor, samples: Tensor) -> Tensor:
        """Return the mean error in Hz of F0 of log-mel frames (B, T, M), compared with that of samples (B, S)."""
        measured = f0_hz(samples, self.spectrogram.config.sample_rate_hz, self.hop_samples)
        return F.l1_loss(self.f0_hz(mel.transpose(1, 2)), measured)

    def f0_hz(self, mel: Tensor) -> Tensor:
        """Predict F0 (B, T) of log-mel frames (B, M, T)."""
        for layer in self.f0_layers:
            mel = F.elu(layer(mel))
        return _full(self.f0_out(mel.transpose(1, 2))).squeeze(-1).abs()

    def source(self, f0: Tensor, noise: Tensor, phases: Tensor) -> Tensor:
        """Return the source signal (B, S): harmonics where F0 (B, T) is voiced, and noise.

        `noise` (B, K, S) is normal, and `phases` (B, K) are those of the harmonics at the start, 0 for the first.
        """
        cycles = self.cycles(f0)
        voiced = (f0 > _VOICED_HZ).to(f0.dtype).repeat_interleave(self.shape.frame_samples, dim=1)[:, None]
        level = voiced * _NOISE_LEVEL + (1 - voiced) * _SINE_LEVEL / 3
        waves = voiced * _SINE_LEVEL * torch.sin(2 * math.pi * cycles + phases[..., None]) + level * noise
        return _full(self.source_mix(waves.transpose(1, 2))).squeeze(-1).tanh()

    def cycles(self, f0: Tensor) -> Tensor:
        """Return the position of each harmonic in its cycle (B, K, S), 0 to 1, for F0 (B, T)."""
        f0 = f0.repeat_interleave(self.shape.frame_samples, dim=1)[:, None]
        order = torch.arange(1, self.shape.harmonics + 2, device=f0.device)[:, None]
        return (f0 * order / self.spectrogram.config.sample_rate_hz).cumsum(-1) % 1

    def synthesize(self, mel: Tensor, source: Tensor) -> Tensor:
        """Return the samples (B, S) of log-mel frames (B, M, T), given the source signal (B, S)."""
        shape = self.shape
        spectrum = torch.stft(source, shape.fft_samples, shape.hop_samples, window=self.window, return_complex=True)
        spectrum = torch.cat([spectrum.real, spectrum.imag], dim=1)
        x = self.input(mel)
        for level, (up, down) in enumerate(zip(self.ups, self.source_downs, strict=True)):
            x = up(F.leaky_relu(x, _SLOPE))
            if level == len(self.ups) - 1:
                x = F.pad(x, (1, 0), mode="reflect")  # the spectrum has a frame more than the hops
            x = x + self.source_filters[level](down(spectrum))
            filters = self.filters[level * len(_KERNELS) : (level + 1) * len(_KERNELS)]
            x = torch.stack([part(x) for part in filters]).mean(0)
        magnitude, phase = _full(self.output(F.leaky_relu(x, _LAST_SLOPE))).chunk(2, dim=1)
        spectrum = torch.polar(magnitude.exp().clamp(max=_MAX_MAGNITUDE), phase.sin())
        samples = torch.istft(spectrum, shape.fft_samples, shape.hop_samples, window=self.window)
        return samples.clamp(-_MAX_SAMPLE, _MAX_SAMPLE)


def _full(x: Tensor) -> Tensor:
    """Return at least fp32, for phases and Fourier transforms under autocast."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _Filter(nn.Module):
    """Residual pairs of convolutions, the first of each pair dilated, with Snake activations before both."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()

        def conv(dilation: int) -> nn.Conv1d:
            return nn.Conv1d(channels, channels, kernel, dilation=dilation, padding=dilation * (kernel - 1) // 2)

        self.dilated = nn.ModuleList(conv(dilation) for dilation in _DILATIONS)
        self.plain = nn.ModuleList(conv(1) for _ in _DILATIONS)
        self.dilated_snakes = nn.ModuleList(_Snake(channels) for _ in _DILATIONS)
        self.plain_snakes = nn.ModuleList(_Snake(channels) for _ in _DILATIONS)

    def forward(self, x: Tensor) -> Tensor:
        for dilated, plain, first, second in zip(
            self.dilated, self.plain, self.dilated_snakes, self.plain_snakes, strict=True
        ):
            x = x + plain(second(dilated(first(x))))
        return x


class _Snake(nn.Module):
    """x + sin(a x)^2 / a, with a frequency `a` (C,) per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.frequency = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        frequency = self.frequency[:, None]
        return x + (x * frequency).sin().square() / (frequency + 1e-9)
