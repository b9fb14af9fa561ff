"""Transcribed speech of any amount as batches for training.

    with TranscribedSpeech(config, tokenizer, read_manifest(*config.speech), read_manifest(*config.pseudo)) as speech:
        batch = speech.batch_at(step, part)      # the same for the same step, in every run

Files are looked at once, for their lengths, by their headers; sound is read when a batch needs it. Features are kept
once they are computed, as far as `cache_gb` reaches: what fits is all read before the first step, and never again; of
more, what came first stays, since every epoch asks for every utterance once and so none is likelier than another.

A batch has utterances of nearly one length, up to `batch_sec` with padding. The batches stay the same; their order is
drawn from seed and epoch, and how each utterance is augmented from seed, step and utterance. Supervised and
pseudo-labelled speech have batches, and epochs, of their own, and take turns by steps: a mixture within every batch
would pad the one to the other's lengths.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from types import TracebackType

import numpy as np
import orjson
import torch
from torch import Tensor

from weft import progress
from weft.audio import HOP_SAMPLES, load, num_samples
from weft.data.skipped import Skipped
from weft.errors import UserError
from weft.records import Utterance
from weft.tokenizer.augment import AugmentConfig, at_speed, mask, samples_at_speed
from weft.tokenizer.encoder import BottleneckWhisper
from weft.tokenizer.recipe import TokenizerConfig
from weft.tokenizer.text import spoken_form
from weft.tokenizer.tokenizer import SpeechTokenizer, batches_by_length
from weft.training import distributed
from weft.training.prefetch import beside_training

_Features = tuple[Tensor, int]  # (M, 2T) in half precision, and of how many samples
_Key = tuple[int, float]  # an item's number and its speed
_Augmented = tuple[float, np.random.Generator]  # the speed that was drawn, and what its masks are drawn from


@dataclass(frozen=True)
class Batch:
    """A step's data: features (B, M, 2T), real frames (B, T) and codes (B, N), transcripts as ids of the text decoder,
    its start included, and as letters of the CTC alphabet, and whether the bottleneck is closed."""

    features: Tensor
    valid_frames: Tensor
    valid: Tensor
    text_ids: list[list[int]]
    letters: list[list[int]]
    quantize: bool

    def __len__(self) -> int:
        """Text ids to predict, over which the cross-entropy is a mean: all but the start, and the end. The other losses
        are means over codes and letters: in parts of a step, which this weighs, they are so nearly."""
        return sum(map(len, self.text_ids))


@dataclass(frozen=True, eq=False, slots=True)
class Item:
    """An utterance to train on: its sound, and its transcript as in `Batch`, compact since there may be millions."""

    number: int
    id: str
    audio: str
    num_samples: int
    text_ids: np.ndarray
    letters: np.ndarray


class TranscribedSpeech:
    """Utterances as log-mel features and text ids, batched by length."""

    def __init__(self, config: TokenizerConfig, tokenizer: SpeechTokenizer, *sources: Sequence[Utterance]) -> None:
        """`sources` are the supervised speech and, perhaps, the pseudo-labelled. Raises UserError where one of them is
        not empty and nothing of it can be trained on."""
        self._config, self._tokenizer = config, tokenizer
        self.skipped, self._unreadable = Skipped(), dict[str, str]()
        self._cache, self._cache_bytes, self._lock = dict[_Key, _Features](), 0, threading.Lock()
        self._threads = beside_training(config.load_threads)
        spoken = [spoken_form([u.text or "" for u in source]) for source in sources]
        self.alphabet = sorted({letter for texts in spoken for text in texts for letter in text})
        self._sources = [self._scan(*both) for both in zip(sources, spoken, strict=True) if both[0]]
        items = [item for source in self._sources for item in source]
        if sum(map(self._bytes_of, items)) <= 1e9 * config.cache_gb:
            self._read_all(items)
        if not all(self._sources) or not self._sources:
            self.skipped.check(config.max_bad_share)
            raise UserError("no utterance with sound and transcript is left to train on: give others")
        self._batches = [
            batches_by_length([self._num_frames(i) for i in source], int(100 * config.batch_sec))
            for source in self._sources
        ]
        self._order = lru_cache(2 * len(sources))(self._new_order)

    # what there is

    def _scan(self, utterances: Sequence[Utterance], spoken: Sequence[str]) -> list[Item]:
        """The utterances that can be trained on, as far as headers and transcripts tell."""
        items = []
        letter_of = {letter: 1 + i for i, letter in enumerate(self.alphabet)}  # 0 is CTC's blank
        for u, text, length in zip(utterances, spoken, lengths(utterances, self._threads), strict=True):
            try:
                if isinstance(length, str):
                    raise UserError(length)
                letters = np.array([letter_of[letter] for letter in text], dtype=np.int32)
                item = Item(self.skipped.num_good, u.id, u.audio, length, self._text_ids(u), letters)
                if why := self._unfit(item, 1.0):
                    raise UserError(why)
            except UserError as e:
                self.skipped.add(u.id, str(e))
                continue
            self.skipped.num_good += 1
            items.append(item)
        return items

    def _text_ids(self, utterance: Utterance) -> np.ndarray:
        """What the decoder is given and what it is to write, without the end."""
        prompt, words = self._tokenizer.prompt, self._tokenizer.text_tokenizer
        language = utterance.language or self._config.language
        ids = prompt.transcript_ids(words, utterance.text or "", language)
        return np.array([*prompt.ids(language), *ids], dtype=np.int32)

    def _unfit(self, item: Item, speed: float) -> str | None:
        """Why an utterance cannot be trained on at a speed, if so: a transcript has at most a letter for each output of
        the CTC head, or without one for each encoder frame, 50 a second."""
        tokenizer, letters = self._tokenizer, item.letters.tolist()
        num_codes = -(-samples_at_speed(item.num_samples, speed) // tokenizer.samples_per_code)
        repeats = sum(a == b for a, b in pairwise(letters))
        most_ids = tokenizer.model.whisper_config.max_target_positions
        if not letters:
            return "it has no transcript"
        if num_codes > tokenizer.codes_per_window:
            return f"it is longer than {tokenizer.codes_per_window / tokenizer.frame_rate_hz:g} s: cut it"
        if len(letters) + repeats > num_codes * (self._config.ctc_outputs or tokenizer.model.config.pooling):
            return "its transcript is longer than its sound allows"
        if len(item.text_ids) > most_ids:
            return f"its transcript is {len(item.text_ids)} tokens, and the decoder reads {most_ids}: cut it"
        return None

    def _read_all(self, items: Sequence[Item]) -> None:
        """Fill the cache, and drop the items whose sound cannot be read."""
        with progress.bar("features", len(items)) as advance:
            for _ in self._threads.map(self._features, items):
                advance()
        self._sources = [[item for item in source if (item.number, 1.0) in self._cache] for source in self._sources]
        self.skipped.bad += self._unreadable.items()
        self.skipped.num_good -= len(self._unreadable)
        self._unreadable.clear()

    def _num_frames(self, item: Item) -> int:
        """Feature frames of an item at its slowest, padded to whole codes."""
        per_code = self._tokenizer.samples_per_code
        num_samples = samples_at_speed(item.num_samples, min(1.0, *self._config.augment.speeds))
        return -(-num_samples // per_code) * per_code // HOP_SAMPLES

    def _bytes_of(self, item: Item) -> int:
        return 2 * self._num_frames(item) * self._tokenizer.model.whisper_config.num_mel_bins

    # what a step trains on

    def batch_at(self, step: int, part: slice = slice(None)) -> Batch | None:
        """A part of the batch of a step, None where nothing is in it; what cannot be read is left out."""
        items = self._items(step)[part]
        drawn = [self._drawn(item, step) for item in items] if self._config.augment != AugmentConfig() else None
        return self._collate(items, step >= self._config.quantize_from_step, drawn) if items else None

    def _items(self, step: int) -> list[Item]:
        """The step's items: of every `supervised_share` of the steps the supervised source's, else the other's."""
        share = self._config.supervised_share if len(self._sources) > 1 else 1.0
        supervised_before, supervised_after = int(step * share), int((step + 1) * share)
        source = int(supervised_before == supervised_after)
        batches = self._batches[source]
        epoch, index = divmod(step - supervised_before if source else supervised_before, len(batches))
        return [self._sources[source][row] for row in batches[self._order(source, epoch)[index]]]

    def _new_order(self, source: int, epoch: int) -> np.ndarray:
        key = (self._config.train.seed, epoch, source)[: 2 + source]
        return np.random.default_rng(key).permutation(len(self._batches[source]))

    def _drawn(self, item: Item, step: int) -> _Augmented:
        """How an item is to be changed in a step."""
        rng, speeds = np.random.default_rng((self._config.train.seed, step, item.number)), self._config.augment.speeds
        speed = speeds[int(rng.integers(len(speeds)))]
        return speed if speed == 1.0 or not self._unfit(item, speed) else 1.0, rng

    def _collate(
        self, items: Sequence[Item], quantize: bool, augmented: Sequence[_Augmented] | None = None
    ) -> Batch | None:
        speeds = [speed for speed, _ in augmented] if augmented else [1.0] * len(items)
        found = list(self._threads.map(self._features, items, speeds))
        rows = [row for row, f in enumerate(found) if f is not None]
        if not rows:
            return None
        both = [f for f in found if f is not None]
        features = [f.float() for f, _ in both]
        if augmented:
            features = [mask(f, self._config.augment, augmented[r][1]) for f, r in zip(features, rows, strict=True)]
        batch, frames = self._tokenizer.collate(features, [n for _, n in both])
        texts, letters = [items[r].text_ids.tolist() for r in rows], [items[r].letters.tolist() for r in rows]
        return Batch(batch, frames, self._tokenizer.real_codes(frames), texts, letters, quantize)

    def _features(self, item: Item, speed: float = 1.0) -> _Features | None:
        """An item's features (M, 2T) in half precision, and its samples; None where it cannot be read after all."""
        if (found := self._cache.get((item.number, speed))) is not None:
            return found
        try:
            samples = load(item.audio)
            if len(samples) > item.num_samples + self._tokenizer.samples_per_code:
                raise UserError(f"{item.audio} holds more sound than its header says: convert it to WAV or FLAC")
            samples = at_speed(samples[: item.num_samples], speed)
            found = self._tokenizer.features(samples).half().cpu(), len(samples)
        except UserError as e:
            self._unreadable[item.id] = str(e)
            return None
        with self._lock:
            if self._cache_bytes + found[0].nbytes <= 1e9 * self._config.cache_gb:
                self._cache_bytes += found[0].nbytes
                self._cache[item.number, speed] = found
        return found

    @torch.no_grad()
    def hidden_states(self, model: BottleneckWhisper, at_least: int) -> Tensor:
        """Pooled hidden states (F, D) of random batches, to begin the quantizer from; each process has its share."""
        rng = np.random.default_rng(self._config.train.seed)
        width = model.whisper_config.d_model
        found = [torch.zeros(0, width, device=model.positions_after.weight.device)]
        batches = [
            (source, rows) for source, all_rows in zip(self._sources, self._batches, strict=True) for rows in all_rows
        ]
        for index in rng.permutation(len(batches))[distributed.share()]:
            source, rows = batches[index]
            if batch := self._collate([source[row] for row in rows], True):
                found.append(model.first_half(batch.features, batch.valid_frames)[batch.valid])
            if sum(map(len, found)) * distributed.world_size() >= at_least:
                break
        return torch.cat(found)

    def check_read(self, report: Path) -> int:
        """List in `report` what all processes could not read, in this run and those that it continues, and return how
        much that is. Raises UserError where it is too much."""
        found = {where: why for bad in distributed.gather(dict(self._unreadable)) for where, why in bad.items()}
        if report.exists():
            before = (orjson.loads(line) for line in report.read_bytes().splitlines())
            found = {row["where"]: row["why"] for row in before} | found
        found = distributed.from_first(found)
        skipped = Skipped(self.skipped.num_good - len(found), sorted(found.items()))
        skipped.write(report)
        skipped.check(self._config.max_bad_share, report)
        return len(found)

    def __enter__(self) -> TranscribedSpeech:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        self._threads.shutdown(cancel_futures=True)


def lengths(utterances: Sequence[Utterance], threads: ThreadPoolExecutor) -> list[int | str]:
    """Samples of each utterance's sound by its header, or why it has none. Each process looks at its share of them."""

    def look(utterance: Utterance) -> int | str:
        try:
            return num_samples(utterance.audio)
        except UserError as e:
            return str(e)

    mine = utterances[distributed.share()]
    with progress.bar("lengths", len(mine)) as advance:
        found = []
        for length in threads.map(look, mine):
            advance()
            found.append(length)
    every: list[int | str] = [0] * len(utterances)
    for rank, part in enumerate(distributed.gather(found)):
        every[rank :: distributed.world_size()] = part
    return every
