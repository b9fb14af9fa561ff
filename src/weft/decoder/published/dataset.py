"""Codes and mel frames of a voice as training clips of the paper's flow model.

A clip is a number of blocks of an utterance, its first ones in half of all steps, as in the paper. The other clips
start at any block, as the model does in a stream of constant cost. All clips of a step have the same length.

Shapes: B batch, N codes, T mel frames, M mel bands, U utterances.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from weft.data.skipped import Skipped
from weft.decoder.dataset import read_pairs
from weft.decoder.decoder import PublishedDecoder
from weft.decoder.mel import MelSpectrogram
from weft.decoder.published.flow import PublishedBatch
from weft.errors import UserError
from weft.records import Utterance

_FIRST_BLOCKS_FRACTION = 0.5  # of training steps; clips of the others start at any block
_WHOLE_BLOCKS_FRACTION = 0.7  # of training steps; clips of the others end inside a block, as speech does


class PublishedDataset:
    """Codes and mel frames of utterances that have a block or more."""

    def __init__(
        self,
        decoder: PublishedDecoder,
        codes: Sequence[Path],
        audio: Sequence[Utterance],
        batch_clips: int,
        seed: int,
        max_bad_fraction: float,
    ) -> None:
        """Read codes, and compute the mel frames of their audio, which is found by id.

        Raises UserError if no utterance with audio is as long as a block.
        """
        self._flow, self._batch_clips, self._seed = decoder.published, batch_clips, seed
        self._block, self.skipped = decoder.first_block_codes, Skipped()
        pairs = [*read_pairs(codes, audio, decoder, MelSpectrogram(decoder.mel), self.skipped)]
        self._pairs = sorted((p for p in pairs if len(p.codes) >= self._block), key=lambda p: len(p.codes))
        if not self._pairs:
            self.skipped.check(max_bad_fraction)
            raise UserError(f"no utterance with audio has the {self._block} codes of a block: give longer ones")
        self._blocks = np.array([len(p.codes) // self._block for p in self._pairs])  # (U,), not decreasing
        self.num_codes = sum(len(p.codes) for p in pairs)

    def batch_at(self, step: int, part: slice = slice(None)) -> PublishedBatch | None:
        """Return clips `part` of a step, the same in every run; None for no clip."""
        rng, config, size = np.random.default_rng((self._seed, step)), self._flow.config, self._batch_clips
        longest = np.minimum(self._blocks, config.max_clip_blocks)
        num_blocks = int(rng.integers(1, longest[rng.choice(len(longest), p=longest / longest.sum())] + 1))
        num_codes = num_blocks * self._block
        if rng.random() >= _WHOLE_BLOCKS_FRACTION:
            num_codes -= int(rng.integers(0, self._block))
        rows = rng.integers(np.searchsorted(self._blocks, num_blocks), len(self._blocks), size)
        starts = (rng.random(size) * (self._blocks[rows] - num_blocks + 1)).astype(np.int64)
        starts *= self._block * int(rng.random() >= _FIRST_BLOCKS_FRACTION)
        num_frames = self._flow.num_frames(num_codes)
        places = [(self._pairs[row], int(start)) for row, start in zip(rows, starts, strict=True)]
        mel = torch.stack([pair.mel[self._flow.num_frames(start) :][:num_frames] for pair, start in places])
        generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
        given = rng.random(size) * config.max_prompt_fraction * (rng.random(size) < config.prompt_fraction)
        batch = PublishedBatch(
            codes=torch.stack([pair.codes[start:][:num_codes] for pair, start in places]),
            mel=mel.transpose(1, 2).float(),
            noise=torch.randn(size, self._flow.mel.num_mels, num_frames, generator=generator),
            time=torch.rand(size, generator=generator),
            num_given=torch.from_numpy((given * num_frames).astype(np.int64)),
            dropped=torch.rand(size, generator=generator) < config.condition_dropout,
        )
        return batch.part(part) if len(batch.codes[part]) else None
