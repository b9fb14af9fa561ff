"""Reads utterances as log-mel features, with the audio of as many as fit in memory.

    read = Reader(config, tokenizer)
    speech = read(item, speed=1.0)
    features = read.features(speech), read.features(speech, rng)    # undistorted, and distorted by draws from rng

Without distortions, features are kept. With them, clean samples are, and features are computed at every call. All of it
runs on the CPU, in threads of the caller, so that it does not wait for the training step on a GPU.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from weft.audio import HOP_SAMPLES, load
from weft.data.skipped import Skipped
from weft.errors import UserError
from weft.tokenizer.augment import at_speed
from weft.tokenizer.config import TokenizerConfig
from weft.tokenizer.features import FeatureExtractor
from weft.tokenizer.items import Item
from weft.tokenizer.noise import Distortions
from weft.tokenizer.tokenizer import SpeechTokenizer

_FULL_SCALE = 1 << 15


@dataclass(frozen=True)
class Speech:
    """What is kept of an item: features (M, 2T) in half precision, or 16-bit samples (S,)."""

    data: Tensor
    num_samples: int


class Reader:
    """Reads items, and computes features, from memory if possible. It can be called by several threads."""

    def __init__(self, config: TokenizerConfig, tokenizer: SpeechTokenizer) -> None:
        self.unreadable = dict[str, str]()
        """The ids of items whose audio cannot be read, with reasons."""
        self.distort: Distortions | None = None
        self._keeps_samples = config.augment.distorts
        self._extract = FeatureExtractor(tokenizer.model, "cpu")
        self._max_bytes, self._bytes = 1e9 * config.cache_gb, 0
        self._kept, self._lock = dict[tuple[int, float], Speech](), threading.Lock()
        num_mels = tokenizer.model.whisper_config.num_mel_bins
        self._bytes_per_frame = 2 * (HOP_SAMPLES if self._keeps_samples else num_mels)

    def fits(self, num_frames: int) -> bool:
        """Whether so many frames of 10 ms fit in memory."""
        return self._bytes_per_frame * num_frames <= self._max_bytes

    def is_kept(self, item: Item) -> bool:
        """Whether an item is in memory, at its own speed."""
        return (item.number, 1.0) in self._kept

    def __call__(self, item: Item, speed: float = 1.0) -> Speech | None:
        """Return an item at a speed, and keep it if there is room; None if its audio cannot be read."""
        if (found := self._kept.get((item.number, speed))) is not None:
            return found
        if self._keeps_samples and speed != 1.0:  # resampling takes a tenth of the time of reading
            kept = self(item)
            return kept and _from_samples(at_speed(self.samples(kept), speed))
        problem = Skipped()
        with problem.on_error(item.utterance.id):
            samples = load(item.utterance.audio)
            if len(samples) > item.num_samples + self._extract.samples_per_code:
                raise UserError(f"{item.utterance.audio} is longer than its header says: convert it to WAV or FLAC")
            samples = at_speed(samples[: item.num_samples], speed)
            if self._keeps_samples:
                found = _from_samples(samples)
            else:
                found = Speech(self._features(samples).half(), len(samples))
        if found is None:
            self.unreadable.update(problem.bad)
            return None
        with self._lock:
            if self._bytes + found.data.nbytes <= self._max_bytes:
                self._bytes += found.data.nbytes
                self._kept[item.number, speed] = found
        return found

    def features(self, speech: Speech, rng: np.random.Generator | None = None) -> Tensor:
        """Return the features (M, 2T) of an item. With `rng`, its samples are distorted by draws from it."""
        if not self._keeps_samples:
            return speech.data.float()
        samples = self.samples(speech)
        return self._features(self.distort(samples, rng) if self.distort and rng else samples)

    def samples(self, speech: Speech) -> np.ndarray:
        """Return the samples (S,) of an item that is kept as samples."""
        return (speech.data.float() / _FULL_SCALE).numpy()

    def _features(self, samples: np.ndarray) -> Tensor:
        return self._extract([samples], [len(samples)])[0]


def _from_samples(samples: np.ndarray) -> Speech:
    """Keep samples as 16-bit integers, which lose nothing of 16-bit audio at 16 kHz."""
    scaled = torch.from_numpy(samples) * _FULL_SCALE
    return Speech(scaled.round().clamp(-_FULL_SCALE, _FULL_SCALE - 1).to(torch.int16), len(samples))
