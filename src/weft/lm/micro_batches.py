"""Micro-batches: the documents of a step, divided by length between processes and forward passes.

    parts = MicroBatches(mixture.samples, mixture.length, batch_tokens=4096, grad_accum_steps=4)
    fit(model, lambda step, part: pack([mixture[j] for j in parts.samples(step, part)]), ..., parts_of=parts.parts_of)

A micro-batch has at most `batch_tokens` divided by the processes and by `grad_accum_steps`. Its tokens are the measure
of its memory: documents are packed without padding, and fused attention stores nothing that is quadratic in their
lengths. A longer document is a micro-batch of its own. A process has `grad_accum_steps` micro-batches, or more if the
documents do not fit these.

A step contains a fixed number of documents, so its tokens vary around `batch_tokens`. A single process with
`grad_accum_steps` 1 does not divide it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise

from weft.data.batching import groups_without_padding
from weft.training import distributed


class MicroBatches:
    """The division of steps into micro-batches, which are slices of their samples in the order of `samples`.

    `samples_of(step)` returns the numbers of a step's documents, and `length_of(sample)` their tokens.
    """

    def __init__(
        self,
        samples_of: Callable[[int], Sequence[int]],
        length_of: Callable[[int], int],
        batch_tokens: int,
        grad_accum_steps: int,
    ) -> None:
        self._samples_of, self._length_of = samples_of, length_of
        self._num = distributed.world_size() * grad_accum_steps
        self._max_tokens = batch_tokens // self._num
        self._groups = lru_cache(maxsize=8)(self._groups_of)  # batches are prepared some steps ahead

    def samples(self, step: int, part: slice = slice(None)) -> list[int]:
        """Return the samples of a step, or of a micro-batch of any process."""
        return [sample for group in self._groups(step) for sample in group][part]

    def parts_of(self, step: int) -> Sequence[slice]:
        """Return the micro-batches of this process, as slices of the step's samples."""
        ends = list(accumulate(map(len, self._groups(step)), initial=0))
        return distributed.rank_part([slice(*both) for both in pairwise(ends)])

    def _groups_of(self, step: int) -> list[list[int]]:
        samples = list(self._samples_of(step))
        if self._num == 1:
            return [samples]
        lengths = [self._length_of(sample) for sample in samples]
        groups = groups_without_padding(lengths, self._max_tokens, self._num, distributed.world_size())
        return [[samples[i] for i in group] for group in groups]
