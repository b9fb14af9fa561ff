"""Batches ahead of the step: while a model trains on one, a thread makes the next.

with Prefetch(data.batch_at, config.train) as ahead:
    fit(model, ahead.batch_at, loss_of, config.train, ...)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import torch

from weft.training import distributed
from weft.training.loop import BatchAt, TrainConfig

_AHEAD = 2  # batches that wait: one would do if all took as long

Asked = tuple[int, slice]  # a step, and which part of its items


def beside_training(num_threads: int) -> ThreadPoolExecutor:
    """Threads that may call torch while a model trains in another: each works alone.

    With helpers of their own they would be more than there are processors, and OpenMP would put the training thread's
    helpers to sleep after every operation instead of letting them wait awake: on two cores a step took 1.8 times as
    long.
    """
    torch.get_num_threads()  # settles that of this thread, which would else be theirs too
    return ThreadPoolExecutor(num_threads, "beside-training", torch.set_num_threads, (1,))


class Prefetch:
    """`batch_at` as `fit` asks for it, step after step, the answers made ahead by one thread of its own.

    What it gives is what `batch_at` gives: that is a pure function, and may use threads itself. The thread pays where
    making a batch waits for disks or runs outside Python's lock.
    """

    def __init__(self, batch_at: BatchAt, config: TrainConfig) -> None:
        self._batch_at, self._config = batch_at, config
        self._thread = beside_training(1)
        self._begun: deque[tuple[Asked, Future[Any]]] = deque()
        self._to_come: Iterator[Asked] = iter(())

    def batch_at(self, step: int, part: slice) -> Any:
        """The batch of a part of a step. Raises what making it raised."""
        if not self._begun or self._begun[0][0] != (step, part):
            self._drop()
            self._to_come = self._after(step, part)
            self._begin((step, part))
        while len(self._begun) <= _AHEAD and (asked := next(self._to_come, None)):
            self._begin(asked)
        return self._begun.popleft()[1].result()

    def _begin(self, asked: Asked) -> None:
        self._begun.append((asked, self._thread.submit(self._batch_at, *asked)))

    def _after(self, step: int, part: slice) -> Iterator[Asked]:
        """What `fit` asks for after a part of a step."""
        every = self._config.accumulate
        parts = [distributed.share(i, every) for i in range(every)]
        done = parts.index(part) + 1 if part in parts else every
        for later in range(step, self._config.steps):
            for other in parts[done if later == step else 0 :]:
                yield later, other

    def _drop(self) -> None:
        while self._begun:
            self._begun.popleft()[1].cancel()

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        self._thread.shutdown(cancel_futures=True)
