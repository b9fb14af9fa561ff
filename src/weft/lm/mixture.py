"""A shuffled mixture of token shards with random access.

    sources = {"text": Pieces(TokenShards("tokens/text"), max_seq_len=256), "speech": ...}
    mixture = Mixture(sources, {0: {"text": 0.3, "speech": "rest"}}, steps=1000, batch_tokens=4096, seed=0)
    for ids, loss in mixture.read(mixture.samples(step)): ...

Sample j is a pure function of seed, weights and j. The state of a data loader is therefore one number, and any number
of ranks reads the same samples. Weights may change at any step; this changes no earlier one. Long documents are split.

Shapes: S sources, in the order of `sources`.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from weft.data.token_shards import TokenShards
from weft.lm.source_weights import Cycle, cycle_of

_MAX_SUMMED = 100_000  # pieces whose lengths are summed for `Mixture.uses`; of more, the mean is accurate


class Pieces:
    """The documents of token shards, split into pieces of at most `max_seq_len` ids: `pieces[i]` is (ids, loss mask).

    A piece begins with the last id of the previous one as context, so every id but a document's first is predicted
    exactly once. Documents of a single id have no piece. Memory: 16 bytes per document.
    """

    def __init__(self, shards: TokenShards, max_seq_len: int) -> None:
        self._lengths = lengths = shards.lengths()
        self._shards = shards
        self.max_seq_len = max_seq_len
        self._stride = max_seq_len - 1
        self._ends = np.cumsum(-(-np.maximum(lengths - 1, 0) // self._stride))
        self.num_documents, self.num_shard_tokens = len(shards), shards.num_tokens
        self.num_tokens = int(np.maximum(lengths - 1, 0).sum()) + len(self)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        return self.read([i])[0]

    def read(self, indices: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return several pieces, which are read at once."""
        return [(tokens.ids, tokens.loss) for tokens in self._shards.read([self._locate(i) for i in indices])]

    def length(self, i: int) -> int:
        """Return the number of ids in a piece, without reading them."""
        document, place = self._locate(i)
        return len(range(int(self._lengths[document]))[place])

    def _locate(self, i: int) -> tuple[int, slice]:
        """Return the document of a piece, and its place there."""
        document = int(np.searchsorted(self._ends, i, side="right"))
        start = (i - (int(self._ends[document - 1]) if document else 0)) * self._stride
        return document, slice(start, start + self._stride + 1)

    def tokens_in(self, indices: np.ndarray) -> int:
        """Return the number of ids in the pieces `indices` (N,) int64."""
        documents = np.searchsorted(self._ends, indices, side="right")
        first = np.where(documents, self._ends[documents - 1], 0)
        left = self._shards.lengths()[documents] - (indices - first) * self._stride
        return int(np.minimum(left, self.max_seq_len).sum())


@dataclass(frozen=True)
class SourceUse:
    """The use of a source by a run.

    `weights` and `shares` are its weight and its fraction of the tokens drawn, from each step at which weights change.
    """

    documents: int
    tokens: int
    weights: dict[int, float | str]
    shares: dict[int, float]
    tokens_drawn: int
    epochs: float


@dataclass(frozen=True, eq=False)  # hashed by identity, for lru_cache
class _Phase:
    """The steps of a run between two changes of weights, with the samples `drawn` (S,) before it."""

    weights: Mapping[str, float | str]
    cycle: Cycle
    first_step: int
    first_sample: int
    first_cycle: int
    drawn: np.ndarray

    def sample(self, step: int) -> int:
        return self.first_sample + (step - self.first_step) * self.cycle.samples_per_step


class Mixture:
    """A sequence of pieces, (ids, loss mask). All pieces of a source are used once before one is used again.

    `weights` are the weights of all sources (`weft.lm.source_weights`) by the step from which they hold; the first is
    0. Raises UserError for impossible weights.
    """

    def __init__(
        self,
        sources: Mapping[str, Pieces],
        weights: Mapping[int, Mapping[str, float | str]],
        steps: int,
        batch_tokens: int,
        seed: int,
    ) -> None:
        self._sources = dict(sources)
        self._pieces = list(self._sources.values())
        self._steps, self._seed = steps, seed
        self._order = lru_cache(maxsize=4)(self._order_of)
        self._phases: list[_Phase] = []
        for step in sorted(weights):
            drawn, sample, cycles = np.zeros(len(sources), np.int64), 0, 0
            if self._phases:
                before = self._phases[-1]
                drawn, sample = self._drawn(before, step), before.sample(step)
                cycles = before.first_cycle + -(-(sample - before.first_sample) // len(before.cycle))
            setting = f"weights_from.{step}" if step else "weights"
            cycle = cycle_of(weights[step], sources, drawn, steps - step, batch_tokens, setting)
            self._phases.append(_Phase(weights[step], cycle, step, sample, cycles, drawn))

    def samples(self, step: int) -> range:
        """Return the indices of a step's samples."""
        phase = self._phases[bisect_right(self._phases, step, key=lambda p: p.first_step) - 1]
        return range(phase.sample(step), phase.sample(step + 1))

    def __getitem__(self, sample: int) -> tuple[np.ndarray, np.ndarray]:
        return self.read([sample])[0]

    def read(self, samples: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return several samples, of which those of a source are read at once."""
        by_source: dict[int, dict[int, int]] = {}  # source -> sample -> piece
        for sample in samples:
            source, piece = self._piece(sample)
            by_source.setdefault(source, {})[sample] = piece
        found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for source, pieces in by_source.items():
            found |= zip(pieces, self._pieces[source].read(list(pieces.values())), strict=True)
        return [found[sample] for sample in samples]

    def length(self, sample: int) -> int:
        """Return the number of ids of a sample, without reading them."""
        source, piece = self._piece(sample)
        return self._pieces[source].length(piece)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the sources, in order."""
        return tuple(self._sources)

    def source_of(self, sample: int) -> int:
        """Return the index of a sample's source."""
        return self._location(sample)[0]

    def uses(self) -> dict[str, SourceUse]:
        """Return the use of each source by the run, from its actual samples.

        Above 100,000 samples of an incomplete epoch of a source, their mean length is that of all its pieces.
        """
        return self._uses

    @cached_property
    def _uses(self) -> dict[str, SourceUse]:
        ends = [phase.drawn for phase in self._phases[1:]] + [self._drawn(self._phases[-1], self._steps)]
        drawn = np.array([np.zeros_like(ends[0]), *ends])  # (phases + 1, S)
        tokens = np.array([[self._tokens(i, int(count)) for i, count in enumerate(counts)] for counts in drawn])
        in_phase = np.diff(tokens, axis=0)
        shares = in_phase / np.maximum(1, in_phase.sum(1, keepdims=True))
        return {
            name: SourceUse(
                documents=pieces.num_documents,
                tokens=pieces.num_shard_tokens,
                weights={phase.first_step: phase.weights[name] for phase in self._phases},
                shares={phase.first_step: float(shares[k, i]) for k, phase in enumerate(self._phases)},
                tokens_drawn=int(tokens[-1, i]),
                epochs=int(drawn[-1, i]) / max(1, len(pieces)),
            )
            for i, (name, pieces) in enumerate(self._sources.items())
        }

    def _tokens(self, source: int, count: int) -> int:
        """Return the number of ids in the first `count` samples of a source."""
        pieces = self._pieces[source]
        epochs, rest = divmod(count, max(1, len(pieces)))
        whole = epochs * pieces.num_tokens
        if rest > _MAX_SUMMED:
            return whole + round(rest * pieces.num_tokens / len(pieces))
        key = (self._seed, source, epochs)
        indices = np.fromiter((permuted(i, len(pieces), key) for i in range(rest)), np.int64, rest)
        return whole + pieces.tokens_in(indices)

    def _drawn(self, phase: _Phase, step: int) -> np.ndarray:
        """Return the number of samples of each source (S,) before a step of the phase, or the step at its end."""
        cycles, part = divmod(phase.sample(step) - phase.first_sample, len(phase.cycle))
        in_part = np.bincount(self._order(phase, cycles)[0][:part], minlength=len(self._pieces))
        return phase.drawn + cycles * phase.cycle.quotas + in_part

    def _piece(self, sample: int) -> tuple[int, int]:
        """Return the index of a sample's source, and of its piece there."""
        source, draw = self._location(sample)
        epoch, i = divmod(draw, len(self._pieces[source]))
        return source, permuted(i, len(self._pieces[source]), (self._seed, source, epoch))

    def _location(self, sample: int) -> tuple[int, int]:
        """Return the index of a sample's source, and the number of earlier samples of that source."""
        phase = self._phases[bisect_right(self._phases, sample, key=lambda p: p.first_sample) - 1]
        cycle, slot = divmod(sample - phase.first_sample, len(phase.cycle))
        order, ranks = self._order(phase, cycle)
        source = int(order[slot])
        return source, int(phase.drawn[source]) + cycle * int(phase.cycle.quotas[source]) + int(ranks[slot])

    def _order_of(self, phase: _Phase, cycle: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the source of each sample of a cycle, and how many samples of the same source precede it there."""
        quotas = phase.cycle.quotas
        order = np.repeat(np.arange(len(quotas)), quotas)
        order = np.random.default_rng([self._seed, phase.first_cycle + cycle]).permutation(order)
        ranks = np.zeros(len(order), np.int64)
        for source, quota in enumerate(quotas):
            ranks[order == source] = np.arange(quota)
        return order, ranks


def permuted(i: int, size: int, key: tuple[int, ...]) -> int:
    """Return the image of `i` under a keyed permutation of range(size): a Feistel network with cycle walking.

    Unlike a shuffled list, it needs no memory.
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
    """Return splitmix64's finalizer of a 64-bit integer."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    x = (x ^ x >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return x ^ x >> 31
