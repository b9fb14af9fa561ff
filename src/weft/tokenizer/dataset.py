"""Transcribed speech of any amount as training batches.

    with SpeechDataset(config, tokenizer, read_manifest(*config.speech), read_manifest(*config.pseudo)) as speech:
        batch = speech.batch_at(step, part)      # the same for the same step in every run

The lengths of all files are measured first, from their headers where these are exact; audio is read when a batch needs
it. Up to `cache_gb` of it stays in memory (`weft.tokenizer.reader`): all of it before the first step if it fits,
otherwise the first ones.

A batch has utterances of similar length, up to `batch_sec` with padding. The batches are fixed; their order depends on
seed and epoch, and the augmentation of an utterance on seed, step and utterance. Supervised and pseudo-labelled speech
have separate batches and epochs and alternate by steps, because a mixture within a batch would need more padding.

A micro-batch has consecutive utterances of a batch, the shortest first, up to `batch_sec` divided by the processes and
by `grad_accum_steps`, with padding. A longer utterance is a micro-batch of its own.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, chain, pairwise
from pathlib import Path

import numpy as np
import orjson
import torch
from torch import Tensor

from weft import progress
from weft.audio import HOP_SAMPLES
from weft.data.batching import slices_by_length
from weft.data.skipped import Skipped
from weft.data.speech import AudioLengths, audio_lengths, load_speech
from weft.errors import UserError
from weft.records import Utterance
from weft.text.normalize import label_normalizer
from weft.tokenizer.augment import mask, samples_at_speed
from weft.tokenizer.config import TokenizerConfig
from weft.tokenizer.encoder import BottleneckWhisper
from weft.tokenizer.items import Batches, Item, Items
from weft.tokenizer.noise import Distortions, NoiseLoop
from weft.tokenizer.reader import Reader
from weft.tokenizer.tokenizer import SpeechTokenizer
from weft.training import distributed
from weft.training.prefetch import data_threads

_MAX_NOISES = 1000  # utterances or recordings that noise is made from


@dataclass(frozen=True)
class _Augmentation:
    """Augmentation of an item in a step: its speed, the random numbers of masks and distortions, if any, and whether
    the item is needed without distortions too.
    """

    speed: float = 1.0
    masks: np.random.Generator | None = None
    distortions: np.random.Generator | None = None
    with_clean: bool = False


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


@dataclass(frozen=True)
class _Views:
    """Features (M, 2T) of an item, and without distortions, if needed."""

    features: Tensor
    clean: Tensor | None
    num_samples: int


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
        self.skipped, self._read, self._lock = Skipped(), Reader(config, tokenizer), threading.Lock()
        self._threads = data_threads(config.load_threads)
        self._label = label_normalizer()
        self.alphabet = sorted(
            set(chain.from_iterable(self._label.normalize_str(u.text or "") for s in sources for u in s))
        )
        self._index_of = {char: 1 + i for i, char in enumerate(self.alphabet)}  # 0 is the CTC blank
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
            self._read.distort = self._distortions(noise)

    # Scanning

    def _scan(self, utterances: Sequence[Utterance]) -> Items:
        """Return the utterances that can be trained on, as far as headers and transcripts show."""
        items = Items(utterances)
        for row, (u, length) in enumerate(zip(utterances, self._lengths(utterances), strict=True)):
            with self.skipped.on_error(u.id):
                if isinstance(length, str):
                    raise UserError(length)
                item = self._item(u, length)
                if reason := self._unusable(item, 1.0):
                    raise UserError(reason)
                items.add(row, item)
                self.skipped.num_good += 1
        return items

    def _lengths(self, utterances: Sequence[Utterance]) -> AudioLengths:
        """Return the samples of each utterance, or why it cannot be read. Each rank reads its part of the headers."""
        size = distributed.world_size()
        mine = audio_lengths(utterances[distributed.rank_slice()])
        samples, problems = np.empty(len(utterances), np.int64), dict[int, str]()
        for rank, part in enumerate(distributed.all_gather_object(mine)):
            samples[rank::size] = part.samples
            problems |= {rank + i * size: problem for i, problem in part.problems.items()}
        return AudioLengths(samples, problems)

    def _item(self, utterance: Utterance, num_samples: int) -> Item:
        """Return an utterance with the next number."""
        text_ids, chars = self._text_ids(utterance), self._chars(utterance)
        speed, per_code = min(1.0, *self._config.augment.speeds), self._tokenizer.samples_per_code // HOP_SAMPLES
        return Item(
            number=self.skipped.num_good,
            utterance=utterance,
            num_samples=num_samples,
            num_frames=self._num_codes(num_samples, speed) * per_code,
            num_text_ids=len(text_ids),
            num_chars=len(chars),
            num_outputs=len(chars) + sum(a == b for a, b in pairwise(chars)),
        )

    def _chars(self, utterance: Utterance) -> list[int]:
        """Return the indices of the transcript into the CTC alphabet."""
        return [self._index_of[char] for char in self._label.normalize_str(utterance.text or "")]

    def _text_ids(self, utterance: Utterance) -> list[int]:
        """Return the ids of the prompt and the transcript, without the end."""
        prompt, text_tokenizer = self._tokenizer.prompt, self._tokenizer.text_tokenizer
        language = utterance.language or self._config.language
        ids = prompt.transcript_ids(text_tokenizer, utterance.text or "", language)
        return [*prompt.ids(language), *ids]

    def _unusable(self, item: Item, speed: float) -> str | None:
        """Return why an utterance cannot be trained on at a speed, or None.

        A transcript has at most one character per output of the CTC head, or without a head, per encoder frame.
        """
        tokenizer, num_codes = self._tokenizer, self._num_codes(item.num_samples, speed)
        max_ids = tokenizer.model.whisper_config.max_target_positions
        if not item.num_chars:
            return "it has no transcript"
        if num_codes > tokenizer.codes_per_window:
            return f"it is longer than {tokenizer.codes_per_window / tokenizer.frame_rate_hz:g} s: split it"
        if item.num_outputs > num_codes * (self._config.ctc_outputs or tokenizer.model.config.pooling):
            return "its transcript is too long for its duration"
        if item.num_text_ids > max_ids:
            return f"its transcript has {item.num_text_ids} tokens, more than the decoder's {max_ids}: split it"
        return None

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

    def _distortions(self, noise: Sequence[Utterance]) -> Distortions:
        """Return the distortions, whose babble and recordings are random ones, the same for all ranks."""
        config, babble, recordings = self._config.augment, list[Item](), list[Utterance]()
        rng = np.random.default_rng((self._config.train.seed, _MAX_NOISES))
        if config.babble_probability:
            babble = [source[int(row)] for source in self._sources for row in _some(len(source), rng)]
        if config.recording_probability:
            recordings = [noise[int(row)] for row in _some(len(noise), rng)]
        voices = (self._read.samples(found) for item in babble if (found := self._read(item)) is not None)
        return Distortions(
            config,
            NoiseLoop.of(voices, rng),
            NoiseLoop.of(map(load_speech, recordings), rng),
        )

    def _num_codes(self, num_samples: int, speed: float) -> int:
        """Return the codes of some samples at a speed."""
        return -(-samples_at_speed(num_samples, speed) // self._tokenizer.samples_per_code)

    # Batches

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
        num_codes = sum(self._num_codes(item.num_samples, self._augmentation(item, step).speed) for item in items)
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

    def _augmentation(self, item: Item, step: int) -> _Augmentation:
        key, speeds = (self._config.train.seed, step, item.number), self._config.augment.speeds
        rng = np.random.default_rng(key)
        speed = speeds[int(rng.integers(len(speeds)))]
        speed = speed if speed == 1.0 or not self._unusable(item, speed) else 1.0
        with_clean = self._config.consistency_weight > 0 and step >= self._config.quantize_from_step
        return _Augmentation(speed, rng, np.random.default_rng((*key, 1)), with_clean)

    def _collate(
        self, items: Sequence[Item], augmentations: Sequence[_Augmentation], whole: _Sizes | None, quantize: bool
    ) -> Batch | None:
        """Return a part of the step with sizes `whole`, or a whole step; None if nothing in it can be read."""
        found = self._threads.map(self._augmented, items, augmentations)
        rows = [(views, item) for views, item in zip(found, items, strict=True) if views is not None]
        if not rows:
            return None
        all_samples, collate = [views.num_samples for views, _ in rows], self._tokenizer.features.collate
        batch, frames = collate([views.features for views, _ in rows], all_samples)
        clean = [views.clean for views, _ in rows if views.clean is not None]
        with self._lock:  # text tokenizers are not safe for threads
            text_ids = [self._text_ids(item.utterance) for _, item in rows]
        chars = [self._chars(item.utterance) for _, item in rows]
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

    def _augmented(self, item: Item, augmentation: _Augmentation) -> _Views | None:
        """Return an item's augmented features, and a clean view with the same masks; None if it cannot be read."""
        if (speech := self._read(item, augmentation.speed)) is None:
            return None
        features, clean = self._read.features(speech, augmentation.distortions), None
        if augmentation.with_clean:
            clean = self._read.features(speech)
        if masks := augmentation.masks:
            same = deepcopy(masks)
            features = mask(features, self._config.augment, masks)
            clean = None if clean is None else mask(clean, self._config.augment, same)
        return _Views(features, clean, speech.num_samples)

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
            num_codes += sum(self._num_codes(item.num_samples, 1.0) for item in items)
            if num_codes >= at_least:
                break
        mine, was_training = distributed.rank_part(parts), model.training
        model.eval()
        found = [torch.zeros(0, model.whisper_config.d_model, device=model.positions_after.weight.device)]
        with progress.bar("hidden states", len(mine)) as advance:
            for items in mine:
                if batch := self._collate(items, [_Augmentation()] * len(items), None, quantize=True):
                    hidden = model.to_bottleneck(batch.features, batch.valid_frames)[batch.valid]
                    found.append(hidden[hidden.isfinite().all(-1)])
                advance()
        model.train(was_training)
        return torch.cat(found)

    def check_unreadable(self, report: Path) -> int:
        """List in `report` the unreadable items of all ranks, also before a resume, and return their number.

        Raises UserError if they are too many.
        """
        found: dict[str, str] = {}
        if report.exists():
            found = {row["where"]: row["why"] for row in map(orjson.loads, report.read_bytes().splitlines())}
        for unreadable in distributed.all_gather_object(dict(self._read.unreadable)):
            found |= unreadable
        found = distributed.broadcast_object(found)
        skipped = Skipped(self.skipped.num_good - len(found), sorted(found.items()))
        skipped.write(report)
        skipped.check(self._config.max_bad_fraction, report)
        return len(found)

    def __enter__(self) -> SpeechDataset:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)


def _some(total: int, rng: np.random.Generator) -> np.ndarray:
    """Return up to `_MAX_NOISES` random rows of `total`, each once."""
    return rng.choice(total, min(total, _MAX_NOISES), replace=False)
