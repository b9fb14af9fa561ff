"""Ids in, ids out: batched sampling from any Hugging Face causal LM, and step by step for a conversation.

    engine = Engine(model)
    request = Request(ids=prompt, max_new_tokens=60, seed=seed_of(document, span), allowed=mask)
    results = engine.generate(requests, Sampling(temperature=0.8), stop_ids={end_id})

    session = engine.session(seed=7)
    session.feed(prompt)
    next_id = session.sample(Sampling(temperature=0.8), allowed=mask)

Every request draws from its own seed, so its result does not depend on its neighbours, save where arithmetic on
another batch shape rounds a probability across a draw. Requests run in groups of similar length, finished rows leave
the group, and the cache holds no more than what was generated: on a CPU, memory traffic is most of the price.

Shapes: B rows, T cached positions, V vocabulary entries.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from weft.errors import UserError

_SHRINK_AT = 0.85  # a group is compacted when less than this share of its rows is still running


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
    """A prompt to continue by at most `max_new_tokens` ids. `allowed` (V, bool) masks what may be drawn."""

    ids: Sequence[int]
    max_new_tokens: int
    seed: int = 0
    allowed: Tensor | None = None


@dataclass(frozen=True)
class Generated:
    """New ids, without the stop id; `stopped` is False when the request ran into its `max_new_tokens`."""

    ids: list[int]
    stopped: bool


class Engine:
    """Runs one model, on the device and in the precision it is in. Sessions and calls of `generate` share nothing."""

    def __init__(self, model: PreTrainedModel, batch_size: int = 256) -> None:
        self.model = model.eval()
        self.batch_size = batch_size
        self.max_positions: int = getattr(model.config, "max_position_embeddings", None) or 2**31
        accepted = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in accepted
        self._takes_logits_to_keep = "logits_to_keep" in accepted

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, stop_ids: Collection[int] = ()
    ) -> list[Generated]:
        """Continue every request, in the order given. Raises UserError where one cannot fit the model's positions."""
        for r in requests:
            if not r.ids:
                raise ValueError("a request needs a prompt of at least one id")
            self.check_fits(len(r.ids) + r.max_new_tokens)
        by_length = sorted(range(len(requests)), key=lambda i: (requests[i].max_new_tokens, len(requests[i].ids)))
        results: list[Generated | None] = [None] * len(requests)
        for first in range(0, len(requests), self.batch_size):
            group = by_length[first : first + self.batch_size]
            done = self._generate_group([requests[i] for i in group], sampling, stop_ids)
            for i, generated in zip(group, done, strict=True):
                results[i] = generated
        return [r for r in results if r is not None]

    def session(self, seed: int = 0) -> Session:
        """A new conversation with a cache of its own."""
        return Session(self, seed)

    def check_fits(self, num_tokens: int) -> None:
        """Raise UserError when a sequence is longer than the model's positions."""
        if num_tokens > self.max_positions:
            raise UserError(
                f"a sequence of {num_tokens} tokens is longer than the model's {self.max_positions} positions: "
                "shorten the text, or use a model with more"
            )

    @torch.inference_mode()
    def _generate_group(
        self, requests: Sequence[Request], sampling: Sampling, stop_ids: Collection[int]
    ) -> list[Generated]:
        device = self.model.device
        ids, mask = _left_padded([r.ids for r in requests], device)  # (B, T)
        caps = torch.tensor([r.max_new_tokens for r in requests], device=device)
        allowed = _allowed_rows(requests, device)
        stops = torch.tensor(sorted(stop_ids), dtype=torch.long, device=device)
        max_steps = int(caps.max())
        draws = torch.from_numpy(np.stack([_draws(np.random.default_rng(r.seed), max_steps) for r in requests]))
        draws = draws.to(device)
        new_ids = torch.zeros(len(requests), max_steps, dtype=torch.long, device=device)
        lengths, stopped = torch.zeros_like(caps), torch.zeros_like(caps, dtype=torch.bool)

        rows = (caps > 0).nonzero()[:, 0]  # which request each row of the cache belongs to
        ids, mask = ids[rows], mask[rows]
        cache = new_cache(self.model)
        running = torch.ones_like(rows, dtype=torch.bool)
        for step in range(max_steps):
            logits = self.forward(ids, mask, cache)
            ids = draw(logits, draws[rows, step], sampling, None if allowed is None else allowed[rows])[:, None]
            new_ids[rows, step] = ids[:, 0]
            at_stop = running & torch.isin(ids[:, 0], stops)
            stopped[rows[at_stop]] = True
            lengths[rows[running & ~at_stop]] = step + 1
            running &= ~at_stop & (step + 1 < caps[rows])
            num_running = int(running.sum())
            if num_running == 0:
                break
            if num_running < _SHRINK_AT * len(rows):
                kept = running.nonzero()[:, 0]
                rows, ids, mask, running = rows[kept], ids[kept], mask[kept], running[kept]
                cache.reorder_cache(kept)  # type: ignore[arg-type]
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        kept_ids = zip(new_ids.tolist(), lengths.tolist(), stopped.tolist(), strict=True)
        return [Generated(row[:length], stop) for row, length, stop in kept_ids]

    def forward(self, ids: Tensor, mask: Tensor, cache: DynamicCache) -> Tensor:
        """Append `ids` (B, N) to the cache; `mask` (B, T) marks all positions so far. Logits (B, V) after the last."""
        kwargs: dict[str, object] = {}
        if self._takes_positions:
            kwargs["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)[:, -ids.shape[1] :]
        if self._takes_logits_to_keep:
            kwargs["logits_to_keep"] = 1
        out = self.model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **kwargs)
        return out.logits[:, -1].float()


class Session:
    """One conversation: feed ids (said by the user, or forced), sample ids, in any order."""

    def __init__(self, engine: Engine, seed: int = 0) -> None:
        self.ids: list[int] = []
        self._num_seen = 0
        self._engine = engine
        self._cache = new_cache(engine.model)
        self._rng = np.random.default_rng(seed)
        self._logits: Tensor | None = None

    @torch.inference_mode()
    def feed(self, ids: Sequence[int]) -> None:
        """Append ids and run the model over them now, so that a later `sample` answers at once."""
        self._engine.check_fits(len(self.ids) + len(ids))
        self.ids.extend(ids)
        self._catch_up()

    @torch.inference_mode()
    def sample(self, sampling: Sampling, allowed: Tensor | None = None) -> int:
        """Draw the next id and append it; the model sees it with whatever comes next. Needs one id fed before."""
        self._engine.check_fits(len(self.ids) + 1)
        self._catch_up()
        if self._logits is None:
            raise ValueError("sample() needs at least one id fed before it")
        draws = torch.from_numpy(_draws(self._rng, 1)).to(self._logits.device)
        mask = None if allowed is None else allowed.to(self._logits.device)[None]
        self.ids.append(int(draw(self._logits, draws, sampling, mask)))
        return self.ids[-1]

    def _catch_up(self) -> None:
        unseen = self.ids[self._num_seen :]
        if unseen:
            device = self._engine.model.device
            mask = torch.ones(1, len(self.ids), dtype=torch.long, device=device)
            self._logits = self._engine.forward(torch.tensor([unseen], device=device), mask, self._cache)
            self._num_seen = len(self.ids)


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


class _BufferedLayer(DynamicLayer):
    """A cache layer that writes into spare room, where transformers' own copies all it holds at every step."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._held = 0
            self._room = [key_states[:, :, :0], value_states[:, :, :0]]
        first, self._held = self._held, self._held + key_states.shape[-2]
        if self._held > self._room[0].shape[-2]:
            self._room = [_enlarged(room, first, self._held) for room in self._room]
        for room, states in zip(self._room, (key_states, value_states), strict=True):
            room[:, :, first : self._held] = states
        return self._show()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._room = [room.index_select(0, beam_idx) for room in self._room]
        self._show()

    def _show(self) -> tuple[Tensor, Tensor]:
        self.keys, self.values = (room[:, :, : self._held] for room in self._room)
        return self.keys, self.values


def _enlarged(room: Tensor, held: int, needed: int) -> Tensor:
    larger = room.new_empty(*room.shape[:2], needed + max(64, needed // 2), room.shape[3])
    larger[:, :, :held] = room[:, :, :held]
    return larger


def new_cache(model: PreTrainedModel) -> DynamicCache:
    """An empty cache of the kind each layer of the model needs."""
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    cache.layers = [_BufferedLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _draws(rng: np.random.Generator, count: int) -> np.ndarray:
    return (1 - rng.random(count)).astype(np.float32)


def _left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    longest = max(len(p) for p in prompts)
    ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, mask


def _allowed_rows(requests: Sequence[Request], device: torch.device) -> Tensor | None:
    masks = [r.allowed for r in requests if r.allowed is not None]
    if not masks:
        return None
    every = torch.ones_like(masks[0])
    return torch.stack([every if r.allowed is None else r.allowed for r in requests]).to(device)
