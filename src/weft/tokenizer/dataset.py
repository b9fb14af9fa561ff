"""Transcribed speech of any amount as training batches.

    with SpeechDataset(config, tokenizer, read_manifest(*config.speech), read_manifest(*config.pseudo)) as speech:
        batch = speech.batch_at(step, part)      # the same for the same step in every run

The lengths of all files are measured first (`weft.tokenizer.scan`); audio is read when a batch needs it. Up to
`cache_gb` of it stays in memory (`weft.tokenizer.reader`): all of it before the first step if it fits, otherwise the
first ones.

A batch has utterances of similar length, up to `batch_sec` with padding. The batches are fixed; their order depends on
seed and epoch, and the augmentation of an utterance on seed, step and utterance. Supervised and pseudo-labelled speech
have separate batches and epochs and alternate by steps, because a mixture within a batch would need more padding.

A micro-batch has consecutive utterances of a batch, the shortest first, up to `batch_sec` divided by the processes and
by `grad_accum_steps`, with padding. A longer utterance is a micro-batch of its own.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from weft import progress
from weft.data.batching import slices_by_length
from weft.errors import UserError
from weft.records import Utterance
from weft.tokenizer.config import TokenizerConfig
from weft.tokenizer.encoder import BottleneckWhisper
from weft.tokenizer.items import Batches, Item
from weft.tokenizer.reader import Reader
from weft.tokenizer.scan import Scan
from weft.tokenizer.tokenizer import SpeechTokenizer
from weft.tokenizer.views import Augmentation, Views, distortions, views_of
from weft.training import distributed
from weft.training.prefetch import data_threads
from weft.training.unreadable import check_unreadable


@dataclass(frozen=True)
class Batch:
    """Data of a step: features (B, M, 2T), valid frames (B, T) and tokens (B, N), and transcripts.

    `text_ids` are ids of the text decoder with the prompt, `chars` indices into the CTC alphabet.
    """

    features: Tensor
    valid_frames: Tensor
    valid: Tensor
    text_ids: list[list[int]]
    chars: list[list[int]]
    quantize: bool
    codes_weight: float = 1.0
    """Fraction of the step's codes in this part, divided by the fraction of its text ids."""
    chars_weight: float = 1.0
    """The same for characters."""
    clean: Tensor | None = None
    """The features without distortions (B, M, 2T), for the consistency loss in quantized steps."""

    def __len__(self) -> int:
        """Number of predicted text ids, over which the cross-entropy is a mean. It weights the parts of a step for all
        losses; those that are means over codes and characters have a weight in addition."""
        return sum(map(len, self.text_ids))


@dataclass(frozen=True)
class _Sizes:
    """Numbers of text ids, codes and characters of some utterances."""

    text_ids: int
    codes: int
    chars: int


class SpeechDataset:
    """Utterances as log-mel features and text ids, batched by length."""

    def __init__(
        self,
        config: TokenizerConfig,
        tokenizer: SpeechTokenizer,
        *sources: Sequence[Utterance],
        noise: Sequence[Utterance] = (),
    ) -> None:
        """Scan the supervised and, if any, the pseudo-labelled utterances. `noise` are recordings to add to them.

        Raises UserError if a source is not empty but nothing in it can be trained on, and for unreadable noise.
        """
        self._config, self._tokenizer = config, tokenizer
        self._scan, self._read = Scan(config, tokenizer, sources), Reader(config, tokenizer)
        self.skipped, self.alphabet = self._scan.skipped, self._scan.alphabet
        self._threads = data_threads(config.load_threads)
        self._sources = [self._scan(source) for source in sources if source]
        if self._read.fits(sum(int(source.num_frames.sum()) for source in self._sources)):
            self._read_all()
        if not all(self._sources) or not self._sources:
            self.skipped.check(config.max_bad_fraction)
            raise UserError("no readable utterance with a transcript is left to train on: give more speech")
        self._batches = [Batches(source.num_frames, int(100 * config.batch_sec)) for source in self._sources]
        self._order = lru_cache(2 * len(sources))(self._new_order)
        self._step_sizes = lru_cache(2)(self._sizes_of_step)
        if config.augment.distorts:
            self._read.distort = distortions(config, self._read, self._sources, noise)

    def _read_all(self) -> None:
        """Fill the cache, and drop items whose audio cannot be read."""
        with progress.bar("features", sum(map(len, self._sources))) as advance:
            for source in self._sources:
                for _ in self._threads.map(self._read, source):
                    advance()
        self._sources = [source.kept(self._read.is_kept) for source in self._sources]
        self.skipped.bad += self._read.unreadable.items()
        self.skipped.num_good -= len(self._read.unreadable)
        self._read.unreadable.clear()

    def batch_at(self, step: int, part: slice = slice(None)) -> Batch | None:
        """Return a part of the batch of a step, None if it is empty. Unreadable items are left out."""
        items = self._items(step)[part]
        augmentations = [self._augmentation(item, step) for item in items]
        return self._collate(items, augmentations, self._step_sizes(step), step >= self._config.quantize_from_step)

    def parts_of(self, step: int) -> Sequence[slice]:
        """Return the micro-batches of this rank in a step, as slices of the step's items."""
        return distributed.rank_part(self._slices(self._items(step)))

    def _slices(self, items: Sequence[Item]) -> list[slice]:
        """Return the micro-batches of all ranks, as slices of items that are sorted by length."""
        num = distributed.world_size() * self._config.train.grad_accum_steps
        return slices_by_length([item.num_frames for item in items], int(100 * self._config.batch_sec) // num, num)

    def _sizes_of_step(self, step: int) -> _Sizes:
        items = self._items(step)
        num_codes = sum(self._scan.num_codes(item.num_samples, self._augmentation(item, step).speed) for item in items)
        return _Sizes(sum(i.num_text_ids for i in items), num_codes, sum(i.num_chars for i in items))

    def _items(self, step: int) -> list[Item]:
        """Return the items of a step: the supervised source's in `supervised_fraction` of the steps."""
        fraction = self._config.supervised_fraction if len(self._sources) > 1 else 1.0
        supervised_before, supervised_after = int(step * fraction), int((step + 1) * fraction)
        source = int(supervised_before == supervised_after)
        batches = self._batches[source]
        epoch, index = divmod(step - supervised_before if source else supervised_before, len(batches))
        return [self._sources[source][row] for row in batches[self._order(source, epoch)[index]].tolist()]

    def _new_order(self, source: int, epoch: int) -> np.ndarray:
        key = (self._config.train.seed, epoch, source)[: 2 + source]
        return np.random.default_rng(key).permutation(len(self._batches[source]))

    def _augmentation(self, item: Item, step: int) -> Augmentation:
        key, speeds = (self._config.train.seed, step, item.number), self._config.augment.speeds
        rng = np.random.default_rng(key)
        speed = speeds[int(rng.integers(len(speeds)))]
        speed = speed if speed == 1.0 or not self._scan.unusable(item, speed) else 1.0
        with_clean = self._config.consistency_weight > 0 and step >= self._config.quantize_from_step
        return Augmentation(speed, rng, np.random.default_rng((*key, 1)), with_clean)

    def _collate(
        self, items: Sequence[Item], augmentations: Sequence[Augmentation], whole: _Sizes | None, quantize: bool
    ) -> Batch | None:
        """Return a part of the step with sizes `whole`, or a whole step; None if nothing in it can be read."""
        found = self._threads.map(self._views, items, augmentations)
        rows = [(views, item) for views, item in zip(found, items, strict=True) if views is not None]
        if not rows:
            return None
        all_samples, collate = [views.num_samples for views, _ in rows], self._tokenizer.features.collate
        batch, frames = collate([views.features for views, _ in rows], all_samples)
        clean = [views.clean for views, _ in rows if views.clean is not None]
        text_ids = [self._scan.text_ids(item.utterance) for _, item in rows]
        chars = [self._scan.chars(item.utterance) for _, item in rows]
        num_codes = sum(-(-num_samples // self._tokenizer.samples_per_code) for num_samples in all_samples)
        part = _Sizes(sum(map(len, text_ids)), num_codes, sum(map(len, chars)))
        whole = whole or part
        return Batch(
            features=batch,
            valid_frames=frames,
            valid=self._tokenizer.valid_codes(frames),
            text_ids=text_ids,
            chars=chars,
            quantize=quantize,
            codes_weight=(part.codes * whole.text_ids) / (whole.codes * part.text_ids),
            chars_weight=(part.chars * whole.text_ids) / (whole.chars * part.text_ids),
            clean=collate(clean, all_samples)[0] if clean else None,
        )

    def _views(self, item: Item, augmentation: Augmentation) -> Views | None:
        return views_of(self._read, item, augmentation, self._config.augment)

    @torch.no_grad()
    def hidden_states(self, model: BottleneckWhisper, at_least: int) -> Tensor:
        """Return this rank's part (F, D) of the pooled hidden states of random batches, without those not finite.

        All ranks together have `at_least` so many, if there are, and at most a batch more. They are computed by
        micro-batches, and neither they nor their order depends on the number of ranks.
        """
        ends = list(accumulate(map(len, self._batches)))
        parts: list[list[Item]] = []
        num_codes = 0
        for index in np.random.default_rng(self._config.train.seed).permutation(ends[-1]).tolist():
            source = bisect_right(ends, index)
            rows = self._batches[source][index - (ends[source - 1] if source else 0)]
            items = [self._sources[source][row] for row in rows.tolist()]
            parts += [items[part] for part in self._slices(items)]
            num_codes += sum(self._scan.num_codes(item.num_samples, 1.0) for item in items)
            if num_codes >= at_least:
                break
        mine, was_training = distributed.rank_part(parts), model.training
        model.eval()
        found = [torch.zeros(0, model.whisper_config.d_model, device=model.positions_after.weight.device)]
        with progress.bar("hidden states", len(mine)) as advance:
            for items in mine:
                if batch := self._collate(items, [Augmentation()] * len(items), None, quantize=True):
                    hidden = model.to_bottleneck(batch.features, batch.valid_frames)[batch.valid]
                    found.append(hidden[hidden.isfinite().all(-1)])
                advance()
        model.train(was_training)
        return torch.cat(found)

    def check_unreadable(self, report: Path) -> int:
        """List in `report` the unreadable items of all ranks, also before a resume, and return their number.

        Raises UserError if they are too many.
        """
        unreadable, num_good = self._read.unreadable, self.skipped.num_good
        return check_unreadable(unreadable, num_good, report, self._config.max_bad_fraction)

    def __enter__(self) -> SpeechDataset:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)
