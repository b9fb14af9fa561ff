"""Which document comes when: a shuffled mixture of token shards, at any place of which one can begin.

    sources = {"text": Pieces(TokenShards("tokens/text"), row_tokens=256), "speech": ...}
    mixture = Mixture(sources, {0: {"text": 0.3, "speech": "rest"}}, steps=1000, tokens_per_step=4096, seed=0)
    for sample in mixture.samples(step): ids, loss = mixture[sample]

Sample j is a pure function of (seed, weights, j), so the state of a loader is one number, and the ranks of a run, few
or many, read the same samples. What is read later changes nothing before it: weights may change from any step on.
Documents longer than a row are cut into pieces.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from weft.data.shards import TokenShards
from weft.lm.shares import Cycle, cycle_of


class Pieces:
    """The documents of token shards, cut into pieces of at most `row_tokens` ids: `pieces[i]` is (ids, loss mask).

    A piece begins with the id that the one before ended with, as context: every id but a document's first is
    predicted in one piece. Documents of a single id have nothing to predict and give none. Costs 8 bytes a document.
    """

    def __init__(self, shards: TokenShards, row_tokens: int) -> None:
        lengths = shards.lengths()
        self._shards = shards
        self.row_tokens = row_tokens
        self._stride = row_tokens - 1
        self._ends = np.cumsum(-(-np.maximum(lengths - 1, 0) // self._stride))
        self.num_documents, self.num_shard_tokens = len(shards), shards.num_tokens
        self.num_tokens = int(np.maximum(lengths - 1, 0).sum()) + len(self)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        document = int(np.searchsorted(self._ends, i, side="right"))
        start = (i - (int(self._ends[document - 1]) if document else 0)) * self._stride
        whole = self._shards[document]
        piece = slice(start, start + self._stride + 1)
        return whole.ids[piece], whole.loss[piece]


@dataclass(frozen=True)
class Share:
    """What a run reads of a source: its share of the tokens from each step on where weights change, and all in all."""

    documents: int
    tokens: int
    shares: dict[int, float]
    tokens_drawn: int
    epochs: float


@dataclass(frozen=True, eq=False)  # by identity, to be remembered by
class _Stretch:
    """A run's steps between two changes of weights, and all that comes before them: `drawn` (S,) by source."""

    cycle: Cycle
    first_step: int
    first_sample: int
    first_cycle: int
    drawn: np.ndarray

    def sample(self, step: int) -> int:
        return self.first_sample + (step - self.first_step) * self.cycle.samples_per_step


class Mixture:
    """A sequence of pieces, (ids, loss mask). A source's pieces all pass once before one passes again.

    `weights` has the weights of all sources (`weft.lm.shares`) by the step from which they hold, the first of which is
    0; steps are `steps`, of about `tokens_per_step`. Raises UserError for weights that cannot be kept.
    """

    def __init__(
        self,
        sources: Mapping[str, Pieces],
        weights: Mapping[int, Mapping[str, float | str]],
        steps: int,
        tokens_per_step: int,
        seed: int,
    ) -> None:
        self._sources = {name: sources[name] for name in sorted(sources)}
        self._pieces = list(self._sources.values())
        self._steps, self._seed = steps, seed
        self._order = lru_cache(maxsize=4)(self._order_of)
        self._stretches: list[_Stretch] = []
        for step in sorted(weights):
            drawn, sample, cycles = np.zeros(len(sources), np.int64), 0, 0
            if self._stretches:
                before = self._stretches[-1]
                drawn, sample = self._drawn(before, step), before.sample(step)
                cycles = before.first_cycle + -(-(sample - before.first_sample) // len(before.cycle))
            called = f"weights_from.{step}" if step else "weights"
            cycle = cycle_of(weights[step], sources, drawn, steps - step, tokens_per_step, called)
            self._stretches.append(_Stretch(cycle, step, sample, cycles, drawn))

    def samples(self, step: int) -> range:
        """The numbers of a step's samples."""
        stretch = self._stretches[bisect_right(self._stretches, step, key=lambda s: s.first_step) - 1]
        return range(stretch.sample(step), stretch.sample(step + 1))

    def __getitem__(self, sample: int) -> tuple[np.ndarray, np.ndarray]:
        return self._piece(*self._place(sample))

    @property
    def names(self) -> tuple[str, ...]:
        """The sources, in the order of their numbers."""
        return tuple(self._sources)

    def source_of(self, sample: int) -> int:
        """The number of a sample's source."""
        return self._place(sample)[0]

    def shares(self) -> dict[str, Share]:
        """What the run reads of each source, by name."""
        drawn = self._drawn(self._stretches[-1], self._steps)
        tokens = np.array([pieces.num_tokens / max(1, len(pieces)) for pieces in self._pieces])
        by_step = {s.first_step: s.cycle.quotas * tokens / (s.cycle.quotas @ tokens) for s in self._stretches}
        return {
            name: Share(
                documents=pieces.num_documents,
                tokens=pieces.num_shard_tokens,
                shares={step: float(shares[i]) for step, shares in by_step.items()},
                tokens_drawn=round(drawn[i] * tokens[i]),
                epochs=int(drawn[i]) / max(1, len(pieces)),
            )
            for i, (name, pieces) in enumerate(self._sources.items())
        }

    def _drawn(self, stretch: _Stretch, step: int) -> np.ndarray:
        """Samples of each source, (S,), before a step of the stretch, or the step at its end."""
        cycles, part = divmod(stretch.sample(step) - stretch.first_sample, len(stretch.cycle))
        in_part = np.bincount(self._order(stretch, cycles)[0][:part], minlength=len(self._pieces))
        return stretch.drawn + cycles * stretch.cycle.quotas + in_part

    def _place(self, sample: int) -> tuple[int, int]:
        """The number of a sample's source, and how many were drawn of it before."""
        stretch = self._stretches[bisect_right(self._stretches, sample, key=lambda s: s.first_sample) - 1]
        cycle, slot = divmod(sample - stretch.first_sample, len(stretch.cycle))
        order, ranks = self._order(stretch, cycle)
        source = int(order[slot])
        return source, int(stretch.drawn[source]) + cycle * int(stretch.cycle.quotas[source]) + int(ranks[slot])

    def _piece(self, source: int, draw: int) -> tuple[np.ndarray, np.ndarray]:
        pieces = self._pieces[source]
        epoch, i = divmod(draw, len(pieces))
        return pieces[permuted(i, len(pieces), (self._seed, source, epoch))]

    def _order_of(self, stretch: _Stretch, cycle: int) -> tuple[np.ndarray, np.ndarray]:
        """The source of each sample of a cycle, and how many of the same source came before it there."""
        quotas = stretch.cycle.quotas
        order = np.repeat(np.arange(len(quotas)), quotas)
        order = np.random.default_rng([self._seed, stretch.first_cycle + cycle]).permutation(order)
        ranks = np.zeros(len(order), np.int64)
        for source, quota in enumerate(quotas):
            ranks[order == source] = np.arange(quota)
        return order, ranks


def permuted(i: int, size: int, key: tuple[int, ...]) -> int:
    """Where a keyed permutation of range(size) sends `i`: a Feistel network, walked until it lands inside.

    It needs no memory, unlike a shuffled list, which for a trillion tokens would not fit.
    """
    half = max(1, (size - 1).bit_length() + 1 >> 1)
    mask = (1 << half) - 1
    round_keys = np.frombuffer(hashlib.sha256(repr(key).encode()).digest(), "<u8").tolist()
    while True:
        left, right = i >> half, i & mask
        for round_key in round_keys:
            left, right = right, left ^ (_mix(right ^ round_key) & mask)
        i = left << half | right
        if i < size:
            return i


def _mix(x: int) -> int:
    """splitmix64's finaliser: every bit of `x` moves every bit of the result."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    x = (x ^ x >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return x ^ x >> 31
