"""Random clips of recordings, for training a vocoder.

    clips = Clips(utterances, mel, num_frames=100, batch_clips=16, seed=0, cache_gb=4)
    samples = clips.batch_at(step)          # (B, S), the same for the same step in every run

A clip is anywhere in an utterance, and every second of speech is equally likely. Its level is random. Up to `cache_gb`
of audio stays in memory, 0.17 GB per hour at 24 kHz.

Shapes: B batch, S samples.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from weft.audio import SAMPLE_RATE_HZ
from weft.data.skipped import Skipped
from weft.data.speech import audio_lengths, load_speech
from weft.decoder.mel import MelConfig
from weft.errors import UserError
from weft.records import Utterance
from weft.training.prefetch import data_threads

_FULL_SCALE = 1 << 15
_GAIN_DB = (-10.0, 3.0)


class Clips:
    """Clips of the utterances whose length can be read.

    `skipped` has the others, and `unreadable` those whose audio could not be read later, by id.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        mel: MelConfig,
        num_frames: int,
        batch_clips: int,
        seed: int,
        cache_gb: float,
    ) -> None:
        """Measure the utterances. Raises UserError if none can be read."""
        self._rate_hz, self._num_samples = mel.sample_rate_hz, num_frames * mel.hop_samples
        self._batch_clips, self._seed = batch_clips, seed
        self.unreadable = dict[str, str]()
        self.skipped, found, ends = Skipped(), list[Utterance](), [0]
        for utterance, length in zip(utterances, audio_lengths(utterances), strict=True):
            if isinstance(length, str):
                self.skipped.add(utterance.id, length)
                continue
            found.append(utterance)
            ends.append(ends[-1] + length)
        if not found:
            where, reason = self.skipped.bad[0] if self.skipped.bad else ("", "there is none")
            raise UserError(f"no recording can be read: fix it; the first is {where} ({reason})")
        self.skipped.num_good = len(found)
        self.seconds = ends[-1] / SAMPLE_RATE_HZ
        self._utterances, self._ends = found, np.array(ends[1:])
        self._kept, self._max_bytes, self._bytes = dict[int, np.ndarray](), 1e9 * cache_gb, 0
        self._lock, self._threads = threading.Lock(), data_threads(2)

    def batch_at(self, step: int, part: slice = slice(None)) -> Tensor | None:
        """Return clips (B, S) `part` of a step; None if there are none. A clip that cannot be read is silent."""
        rng = np.random.default_rng((self._seed, step))
        size = self._batch_clips
        rows = np.searchsorted(self._ends, rng.integers(0, self._ends[-1], size), side="right")
        draws = [*zip(rows.tolist(), rng.random(size).tolist(), rng.random(size).tolist(), strict=True)]
        clips = list(self._threads.map(self._clip, draws[part]))
        return torch.from_numpy(np.stack(clips)) if clips else None

    def _clip(self, draw: tuple[int, float, float]) -> np.ndarray:
        """Return a clip (S,) of an utterance that starts at a fraction of the possible positions."""
        row, start, gain = draw
        samples = self._samples(row)
        first = int(start * (max(0, len(samples) - self._num_samples) + 1))
        clip = samples[first : first + self._num_samples].astype(np.float32) / _FULL_SCALE
        scale = 10 ** ((_GAIN_DB[0] + gain * (_GAIN_DB[1] - _GAIN_DB[0])) / 20)
        clip *= min(scale, 0.99 / max(1e-3, float(np.abs(clip).max())))
        return np.pad(clip, (0, self._num_samples - len(clip)))

    def _samples(self, row: int) -> np.ndarray:
        """Return the 16-bit samples (S,) of an utterance, none if it cannot be read."""
        if (kept := self._kept.get(row)) is not None:
            return kept
        problem, samples = Skipped(), np.zeros(0, np.int16)
        with problem.on_error(self._utterances[row].id):
            scaled = _FULL_SCALE * load_speech(self._utterances[row], self._rate_hz)
            samples = scaled.round().clip(-_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)
        with self._lock:
            self.unreadable |= dict(problem.bad)
            if self._bytes + samples.nbytes <= self._max_bytes:
                self._bytes += samples.nbytes
                self._kept[row] = samples
        return samples

    def __enter__(self) -> Clips:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)
