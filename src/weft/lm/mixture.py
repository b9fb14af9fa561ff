"""Which document comes when: an endless, shuffled mixture of token shards, at any place of which one can begin.

    pieces = Pieces(TokenShards("tokens/text"), row_tokens=256)
    mixture = Mixture([Source("text", pieces, weight=0.3), Source("speech", others, weight=0.7)], seed=0)
    ids, loss = mixture[12_345]

Sample j is a pure function of (seed, weights, j), so the state of a loader is one number, and the ranks of a run, few
or many, read the same samples. Documents longer than a row are cut into pieces.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from weft.data.shards import TokenShards
from weft.errors import UserError

_CYCLE = 1024  # samples in which every source has its exact quota: weights are kept to a thousandth


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
class Source:
    """A part of a mixture. `weight` is its share of the tokens, in proportion to the other sources' weights."""

    name: str
    pieces: Pieces
    weight: float


class Mixture:
    """An endless sequence of pieces, (ids, loss mask). A source's pieces all pass once before one passes again."""

    def __init__(self, sources: Sequence[Source], seed: int) -> None:
        for source in sources:
            if source.weight <= 0:
                raise UserError(f"{source.name} has weight {source.weight}: give a positive one, or leave it out")
            if not len(source.pieces):
                raise UserError(f"{source.name} has no document of two ids or more: leave it out")
        self.sources = tuple(sources)
        self._seed = seed
        mean_tokens = np.array([s.pieces.num_tokens / len(s.pieces) for s in sources])
        self._quotas = _quotas(np.array([s.weight for s in sources]) / mean_tokens)
        self.mean_tokens = float(self._quotas @ mean_tokens / _CYCLE)
        self._cycle = lru_cache(maxsize=4)(self._cycle_at)

    def __getitem__(self, sample: int) -> tuple[np.ndarray, np.ndarray]:
        cycle, slot = divmod(sample, _CYCLE)
        order, ranks = self._cycle(cycle)
        source = int(order[slot])
        return self._piece(source, cycle * int(self._quotas[source]) + int(ranks[slot]))

    def epochs(self, num_samples: int) -> dict[str, float]:
        """How often each source's documents have passed, by name, after `num_samples` samples."""
        seen = num_samples * self._quotas / _CYCLE
        return {s.name: float(n / len(s.pieces)) for s, n in zip(self.sources, seen, strict=True)}

    def _piece(self, source: int, draw: int) -> tuple[np.ndarray, np.ndarray]:
        pieces = self.sources[source].pieces
        epoch, i = divmod(draw, len(pieces))
        return pieces[permuted(i, len(pieces), (self._seed, source, epoch))]

    def _cycle_at(self, cycle: int) -> tuple[np.ndarray, np.ndarray]:
        """The source of each sample of a cycle, and how many of the same source came before it there."""
        order = np.repeat(np.arange(len(self._quotas)), self._quotas)
        order = np.random.default_rng([self._seed, cycle]).permutation(order)
        ranks = np.zeros(_CYCLE, np.int64)
        for source, quota in enumerate(self._quotas):
            ranks[order == source] = np.arange(quota)
        return order, ranks


def _quotas(shares: np.ndarray) -> np.ndarray:
    """Whole numbers proportional to `shares`, at least 1 each, that sum to the cycle, by largest remainder."""
    exact = shares / shares.sum() * (_CYCLE - len(shares))
    quotas = exact.astype(np.int64)
    left = _CYCLE - len(shares) - int(quotas.sum())
    quotas[np.argsort(quotas - exact, kind="stable")[:left]] += 1
    return quotas + 1


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
