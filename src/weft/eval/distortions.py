"""Distortions of speech that a tokenizer is measured on, the same in every evaluation.

    distort = DISTORTIONS["reverberation"]
    samples = distort(samples, name)                # 16 kHz (S,); `name` of the utterance determines what is random

They are those of training (`weft.tokenizer.noise`) with other random numbers, but for the codec and the speeds.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from zlib import crc32

import numpy as np
import soundfile

from weft.audio import SAMPLE_RATE_HZ
from weft.tokenizer.augment import at_speed
from weft.tokenizer.noise import by_telephone, reverberate, with_noise

Distort = Callable[[np.ndarray, str], np.ndarray]
_LOWEST_BITRATE = 1.0  # of libsndfile's scale: 6 kbit/s


def at_snr_db(snr_db: float) -> Distort:
    """Return a distortion by synthetic noise at a ratio of speech to noise."""
    return lambda samples, name: with_noise(samples, snr_db, name)


def by_opus(samples: np.ndarray, name: str = "") -> np.ndarray:
    """Return samples (S,) after Opus at 6 kbit/s."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLE_RATE_HZ, format="OGG", subtype="OPUS", compression_level=_LOWEST_BITRATE)
    buffer.seek(0)
    decoded = soundfile.read(buffer, dtype="float32")[0][: len(samples)]
    return np.pad(decoded, (0, len(samples) - len(decoded)))


def _in_a_room(samples: np.ndarray, name: str) -> np.ndarray:
    return reverberate(samples, np.random.default_rng(crc32(name.encode())))


def _at_speed(samples: np.ndarray, name: str, speed: float) -> np.ndarray:
    return at_speed(samples, speed)


DISTORTIONS: dict[str, Distort] = {
    "reverberation": _in_a_room,
    "telephone": lambda samples, name: by_telephone(samples),
    "opus": by_opus,
    "slower": partial(_at_speed, speed=0.9),
    "faster": partial(_at_speed, speed=1.1),
}
