"""Discriminators of recorded and generated audio, for training a vocoder.

    discriminators = Discriminators(DiscriminatorShape())
    scores, features = discriminators(samples)         # of every discriminator, and of its layers

One kind sees the samples of a period as columns of an image, the other the magnitudes of a spectrogram.

Shapes: B batch, S samples, C channels, H and W image sizes that differ between discriminators.

Sources: HiFi-GAN (arXiv 2010.05646) for periods; UnivNet (arXiv 2106.07889) for spectrograms. Our choice: a width, with
which both become small enough for a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from weft.config import PositiveInt

_SLOPE = 0.1
_MIN_MAGNITUDE = 1e-5


@dataclass(frozen=True)
class DiscriminatorShape:
    """Shape of the discriminators, which are needed in training only."""

    width: PositiveInt = 32
    """Channels of the first layer. The widest layers of the period discriminators have 32 times as many."""
    periods: tuple[PositiveInt, ...] = (2, 3, 5, 7, 11)
    """Periods in samples, with a discriminator each."""
    windows: tuple[PositiveInt, ...] = (512, 1024, 2048)
    """Windows of spectrograms in samples, with a discriminator each; hops are a quarter."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "periods", tuple(self.periods))
        object.__setattr__(self, "windows", tuple(self.windows))


class Discriminators(nn.Module):
    """All discriminators."""

    def __init__(self, shape: DiscriminatorShape) -> None:
        super().__init__()
        periods = [_OfPeriod(period, shape.width) for period in shape.periods]
        windows = [_OfSpectrogram(window, shape.width) for window in shape.windows]
        self.parts = nn.ModuleList([*periods, *windows])

    def forward(self, samples: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        """Return the scores (B, N) of samples (B, S) by each discriminator, and its features (B, C, H, W) by layer."""
        found = [part(samples) for part in self.parts]
        return [features[-1].flatten(1).float() for features in found], [features[:-1] for features in found]


class _OfImages(nn.Module):
    """Convolutions over images (B, C, H, W); the last has the score."""

    def __init__(self, layers: list[nn.Conv2d]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(weight_norm(layer) for layer in layers)

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the output of every layer."""
        found = []
        for layer in self.layers[:-1]:
            x = F.leaky_relu(layer(x), _SLOPE)
            found.append(x)
        return [*found, self.layers[-1](x)]


class _OfPeriod(_OfImages):
    def __init__(self, period: int, width: int) -> None:
        sizes = [1, width, 4 * width, 16 * width, 32 * width, 32 * width]
        strides = [3, 3, 3, 3, 1]
        layers = [
            nn.Conv2d(before, after, (5, 1), (stride, 1), (2, 0))
            for before, after, stride in zip(sizes, sizes[1:], strides, strict=False)
        ]
        super().__init__([*layers, nn.Conv2d(sizes[-1], 1, (3, 1), padding=(1, 0))])
        self.period = period

    def forward(self, samples: Tensor) -> list[Tensor]:
        padded = F.pad(samples[:, None], (0, -samples.shape[1] % self.period), mode="reflect")
        return self.features(padded.unflatten(2, (-1, self.period)))


class _OfSpectrogram(_OfImages):
    window: Tensor

    def __init__(self, window: int, width: int) -> None:
        layers = [nn.Conv2d(1, width, (3, 9), padding=(1, 4))]
        layers += [nn.Conv2d(width, width, (3, 9), (1, 2), (1, 4)) for _ in range(3)]
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, 1, 3, padding=1)]
        super().__init__(layers)
        self.register_buffer("window", torch.hann_window(window), persistent=False)

    def forward(self, samples: Tensor) -> list[Tensor]:
        size = len(self.window)
        spectrum = torch.stft(samples.float(), size, size // 4, window=self.window, return_complex=True)
        return self.features(spectrum.abs().clamp(min=_MIN_MAGNITUDE).pow(0.3).transpose(1, 2)[:, None])
