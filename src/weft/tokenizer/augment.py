"""Augmentation of training speech: its settings, speed perturbation and masks over the features.

    samples = at_speed(samples, 0.9)
    features = mask(features, config, rng)

Sources: SpecAugment (arXiv 1904.08779) without time warping; Ko et al. 2015 (Audio augmentation for speech recognition)
for speeds, which change tempo and pitch together. `weft.tokenizer.noise` adds noise, reverberation and telephones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from weft.audio import SAMPLE_RATE_HZ, resample
from weft.config import Decibels, Fraction, NonNegativeInt, PositiveFloat, PositiveInt
from weft.errors import UserError


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation, drawn for every utterance in every step. By default there is none."""

    time_masks: NonNegativeInt = 0
    """Time masks per utterance."""
    max_time_mask_frames: PositiveInt = 40
    """Longest time mask, in feature frames of 10 ms; lengths are uniform from 0 to this."""
    frequency_masks: NonNegativeInt = 0
    """Frequency masks per utterance."""
    max_frequency_mask_bands: PositiveInt = 27
    """Widest frequency mask, in mel bands; widths are uniform from 0 to this."""
    speeds: tuple[PositiveFloat, ...] = (1.0,)
    """Speeds to choose from, such as 0.9 1.0 1.1. An utterance keeps its speed if the chosen one makes it longer than
    Whisper's window or too short for its transcript."""

    noise_probability: Fraction = 0.0
    """Probability of synthetic noise, from white to brown."""
    babble_probability: Fraction = 0.0
    """Probability of babble: several other training utterances at once."""
    recording_probability: Fraction = 0.0
    """Probability of noise from the recordings of `noise`."""
    min_snr_db: Decibels = 5.0
    """Lowest ratio of speech to each noise, in dB; ratios are uniform up to `max_snr_db`."""
    max_snr_db: Decibels = 25.0
    """Highest ratio of speech to each noise, in dB."""
    reverberation_probability: Fraction = 0.0
    """Probability of reverberation by a random room."""
    telephone_probability: Fraction = 0.0
    """Probability of a telephone: 300 to 3,400 Hz in 8-bit mu-law."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "speeds", tuple(self.speeds) or (1.0,))
        if self.min_snr_db > self.max_snr_db:
            raise UserError(f"min_snr_db is {self.min_snr_db:g}: give at most max_snr_db, {self.max_snr_db:g}")

    @property
    def distorts(self) -> bool:
        """Whether it changes samples, apart from their speed."""
        probabilities = (
            self.noise_probability,
            self.babble_probability,
            self.recording_probability,
            self.reverberation_probability,
            self.telephone_probability,
        )
        return any(probabilities)


def at_speed(samples: np.ndarray, speed: float) -> np.ndarray:
    """Resample (S,) to `speed` times the speed, (S / speed,)."""
    return resample(samples, round(SAMPLE_RATE_HZ * speed), SAMPLE_RATE_HZ)


def samples_at_speed(num_samples: int, speed: float) -> int:
    """Return the number of samples that `at_speed` gives."""
    rate_hz = round(SAMPLE_RATE_HZ * speed)
    return (2 * num_samples * SAMPLE_RATE_HZ + rate_hz) // (2 * rate_hz)


def mask(features: Tensor, config: AugmentConfig, rng: np.random.Generator) -> Tensor:
    """Set masked frames and bands of features (M, T) to their mean; return a copy if there are masks."""
    if not config.time_masks and not config.frequency_masks:
        return features
    masked, mean = features.clone(), features.mean()
    for _ in range(config.time_masks):
        masked[:, _span(rng, features.shape[1], config.max_time_mask_frames)] = mean
    for _ in range(config.frequency_masks):
        masked[_span(rng, features.shape[0], config.max_frequency_mask_bands)] = mean
    return masked


def _span(rng: np.random.Generator, total: int, longest: int) -> slice:
    """Draw a span of 0 to `longest` of `total` positions."""
    length = int(rng.integers(min(longest, total) + 1))
    start = int(rng.integers(total - length + 1))
    return slice(start, start + length)
