"""Batches prepared ahead of the training step by a thread.

with Prefetch(data.batch_at, config.train) as prefetch:
    fit(model, prefetch.batch_at, loss_of, config.train, ...)      # both with the same `parts_of`, if any
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from weft.training import distributed
from weft.training.config import TrainConfig
from weft.training.loop import BatchAt, PartsOf

_DEPTH = 2  # one would suffice if all batches took equally long

Key = tuple[int, slice]  # a step and a part of its items


def data_threads(num_threads: int) -> ThreadPoolExecutor:
    """Return threads that may call torch while another thread trains. Each uses one core.

    With OpenMP helpers, they would outnumber the cores, and the helpers of the training thread would sleep after every
    operation instead of spinning: on two cores a step took 1.8 times as long.
    """
    torch.get_num_threads()  # fixes the number of the calling thread before the others change theirs
    return ThreadPoolExecutor(num_threads, "data", torch.set_num_threads, (1,))


class Prefetch:
    """Calls `batch_at`, a pure function, in a thread ahead of the training step.

    This helps where preparing a batch waits for disks or releases Python's lock.
    """

    def __init__(self, batch_at: BatchAt, config: TrainConfig, parts_of: PartsOf | None = None) -> None:
        self._batch_at, self._config = batch_at, config
        self._parts_of = parts_of or (lambda step: distributed.rank_slices(config.grad_accum_steps))
        self._thread = data_threads(1)
        self._pending: deque[tuple[Key, Future[Any]]] = deque()
        self._upcoming: Iterator[Key] = iter(())

    def batch_at(self, step: int, part: slice) -> Any:
        """Return the batch of a part of a step. Raises what preparing it raised."""
        if not self._pending or self._pending[0][0] != (step, part):
            while self._pending:
                self._pending.popleft()[1].cancel()
            self._upcoming = self._keys_from(step, part)
        while len(self._pending) <= _DEPTH and (key := next(self._upcoming, None)):
            self._pending.append((key, self._thread.submit(self._batch_at, *key)))
        return self._pending.popleft()[1].result()

    def _keys_from(self, step: int, part: slice) -> Iterator[Key]:
        """Yield the key of a part of a step, then those that `fit` needs after it."""
        yield step, part
        parts = self._parts_of(step)
        for other in parts[parts.index(part) + 1 if part in parts else len(parts) :]:
            yield step, other
        for later in range(step + 1, self._config.steps):
            for other in self._parts_of(later):
                yield later, other

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)
