"""Log-mel features of windows of speech, each padded to whole codes.

Shapes: S samples, B batch, M mel bands, T encoder frames (50 per second; two mel frames each).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from weft.audio import HALF_WINDOW_SAMPLES, HOP_SAMPLES, LOOK_AHEAD_SAMPLES, LogMel, mirror
from weft.tokenizer.encoder import SAMPLES_PER_FRAME, BottleneckWhisper, valid_frames

_SILENCE = torch.zeros(LOOK_AHEAD_SAMPLES)
_MARGIN_SAMPLES = HALF_WINDOW_SAMPLES + LOOK_AHEAD_SAMPLES
_TO_WHOLE_FRAME = torch.zeros(-_MARGIN_SAMPLES % HOP_SAMPLES)
_UNUSED_FRAMES = (_MARGIN_SAMPLES + len(_TO_WHOLE_FRAME)) // HOP_SAMPLES


class FeatureExtractor:
    """Computes the log-mel features that a tokenizer's model expects, on the model's device or another."""

    def __init__(self, model: BottleneckWhisper, device: str | None = None) -> None:
        self._model, self._device = model, device
        self.log_mel = LogMel(model.whisper_config.num_mel_bins, model.config.log_mel_floor)
        self.samples_per_code = SAMPLES_PER_FRAME * model.config.pooling

    @property
    def device(self) -> torch.device:
        return torch.device(self._device) if self._device else self._model.positions_after.weight.device

    def __call__(self, windows: Sequence[np.ndarray], longest_samples: Sequence[int]) -> list[Tensor]:
        """Return the features (M, 2T) of windows (S,).

        `longest_samples` has, for each window, the length of the longest window of its recording. Whisper mirrors the
        end of windows of that length and pads shorter ones with silence, which symmetric convolutions depend on. All
        windows are computed in one call, each with its margins.
        """
        causal, mirrored = self._model.config.causal_convolution, self.log_mel.floor == "window"
        lengths, parts = [], []
        for window, longest in zip(windows, longest_samples, strict=True):
            own, max_length = (-(-n // self.samples_per_code) * self.samples_per_code for n in (len(window), longest))
            lengths.append(own if causal else max(own, max_length))
            x = torch.from_numpy(np.ascontiguousarray(window, dtype=np.float32))
            x = F.pad(x, (0, lengths[-1] - len(window)))
            after = x[-LOOK_AHEAD_SAMPLES - 1 : -1].flip(0) if mirrored and lengths[-1] >= max_length else _SILENCE
            parts += [mirror(x), x, after, _TO_WHOLE_FRAME]
        log = self.log_mel.to(self.device).log_power(torch.cat(parts)[None].to(self.device))[0]
        starts = accumulate([0, *(n // HOP_SAMPLES + _UNUSED_FRAMES for n in lengths[:-1])])
        return [self.log_mel.floored(log[:, s : s + n // HOP_SAMPLES]) for s, n in zip(starts, lengths, strict=True)]

    def collate(self, features: Sequence[Tensor], num_samples: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Pad features (M, 2T) to a batch (B, M, 2T); return it with its valid frames (B, T)."""
        batch = torch.zeros(len(features), features[0].shape[0], max(f.shape[1] for f in features))
        for row, f in enumerate(features):
            batch[row, :, : f.shape[1]] = f
        return batch.to(self.device), valid_frames(num_samples, batch.shape[2] // 2).to(self.device)
