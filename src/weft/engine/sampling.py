"""Requests, sampling and results, the same for every way of generating.

Shapes: B rows, V vocabulary entries, W ids in the window of the loop check.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

MAX_CYCLE = 8


@dataclass(frozen=True)
class Sampling:
    """Settings for sampling the next id."""

    temperature: float = 1.0
    """Divisor of the logits; 0 takes the most probable id."""
    top_k: int | None = None
    """Sample among this many most probable ids; None for all."""
    top_p: float = 1.0
    """Sample among the most probable ids with this total probability."""


@dataclass(frozen=True)
class Request:
    """A prompt to continue by at most `max_new_tokens` ids, and the seed of its random numbers."""

    ids: Sequence[int]
    max_new_tokens: int
    seed: int = 0


@dataclass(frozen=True)
class Generated:
    """New ids without the stop id. `stopped` is False at `max_new_tokens` and after a loop."""

    ids: list[int]
    stopped: bool


def draw(logits: Tensor, draws: Tensor, sampling: Sampling, allowed: Tensor | None = None) -> Tensor:
    """Sample ids (B,) from `logits` (B, V) with uniform random numbers `draws` (B,) in (0, 1]."""
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -torch.inf)
    if sampling.temperature == 0:
        return logits.argmax(-1)
    logits = logits / sampling.temperature
    order = None
    if sampling.top_k is not None or sampling.top_p < 1:
        logits, order = logits.topk(min(sampling.top_k or logits.shape[1], logits.shape[1]))
    cumulative = _cumsum(logits.softmax(-1))  # the last column is 1 up to rounding
    total = cumulative[:, -1:]
    if sampling.top_p < 1:
        num_kept = (cumulative < sampling.top_p).sum(-1, keepdim=True)
        total = cumulative.gather(1, num_kept.clamp_max(cumulative.shape[1] - 1))
    # The first column that reaches a positive number has a positive probability.
    chosen = torch.searchsorted(cumulative, draws[:, None].to(cumulative.dtype) * total)
    return (chosen if order is None else order.gather(1, chosen))[:, 0]


@torch.library.custom_op("weft::cumsum", mutates_args=())
def _cumsum(x: Tensor) -> Tensor:
    """Return cumulative sums of rows. TorchInductor (2.11) fails to compile those of wide rows on a GPU."""
    return x.cumsum(-1)


@_cumsum.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def uniform_draws(rng: np.random.Generator, count: int) -> np.ndarray:
    """Return random numbers in (0, 1], (count,) float32."""
    return (1 - rng.random(count)).astype(np.float32)


class History:
    """The ids generated so far for each of B requests, at most `max_steps` each.

    A row is in a loop when each of its last `max_repeats` ids equals the id one cycle earlier, for a cycle of 1 to 8
    ids. With None, loops are not detected.
    """

    def __init__(self, num_rows: int, max_steps: int, max_repeats: int | None, device: torch.device | None) -> None:
        self._window = 0 if max_repeats is None else max_repeats + MAX_CYCLE
        # The window before the first id holds distinct values that equal no id.
        before = torch.arange(-self._window, 0, device=device).expand(num_rows, -1)
        # The last column takes the ids of rows that have ended.
        room = torch.zeros(num_rows, max_steps + 1, dtype=torch.long, device=device)
        self.ids = torch.cat([before, room], 1)
        self._offsets = torch.arange(1, self._window + 1, device=device)

    def append(self, rows: Tensor, steps: Tensor, ids: Tensor) -> Tensor:
        """Write `ids` of `rows` at `steps` (all (B,)); return which of the rows are in a loop now, (B,) bool."""
        self.ids[rows, self._window + steps] = ids
        if not self._window:
            return torch.zeros_like(ids, dtype=torch.bool)
        recent = self.ids[rows[:, None], steps[:, None] + self._offsets]  # (B, W), the newest last
        cycles = range(1, MAX_CYCLE + 1)
        repeated = [(recent[:, MAX_CYCLE:] == recent[:, MAX_CYCLE - n : -n]).all(1) for n in cycles]
        return torch.stack(repeated).any(0)

    def lists(self, lengths: Tensor, rows: Tensor | slice = slice(None)) -> list[list[int]]:
        """Return the first `lengths` ids of each of `rows`."""
        ids = self.ids[rows, self._window :].tolist()
        return [row[:length] for row, length in zip(ids, lengths.tolist(), strict=True)]


def is_looping(rows: Sequence[Sequence[int]], max_repeats: int | None) -> list[bool]:
    """Return for each row of ids whether `History` would have detected a loop at any step."""
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.long)
    longest = int(lengths.max()) if rows else 0
    history = History(len(rows), longest, max_repeats, None)
    found = torch.zeros_like(lengths, dtype=torch.bool)
    for step in range(longest):
        active = (lengths > step).nonzero()[:, 0]
        ids = torch.tensor([rows[i][step] for i in active.tolist()])
        found[active] |= history.append(active, torch.full_like(active, step), ids)
    return found.tolist()
