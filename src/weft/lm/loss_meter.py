"""Losses by modality and by source, in units that are comparable between models.

    meter = LossMeter(Units(vocab, frame_rate_hz=12.5), ("text", "interleaved"))
    meter.add(token_losses(model, batch), batch.targets, sources)
    meter.metrics()             # loss, loss.text, loss.speech, nats_per_sec.speech, bits_per_byte.text
    meter.of("interleaved")     # the same for one source

A loss in nats per token depends on vocabulary and codebook. Bits per byte of text and nats per second of speech do not.

Shapes: N targets, S sources, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from weft.lm.text_bytes import text_bytes
from weft.training import distributed
from weft.vocab import SpeechVocab

_TEXT, _SPEECH, _CONTROL = range(3)


@dataclass(frozen=True)
class Units:
    """The vocabulary, which determines the modality of an id and its bytes of text, and the frame rate."""

    vocab: SpeechVocab
    frame_rate_hz: float | None = None
    """Codes per second, if known."""

    @cached_property
    def text_bytes(self) -> np.ndarray:
        """Bytes of text of each id, (V,)."""
        return text_bytes(self.vocab.tokenizer)


class LossMeter:
    """Sums of losses by source and modality. They stay on the device of the losses until they are read."""

    def __init__(self, units: Units, sources: Sequence[str]) -> None:
        self._units, self._sources = units, tuple(sources)
        self._losses: Tensor | None = None  # (3 S,) float64
        self._targets = np.zeros(3 * len(sources), np.int64)
        self._bytes = np.zeros(len(sources), np.int64)

    def add(self, losses: Tensor, targets: Tensor, sources: np.ndarray) -> None:
        """Add `losses` (N,) of the ids `targets` (N,), which belong to the sources with indices `sources` (N,)."""
        ids, num = targets.numpy(), len(self._sources)
        vocab = self._units.vocab
        modalities = np.where(vocab.is_audio(ids), _SPEECH, np.where(vocab.is_control(ids), _CONTROL, _TEXT))
        cells = 3 * sources + modalities
        self._targets += np.bincount(cells, minlength=3 * num)
        text = modalities == _TEXT
        self._bytes += np.bincount(sources[text], self._units.text_bytes[ids[text]], num).astype(np.int64)
        if self._losses is None:
            self._losses = losses.new_zeros(3 * num, dtype=torch.float64)
        self._losses.index_add_(0, torch.from_numpy(cells).to(losses.device), losses.detach().double())

    def all_reduced(self) -> LossMeter:
        """Return a meter with the losses of all ranks, on the CPU. All ranks must call it."""
        total = LossMeter(self._units, self._sources)
        counts = torch.from_numpy(np.concatenate((self._targets, self._bytes)))
        total._losses = torch.zeros(len(self._targets), dtype=torch.float64)
        if self._losses is not None:
            total._losses += self._losses.cpu()
        distributed.all_reduce(counts, total._losses)
        total._targets, total._bytes = np.split(counts.numpy(), [len(self._targets)])
        return total

    def metrics(self) -> dict[str, float]:
        """Return mean losses over all sources by name, without those that have no targets.

        `loss` is the mean over all targets, in nats per token. `loss.text` and `loss.speech` exclude markers, roles and
        ends. `nats_per_sec.speech` is per second of speech, `bits_per_byte.text` per byte of text.
        """
        return self._means(slice(None))

    def of(self, source: str) -> dict[str, float]:
        """Return `metrics` of one source."""
        i = self._sources.index(source)
        return self._means(slice(i, i + 1))

    def _means(self, sources: slice) -> dict[str, float]:
        sums = np.zeros(len(self._targets)) if self._losses is None else self._losses.cpu().numpy()
        losses, targets = (x.reshape(-1, 3)[sources].sum(0) for x in (sums, self._targets))
        num_bytes = self._bytes[sources].sum()
        means = {}
        if targets.sum():
            means["loss"] = losses.sum() / targets.sum()
        if targets[_TEXT]:
            means["loss.text"] = losses[_TEXT] / targets[_TEXT]
        if targets[_SPEECH]:
            means["loss.speech"] = losses[_SPEECH] / targets[_SPEECH]
            if self._units.frame_rate_hz is not None:
                means["nats_per_sec.speech"] = means["loss.speech"] * self._units.frame_rate_hz
        if num_bytes:
            means["bits_per_byte.text"] = losses[_TEXT] / (math.log(2) * num_bytes)
        return {name: float(value) for name, value in means.items()}
