"""What is asked for, how an id is drawn, and what is given back: the same for every way of generating.

Shapes: B rows, V vocabulary entries, W ids looked back on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

LONGEST_CYCLE = 8


@dataclass(frozen=True)
class Sampling:
    """How the next id is drawn."""

    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest id."""
    top_k: int | None = None
    """Draw among this many likeliest ids; None for all."""
    top_p: float = 1.0
    """Draw among the likeliest ids that together have this probability."""


@dataclass(frozen=True)
class Request:
    """A prompt to continue by at most `max_new_tokens` ids."""

    ids: Sequence[int]
    max_new_tokens: int
    seed: int = 0


@dataclass(frozen=True)
class Generated:
    """New ids, without the stop id; `stopped` is False when the request ran into its `max_new_tokens` or in circles."""

    ids: list[int]
    stopped: bool


def draw(logits: Tensor, draws: Tensor, sampling: Sampling, allowed: Tensor | None = None) -> Tensor:
    """Ids (B,) drawn from `logits` (B, V) by the uniform numbers `draws` (B,), each in (0, 1]."""
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -torch.inf)
    if sampling.temperature == 0:
        return logits.argmax(-1)
    logits = logits / sampling.temperature
    order = None
    if sampling.top_k is not None or sampling.top_p < 1:
        logits, order = logits.topk(min(sampling.top_k or logits.shape[1], logits.shape[1]))
    shares = logits.softmax(-1).cumsum(-1)  # the last column is 1, but for rounding
    last = shares[:, -1:]
    if sampling.top_p < 1:
        num_kept = (shares < sampling.top_p).sum(-1, keepdim=True)
        last = shares.gather(1, num_kept.clamp_max(shares.shape[1] - 1))
    # The first column that reaches a draw above zero has itself a probability above zero.
    chosen = torch.searchsorted(shares, draws[:, None].to(shares.dtype) * last)
    return (chosen if order is None else order.gather(1, chosen))[:, 0]


def uniform_draws(rng: np.random.Generator, count: int) -> np.ndarray:
    """Numbers in (0, 1], (count,) float32."""
    return (1 - rng.random(count)).astype(np.float32)


class History:
    """The ids drawn so far for each of B requests, of at most `max_steps` each.

    A row goes in circles when its last `max_repeats` ids each equal the one that came a whole cycle before, a cycle
    being 1 to 8 ids; None never looks.
    """

    def __init__(self, num_rows: int, max_steps: int, max_repeats: int | None, device: torch.device | None) -> None:
        self._window = 0 if max_repeats is None else max_repeats + LONGEST_CYCLE
        # what no id equals, nor each other, stands before the first
        before = torch.arange(-self._window, 0, device=device).expand(num_rows, -1)
        # and behind the last of `max_steps`, what a row draws that has ended
        room = torch.zeros(num_rows, max_steps + 1, dtype=torch.long, device=device)
        self.ids = torch.cat([before, room], 1)
        self._back = torch.arange(1, self._window + 1, device=device)

    def append(self, rows: Tensor, steps: Tensor, ids: Tensor) -> Tensor:
        """Note `ids` of `rows` at places `steps` (all (B,)); which of the rows go in circles now (B, bool)."""
        self.ids[rows, self._window + steps] = ids
        if not self._window:
            return torch.zeros_like(ids, dtype=torch.bool)
        seen = self.ids[rows[:, None], steps[:, None] + self._back]  # (B, W), the newest last
        cycles = range(1, LONGEST_CYCLE + 1)
        repeated = [(seen[:, LONGEST_CYCLE:] == seen[:, LONGEST_CYCLE - n : -n]).all(1) for n in cycles]
        return torch.stack(repeated).any(0)

    def lists(self, lengths: Tensor, rows: Tensor | slice = slice(None)) -> list[list[int]]:
        """The first `lengths` ids of each of `rows`."""
        ids = self.ids[rows, self._window :].tolist()
        return [row[:length] for row, length in zip(ids, lengths.tolist(), strict=True)]


def went_in_circles(rows: Sequence[Sequence[int]], max_repeats: int | None) -> list[bool]:
    """Which of `rows` of ids went in circles at any place, as `History` would have told when they came one by one."""
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.long)
    longest = int(lengths.max()) if rows else 0
    history = History(len(rows), longest, max_repeats, None)
    found = torch.zeros_like(lengths, dtype=torch.bool)
    for step in range(longest):
        here = (lengths > step).nonzero()[:, 0]
        ids = torch.tensor([rows[i][step] for i in here.tolist()])
        found[here] |= history.append(here, torch.full_like(here, step), ids)
    return found.tolist()
