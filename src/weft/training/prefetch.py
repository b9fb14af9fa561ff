"""Batches prepared ahead of the training step by a thread.

with Prefetch(data.batch_at, config.train) as prefetch:
    fit(model, prefetch.batch_at, loss_of, config.train, ...)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from weft.training import distributed
from weft.training.config import TrainConfig
from weft.training.loop import BatchAt

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

    def __init__(self, batch_at: BatchAt, config: TrainConfig) -> None:
        self._batch_at, self._config = batch_at, config
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
        num_parts = self._config.grad_accum_steps
        parts = [distributed.rank_slice(i, num_parts) for i in range(num_parts)]
        done = parts.index(part) + 1 if part in parts else num_parts
        for later in range(step, self._config.steps):
            for other in parts[done if later == step else 0 :]:
                yield later, other

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)
