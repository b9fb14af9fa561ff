"""Augmentation of speech while a recognizer trains: other speeds, and masks over its features.

    samples = at_speed(samples, 0.9)
    features = mask(features, config, rng)

Sources: masks as in SpecAugment (arXiv 1904.08779), without its time warping; speeds as in Ko et al. 2015 (Audio
augmentation for speech recognition), tempo and pitch together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from weft.audio import SAMPLE_RATE_HZ, resample
from weft.config import Count, Natural, Positive


@dataclass(frozen=True)
class AugmentConfig:
    """What is done to the speech of every step, each utterance by itself. Nothing, unless it is asked for."""

    time_masks: Natural = 0
    """Spans of time, in each utterance, that are hidden."""
    max_time_mask_frames: Count = 40
    """Longest such span, in feature frames of 10 ms; its length is drawn evenly from 0 to this."""
    frequency_masks: Natural = 0
    """Ranges of mel bands, in each utterance, that are hidden."""
    max_frequency_mask_bands: Count = 27
    """Widest such range; its width is drawn evenly from 0 to this."""
    speeds: tuple[Positive, ...] = (1.0,)
    """Speeds that are drawn from, such as 0.9 1.0 1.1; an utterance keeps its own where the drawn one makes it longer
    than Whisper's window, or too short for its transcript."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "speeds", tuple(self.speeds) or (1.0,))


def at_speed(samples: np.ndarray, speed: float) -> np.ndarray:
    """Samples (S,) as they sound played `speed` times as fast, (S / speed,)."""
    return resample(samples, round(SAMPLE_RATE_HZ * speed), SAMPLE_RATE_HZ)


def samples_at_speed(num_samples: int, speed: float) -> int:
    """How many samples `at_speed` gives."""
    rate_hz = round(SAMPLE_RATE_HZ * speed)
    return (2 * num_samples * SAMPLE_RATE_HZ + rate_hz) // (2 * rate_hz)


def mask(features: Tensor, config: AugmentConfig, rng: np.random.Generator) -> Tensor:
    """Features (M, T) with some of their time and of their bands at the mean of all, a copy if there are any."""
    if not config.time_masks and not config.frequency_masks:
        return features
    masked, mean = features.clone(), features.mean()
    for _ in range(config.time_masks):
        masked[:, _span(rng, features.shape[1], config.max_time_mask_frames)] = mean
    for _ in range(config.frequency_masks):
        masked[_span(rng, features.shape[0], config.max_frequency_mask_bands)] = mean
    return masked


def _span(rng: np.random.Generator, total: int, most: int) -> slice:
    """A span of 0 to `most` places among `total`."""
    length = int(rng.integers(min(most, total) + 1))
    start = int(rng.integers(total - length + 1))
    return slice(start, start + length)
