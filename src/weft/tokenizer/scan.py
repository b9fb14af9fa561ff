"""The utterances of a source that a tokenizer can be trained on, and the targets that their transcripts give.

    scan = Scan(config, tokenizer, sources)
    items, skipped = scan(sources[0]), scan.skipped
    scan.text_ids(items[0].utterance), scan.chars(items[0].utterance)

Lengths come from the headers of the files where these are exact, and each rank reads its part of them.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import chain, pairwise

import numpy as np

from weft.audio import HOP_SAMPLES
from weft.data.skipped import Skipped
from weft.data.speech import AudioLengths, audio_lengths
from weft.errors import UserError
from weft.records import Utterance
from weft.text.normalize import label_normalizer
from weft.tokenizer.augment import samples_at_speed
from weft.tokenizer.config import TokenizerConfig
from weft.tokenizer.items import Item, Items
from weft.tokenizer.tokenizer import SpeechTokenizer
from weft.training import distributed


class Scan:
    """Finds the items of sources, which are numbered across all of them. `skipped` has the other utterances."""

    def __init__(
        self, config: TokenizerConfig, tokenizer: SpeechTokenizer, sources: Sequence[Sequence[Utterance]]
    ) -> None:
        self.skipped = Skipped()
        self._config, self._tokenizer, self._lock = config, tokenizer, threading.Lock()
        self._label = label_normalizer()
        self.alphabet = sorted(
            set(chain.from_iterable(self._label.normalize_str(u.text or "") for s in sources for u in s))
        )
        """The characters that CTC predicts."""
        self._index_of = {char: 1 + i for i, char in enumerate(self.alphabet)}  # 0 is the CTC blank

    def __call__(self, utterances: Sequence[Utterance]) -> Items:
        """Return the utterances that can be trained on, as far as headers and transcripts show."""
        items = Items(utterances)
        for row, (u, length) in enumerate(zip(utterances, _lengths(utterances), strict=True)):
            with self.skipped.on_error(u.id):
                if isinstance(length, str):
                    raise UserError(length)
                item = self._item(u, length)
                if reason := self.unusable(item):
                    raise UserError(reason)
                items.add(row, item)
                self.skipped.num_good += 1
        return items

    def chars(self, utterance: Utterance) -> list[int]:
        """Return the indices of the transcript into the CTC alphabet."""
        return [self._index_of[char] for char in self._label.normalize_str(utterance.text or "")]

    def text_ids(self, utterance: Utterance) -> list[int]:
        """Return the ids of the prompt and the transcript, without the end."""
        prompt, text_tokenizer = self._tokenizer.prompt, self._tokenizer.text_tokenizer
        language = utterance.language or self._config.language
        with self._lock:  # text tokenizers are not safe for threads
            ids = prompt.transcript_ids(text_tokenizer, utterance.text or "", language)
            return [*prompt.ids(language), *ids]

    def num_codes(self, num_samples: int, speed: float = 1.0) -> int:
        """Return the codes of some samples at a speed."""
        return -(-samples_at_speed(num_samples, speed) // self._tokenizer.samples_per_code)

    def unusable(self, item: Item, speed: float = 1.0) -> str | None:
        """Return why an utterance cannot be trained on at a speed, or None.

        A transcript has at most one character per output of the CTC head, or without a head, per encoder frame.
        """
        tokenizer, num_codes = self._tokenizer, self.num_codes(item.num_samples, speed)
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

    def _item(self, utterance: Utterance, num_samples: int) -> Item:
        """Return an utterance with the next number."""
        text_ids, chars = self.text_ids(utterance), self.chars(utterance)
        slowest, per_code = min(1.0, *self._config.augment.speeds), self._tokenizer.samples_per_code // HOP_SAMPLES
        return Item(
            number=self.skipped.num_good,
            utterance=utterance,
            num_samples=num_samples,
            num_frames=self.num_codes(num_samples, slowest) * per_code,
            num_text_ids=len(text_ids),
            num_chars=len(chars),
            num_outputs=len(chars) + sum(a == b for a, b in pairwise(chars)),
        )


def _lengths(utterances: Sequence[Utterance]) -> AudioLengths:
    """Return the samples of each utterance, or why it cannot be read."""
    size = distributed.world_size()
    mine = audio_lengths(utterances[distributed.rank_slice()])
    samples, problems = np.empty(len(utterances), np.int64), dict[int, str]()
    for rank, part in enumerate(distributed.all_gather_object(mine)):
        samples[rank::size] = part.samples
        problems |= {rank + i * size: problem for i, problem in part.problems.items()}
    return AudioLengths(samples, problems)
