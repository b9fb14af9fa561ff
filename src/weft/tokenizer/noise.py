"""Distortions of training speech: noise at a random ratio, reverberation, and telephones.

    distort = Distortions(config, babble=NoiseLoop.of(speech), recordings=NoiseLoop.of(recordings))
    samples = distort(samples, rng)

All of them keep the length, and no sound moves in time, so that codes of distorted speech align with those of the
original. Noise is prepared once, and a random part of it is added to an utterance.

Sources: StableToken (arXiv 2509.22220), for noisy views of speech; Ko et al. 2017 (A study on data augmentation
of reverberant speech for robust speech recognition). Babble as in MUSAN (arXiv 1510.08484): 3 to 7 talkers. Impulse
responses are exponentially decaying noise (Moorer 1979, About this reverberation business). Telephones: ITU-T G.711.

Shapes: S samples, at 16 kHz.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from zlib import crc32

import numpy as np
import torch

from weft.audio import SAMPLE_RATE_HZ
from weft.tokenizer.augment import AugmentConfig

_LOOP_SAMPLES = 1 << 20  # of synthetic noise
_POOL_SEC = 3600  # of babble or recordings: 0.115 GB
_MAX_PIECE_SEC = 30
_TALKERS = (3, 7)
_RT60_SEC = (0.1, 0.8)
_DIRECT_DB = (0.0, 12.0)  # energy of the direct sound over that of the reverberation
_TELEPHONE_HZ = (300, 3400)
_MU = 255
_ROUND_SAMPLES = 4096  # lengths of Fourier transforms are multiples of it, which are fast


class NoiseLoop:
    """Noise (S,) in half precision, which is repeated without end."""

    def __init__(self, samples: np.ndarray) -> None:
        self._samples = samples.astype(np.float16)

    @classmethod
    def of(cls, sounds: Iterable[np.ndarray], rng: np.random.Generator) -> NoiseLoop | None:
        """Join parts of sounds (S,), all equally loud, until there is an hour; None if all are silent."""
        pieces, total = list[np.ndarray](), 0
        for sound in sounds:
            num = min(len(sound), _MAX_PIECE_SEC * SAMPLE_RATE_HZ)
            start = int(rng.integers(len(sound) - num + 1))
            piece = sound[start : start + num]
            if power := _power(piece):
                pieces.append((0.1 * piece / np.sqrt(power)).astype(np.float16))
                total += num
            if total >= _POOL_SEC * SAMPLE_RATE_HZ:
                break
        return cls(np.concatenate(pieces)) if pieces else None

    def part(self, num_samples: int, rng: np.random.Generator) -> np.ndarray:
        """Return a random part (num_samples,)."""
        start = int(rng.integers(len(self._samples)))
        part = self._samples[start : start + num_samples]
        if len(part) < num_samples:
            part = np.take(self._samples, np.arange(start, start + num_samples), mode="wrap")
        return torch.from_numpy(part).float().numpy()  # numpy converts more slowly


class Distortions:
    """Distorts utterances at random, each kind with its own probability.

    `babble` has single voices, and `recordings` noise. Without one of them, noise of its kind is not added.
    """

    def __init__(self, config: AugmentConfig, babble: NoiseLoop | None, recordings: NoiseLoop | None) -> None:
        self._config, self._babble, self._recordings = config, babble, recordings

    def __call__(self, samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return samples (S,), distorted by draws from `rng`, or the same array."""
        config = self._config
        noise, babble, recording, reverberation, telephone = rng.random(5) < (
            config.noise_probability,
            config.babble_probability,
            config.recording_probability,
            config.reverberation_probability,
            config.telephone_probability,
        )
        speech = reverberate(samples, rng) if reverberation else samples
        out = speech
        if noise:
            out = out + self._scaled(synthetic_noise(len(speech), rng), speech, rng)
        if babble and self._babble:
            voices = [self._babble.part(len(speech), rng) for _ in range(rng.integers(*_TALKERS, endpoint=True))]
            out = out + self._scaled(np.sum(voices, axis=0), speech, rng)
        if recording and self._recordings:
            out = out + self._scaled(self._recordings.part(len(speech), rng), speech, rng)
        return by_telephone(out) if telephone else out

    def _scaled(self, noise: np.ndarray, speech: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return at_snr(noise, speech, rng.uniform(self._config.min_snr_db, self._config.max_snr_db))


def at_snr(noise: np.ndarray, speech: np.ndarray, snr_db: float) -> np.ndarray:
    """Scale noise (S,) to a ratio to speech (S,) in dB, of mean powers. Silent noise stays silent."""
    power = _power(noise)
    scale = np.sqrt(_power(speech) / power) * 10 ** (-snr_db / 20) if power else 0.0
    return (scale * noise).astype(np.float32)


def with_noise(samples: np.ndarray, snr_db: float, name: str) -> np.ndarray:
    """Return samples (S,) with synthetic noise at a ratio, for evaluation.

    The noise is a function of `name`, that of the utterance, and training never contains it.
    """
    rng = np.random.default_rng(crc32(name.encode()))
    return samples + at_snr(synthetic_noise(len(samples), rng, for_training=False), samples, snr_db)


def synthetic_noise(num_samples: int, rng: np.random.Generator, for_training: bool = True) -> np.ndarray:
    """Return noise (num_samples,) of unit power, a random mixture of white, pink and brown noise."""
    weights, loops = rng.dirichlet(np.ones(3)) ** 0.5, _loops(seed=0 if for_training else 1)
    return np.sum([w * loop.part(num_samples, rng) for w, loop in zip(weights, loops, strict=True)], axis=0)


@cache
def _loops(seed: int) -> tuple[NoiseLoop, ...]:
    """Return white, pink and brown noise of unit power: their power falls by 0, 3 and 6 dB per octave above 20 Hz."""
    rng = np.random.default_rng(seed)
    hz = np.fft.rfftfreq(_LOOP_SAMPLES, 1 / SAMPLE_RATE_HZ)
    loops = []
    for exponent in (0, 1, 2):
        spectrum = np.fft.rfft(rng.standard_normal(_LOOP_SAMPLES)) * np.maximum(hz, 20.0) ** (-exponent / 2)
        spectrum[hz < 20.0] = 0.0
        noise = np.fft.irfft(spectrum)
        loops.append(NoiseLoop(noise / noise.std()))
    return tuple(loops)


def reverberate(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add the reverberation of a random room to samples (S,), whose power stays the same.

    The direct sound comes first, at time 0.
    """
    rt60_sec, direct_db = rng.uniform(*_RT60_SEC), rng.uniform(*_DIRECT_DB)
    time_sec = np.arange(int(rt60_sec * SAMPLE_RATE_HZ), dtype=np.float32) / SAMPLE_RATE_HZ
    response = rng.standard_normal(len(time_sec), np.float32) * np.exp(-3 * np.log(10.0) / rt60_sec * time_sec)
    response *= 10 ** (-direct_db / 20) / np.sqrt(np.vdot(response, response))
    response[0] += 1.0
    size = _fast_size(len(samples) + len(response))
    spectrum = torch.fft.rfft(torch.from_numpy(samples), size) * torch.fft.rfft(
        torch.from_numpy(response).float(), size
    )
    out = torch.fft.irfft(spectrum, size)[: len(samples)].numpy()
    return at_snr(out, samples, 0.0)


def by_telephone(samples: np.ndarray) -> np.ndarray:
    """Return samples (S,) after a telephone: band-limited, at 8 kHz, and in 8-bit mu-law."""
    size = _fast_size(len(samples))
    spectrum = torch.fft.rfft(torch.from_numpy(samples), size)[: size // 4 + 1]
    low, high = (round(hz * size / SAMPLE_RATE_HZ) for hz in _TELEPHONE_HZ)
    spectrum[:low], spectrum[high:] = 0, 0
    narrow = torch.fft.irfft(spectrum, size // 2) / 2  # at 8 kHz
    compressed = narrow.clamp(-1, 1).abs().mul(_MU).log1p() / np.log1p(_MU)
    levels = (compressed * narrow.sign() * 127).round() / 127
    expanded = (levels.abs() * np.log1p(_MU)).expm1() / _MU * levels.sign()
    return 2 * torch.fft.irfft(torch.fft.rfft(expanded), size)[: len(samples)].numpy()


def _power(samples: np.ndarray) -> float:
    return float(np.vdot(samples, samples)) / max(1, len(samples))


def _fast_size(num_samples: int) -> int:
    return -(-num_samples // _ROUND_SAMPLES) * _ROUND_SAMPLES
