"""What losses say, told apart by modality and by source, and in units that compare with other models.

    tally = Tally(Units(vocab, frame_rate_hz=12.5), ("plain", "woven"))
    tally.add(token_losses(model, batch), batch.targets, sources)
    tally.figures()        # loss, loss.text, loss.speech, nats_per_sec.speech, bits_per_byte.text
    tally.of("woven")      # the same of a source

A loss is nats a token, of which another vocabulary or codebook would need more or fewer for the same. A second of
speech and a byte of text are the same to all.

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
    """What losses are told apart by, and told in."""

    vocab: SpeechVocab
    frame_rate_hz: float | None = None
    """Codes a second, where it is known."""

    @cached_property
    def text_bytes(self) -> np.ndarray:
        """Bytes of text by id, (V,) int64."""
        return text_bytes(self.vocab.tokenizer)


class Tally:
    """Sums of losses by source and modality. They stay where the losses are until they are asked for."""

    def __init__(self, units: Units, sources: Sequence[str]) -> None:
        self._units, self._sources = units, tuple(sources)
        self._losses: Tensor | None = None  # (3 S,) float64
        self._targets = np.zeros(3 * len(sources), np.int64)
        self._bytes = np.zeros(len(sources), np.int64)

    def add(self, losses: Tensor, targets: Tensor, sources: np.ndarray) -> None:
        """Count `losses` (N,) of the ids `targets` (N,), which are of the sources with the numbers `sources` (N,)."""
        ids, num = targets.numpy(), len(self._sources)
        kinds = _kinds(self._units.vocab, ids)
        cells = 3 * sources + kinds
        self._targets += np.bincount(cells, minlength=3 * num)
        text = kinds == _TEXT
        self._bytes += np.bincount(sources[text], self._units.text_bytes[ids[text]], num).astype(np.int64)
        if self._losses is None:
            self._losses = losses.new_zeros(3 * num, dtype=torch.float64)
        self._losses.index_add_(0, torch.from_numpy(cells).to(losses.device), losses.detach().double())

    def everywhere(self) -> Tally:
        """The tally of all processes' losses, on the CPU; all have to ask."""
        whole = Tally(self._units, self._sources)
        counted = torch.from_numpy(np.concatenate((self._targets, self._bytes)))
        whole._losses = torch.zeros(len(self._targets), dtype=torch.float64)
        if self._losses is not None:
            whole._losses += self._losses.cpu()
        distributed.all_reduce(counted, whole._losses)
        whole._targets, whole._bytes = np.split(counted.numpy(), [len(self._targets)])
        return whole

    def figures(self) -> dict[str, float]:
        """Mean losses over all sources, by name; what nothing was counted of is left out.

        `loss` is over all targets alike, `loss.text` and `loss.speech` leave out markers, roles and ends: nats a token.
        `nats_per_sec.speech` is of a second of speech, `bits_per_byte.text` of a byte of text.
        """
        losses = np.zeros(3 * len(self._sources)) if self._losses is None else self._losses.cpu().numpy()
        return self._told(losses.reshape(-1, 3).sum(0), self._targets.reshape(-1, 3).sum(0), self._bytes.sum())

    def of(self, source: str) -> dict[str, float]:
        """`figures` of one source."""
        i = self._sources.index(source)
        cells = slice(3 * i, 3 * i + 3)
        losses = np.zeros(3) if self._losses is None else self._losses[cells].cpu().numpy()
        return self._told(losses, self._targets[cells], self._bytes[i])

    def _told(self, losses: np.ndarray, targets: np.ndarray, num_bytes: int) -> dict[str, float]:
        told = {}
        if targets.sum():
            told["loss"] = losses.sum() / targets.sum()
        if targets[_TEXT]:
            told["loss.text"] = losses[_TEXT] / targets[_TEXT]
        if targets[_SPEECH]:
            told["loss.speech"] = losses[_SPEECH] / targets[_SPEECH]
            if self._units.frame_rate_hz is not None:
                told["nats_per_sec.speech"] = told["loss.speech"] * self._units.frame_rate_hz
        if num_bytes:
            told["bits_per_byte.text"] = losses[_TEXT] / (math.log(2) * num_bytes)
        return {name: float(value) for name, value in told.items()}


def _kinds(vocab: SpeechVocab, ids: np.ndarray) -> np.ndarray:
    """What each id is, (N,): text, speech, or control, which is neither words nor sound."""
    return np.where(vocab.is_audio(ids), _SPEECH, np.where(vocab.is_control(ids), _CONTROL, _TEXT))
