"""Losses of a vocoder: distance of mel spectrograms, and adversarial losses.

    training = VocoderTraining(vocoder, DiscriminatorShape(), LossConfig())
    losses = training.losses(samples, adversarial=True)
    training.start_average()                           # once
    training.average.update(training.vocoder, decay)   # after a step; `training.average.model` is the result

Generator and discriminators are trained by one backward pass of one sum. The discriminators see generated audio without
its gradient, and the generator's losses come from discriminators without theirs, so neither part receives the
gradients of the other's losses.

Sources: Vocos (arXiv 2306.00814) for the losses and their weights, with hinge losses; the distance of several mel
spectrograms as in DAC (arXiv 2306.06546). Our choice: both parts are updated in the same step.

Shapes: B batch, S samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from weft.config import NonNegativeFloat
from weft.decoder.discriminators import Discriminators, DiscriminatorShape
from weft.decoder.mel import MelConfig, MelSpectrogram
from weft.decoder.published.hift import HiFT
from weft.decoder.vocoder import Vocoder
from weft.training.average import Average

_WINDOWS_SEC, _BANDS = (0.008, 0.016, 0.032, 0.064, 0.128), (20, 40, 80, 120, 160)


@dataclass(frozen=True)
class LossConfig:
    """Weights of the vocoder's losses."""

    mel_weight: NonNegativeFloat = 45.0
    """Weight of the distance of mel spectrograms."""
    feature_weight: NonNegativeFloat = 1.0
    """Weight of the distance of the discriminators' features."""
    adversarial_weight: NonNegativeFloat = 1.0
    """Weight of the discriminators' scores."""
    f0_weight: NonNegativeFloat = 1.0
    """Weight of the error of F0 in Hz, which HiFT predicts."""


class MelDistance(nn.Module):
    """The mean absolute difference of log-mel spectrograms with windows from 8 to 128 ms."""

    def __init__(self, sample_rate_hz: int) -> None:
        super().__init__()
        sizes = [4 * round(sample_rate_hz * sec / 4) for sec in _WINDOWS_SEC]
        self.spectrograms = nn.ModuleList(
            MelSpectrogram(MelConfig(sample_rate_hz, size, size // 4 + size // 4 % 2, bands))
            for size, bands in zip(sizes, _BANDS, strict=True)
        )

    def forward(self, found: Tensor, expected: Tensor) -> Tensor:
        """Return the distance of samples (B, S)."""
        return torch.stack([(of(found) - of(expected)).abs().mean() for of in self.spectrograms]).mean()


class VocoderTraining(nn.Module):
    """A vocoder and its discriminators; and the average of the vocoder's weights, once `start_average` was called."""

    average: Average[Vocoder | HiFT]

    def __init__(self, vocoder: Vocoder | HiFT, discriminators: DiscriminatorShape, config: LossConfig) -> None:
        super().__init__()
        self.config, self.vocoder = config, vocoder
        self.discriminators = Discriminators(discriminators)
        self.distance = MelDistance(vocoder.spectrogram.config.sample_rate_hz)

    def start_average(self) -> None:
        """Start the average with the present weights."""
        self.average = Average(self.vocoder)

    def losses(self, samples: Tensor, adversarial: bool) -> dict[str, Tensor]:
        """Return the losses of recorded samples (B, S); "loss" is their weighted sum."""
        config, frames = self.config, self.vocoder.spectrogram(samples)
        generated = self.vocoder(frames)
        losses = {"mel": self.distance(generated, samples)}
        loss = config.mel_weight * losses["mel"]
        if isinstance(self.vocoder, HiFT):
            losses["f0"] = self.vocoder.f0_loss(frames, samples)
            loss = loss + config.f0_weight * losses["f0"]
        if adversarial:
            found = self._adversarial(generated, samples)
            loss = loss + config.feature_weight * found["features"] + config.adversarial_weight * found["generator"]
            loss, losses = loss + found["discriminator"], losses | found
        return {"loss": loss, **losses}

    def _adversarial(self, generated: Tensor, samples: Tensor) -> dict[str, Tensor]:
        """Return the loss of the discriminators, and the generator's losses by them, for samples (B, S)."""
        scores, features = self.discriminators(samples)
        wrong, _ = self.discriminators(generated.detach())
        parts = [(1 - real).relu().mean() + (1 + fake).relu().mean() for real, fake in zip(scores, wrong, strict=True)]
        fixed = {name: p.detach() for name, p in self.discriminators.named_parameters()}
        fooled, imitated = functional_call(self.discriminators, fixed, (generated,))
        pairs = [
            (real.detach() - fake).abs().mean()
            for of_real, of_fake in zip(features, imitated, strict=True)
            for real, fake in zip(of_real, of_fake, strict=True)
        ]
        return {
            "discriminator": torch.stack(parts).mean(),
            "generator": torch.stack([(1 - score).relu().mean() for score in fooled]).mean(),
            "features": torch.stack(pairs).mean(),
        }
