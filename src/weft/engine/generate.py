"""Ids in, ids out: batched sampling from any Hugging Face causal LM, and step by step for a conversation.

    engine = Engine(model)
    request = Request(ids=prompt, max_new_tokens=60, seed=seed_of(document, span))
    results = engine.generate([request, ...], Sampling(temperature=0.8), stop_ids={end_id}, allowed=ids)

    session = engine.session(seed=7)
    session.feed(prompt)
    next_id = session.sample(Sampling(temperature=0.8), allowed=mask)

Every request draws from its own seed. Llama-like models run in `weft.engine.cohorts`, where a result does not depend on
the request's neighbours at all; a batch or more of requests on a GPU in `weft.engine.slots`, compiled and recorded. Any
other model runs as transformers has it, in groups of similar length that finished rows leave; there arithmetic on
another batch shape can round a probability across a draw.

Shapes: B rows, T cached positions, V vocabulary entries.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from weft.engine import cohorts, slots, steps
from weft.engine.sampling import Generated, History, Request, Sampling, draw, uniform_draws
from weft.errors import UserError

__all__ = ["Engine", "Generated", "Request", "Sampling", "Session"]

_SHRINK_AT = 0.85  # a group is compacted when less than this share of its rows is still running


class Engine:
    """Runs one model, on the device and in the precision it is in.

    Sessions and calls of `generate` share nothing, save on a GPU what was recorded there, at which calls take turns.
    """

    def __init__(self, model: PreTrainedModel, batch_size: int = 256) -> None:
        self.model = model.eval()
        self.batch_size = batch_size
        self.max_positions: int = getattr(model.config, "max_position_embeddings", None) or 2**31
        accepted = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in accepted
        self._takes_logits_to_keep = "logits_to_keep" in accepted
        self._slots: tuple[object, slots.Slots] | None = None
        generation: Any = model.generation_config
        self.drawable: list[int] | None = None
        """The ids that may be drawn where none are asked for; None for all."""
        if generation is not None and generation.suppress_tokens:
            num_ids = model.get_output_embeddings().weight.shape[0]
            self.drawable = sorted(set(range(num_ids)) - set(generation.suppress_tokens))

    def generate(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        stop_ids: Collection[int] = (),
        allowed: Collection[int] | None = None,
        max_repeats: int | None = None,
    ) -> list[Generated]:
        """Continue every request, in the order given, until it draws a stop id or goes in circles (see `History`).

        Only ids that are `allowed` are drawn; None allows all but the `suppress_tokens` of the model's generation
        config, such as rows without a token. Raises UserError where a request cannot fit the model's positions.
        """
        for r in requests:
            if not r.ids:
                raise ValueError("a request needs a prompt of at least one id")
            self.check_fits(len(r.ids) + r.max_new_tokens)
        ids = self.drawable if allowed is None else sorted(set(allowed))
        if steps.suits(self.model):
            if slots.suits(self.model.device, len(requests), self.batch_size):
                return self._slots_for(sampling, stop_ids, ids, max_repeats).generate(requests)
            return cohorts.generate(self.model, requests, sampling, stop_ids, ids, max_repeats, self.batch_size)
        by_length = sorted(range(len(requests)), key=lambda i: (requests[i].max_new_tokens, len(requests[i].ids)))
        results: dict[int, Generated] = {}
        for first in range(0, len(requests), self.batch_size):
            group = by_length[first : first + self.batch_size]
            done = self._generate_group([requests[i] for i in group], sampling, stop_ids, ids, max_repeats)
            results |= zip(group, done, strict=True)
        return [results[i] for i in range(len(requests))]

    def _slots_for(
        self, sampling: Sampling, stop_ids: Collection[int], ids: Sequence[int] | None, max_repeats: int | None
    ) -> slots.Slots:
        """Those of the last call, where it asked for the same."""
        asked = (sampling, set(stop_ids), ids, max_repeats)
        if self._slots is None or self._slots[0] != asked:
            self._slots = None  # its memory goes first
            step = steps.Step(self.model, sampling, stop_ids, ids)
            self._slots = asked, slots.Slots(step, max_repeats, self.batch_size)
        return self._slots[1]

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
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        stop_ids: Collection[int],
        allowed: Sequence[int] | None,
        max_repeats: int | None,
    ) -> list[Generated]:
        device = self.model.device
        ids, mask = _left_padded([r.ids for r in requests], device)  # (B, T)
        caps = torch.tensor([r.max_new_tokens for r in requests], device=device)
        stops = torch.tensor(sorted(stop_ids), dtype=torch.long, device=device)
        max_steps = int(caps.max())
        draws = torch.from_numpy(np.stack([uniform_draws(np.random.default_rng(r.seed), max_steps) for r in requests]))
        draws = draws.to(device)
        history = History(len(requests), max_steps, max_repeats, device)
        lengths, stopped = torch.zeros_like(caps), torch.zeros_like(caps, dtype=torch.bool)

        rows = (caps > 0).nonzero()[:, 0]  # which request each row of the cache belongs to
        ids, mask = ids[rows], mask[rows]
        cache = new_cache(self.model)
        running = torch.ones_like(rows, dtype=torch.bool)
        for step in range(max_steps):
            logits = self.forward(ids, mask, cache)
            drawable = None
            if allowed is not None:
                drawable = torch.zeros(logits.shape[1], dtype=torch.bool, device=device)
                drawable[allowed] = True
            ids = draw(logits, draws[rows, step], sampling, drawable)[:, None]
            at_stop = running & torch.isin(ids[:, 0], stops)
            circling = history.append(rows, torch.full_like(rows, step), ids[:, 0])
            stopped[rows[at_stop]] = True
            lengths[rows[running & ~at_stop]] = step + 1
            running &= ~at_stop & ~circling & (step + 1 < caps[rows])
            num_running = int(running.sum())
            if num_running == 0:
                break
            if num_running < _SHRINK_AT * len(rows):
                kept = running.nonzero()[:, 0]
                rows, ids, mask, running = rows[kept], ids[kept], mask[kept], running[kept]
                cache.reorder_cache(kept)  # type: ignore[arg-type]
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        kept_ids = zip(history.lists(lengths), stopped.tolist(), strict=True)
        return [Generated(ids, stop) for ids, stop in kept_ids]

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
        """Draw the next id and append it; the model sees it with whatever comes next. Needs one id fed before.

        `allowed` marks the ids that may be drawn, (V,) bool; None means what it means for `Engine.generate`.
        """
        self._engine.check_fits(len(self.ids) + 1)
        self._catch_up()
        if self._logits is None:
            raise ValueError("sample() needs at least one id fed before it")
        draws = torch.from_numpy(uniform_draws(self._rng, 1)).to(self._logits.device)
        if allowed is None and self._engine.drawable is not None:
            allowed = torch.zeros(self._logits.shape[1], dtype=torch.bool)
            allowed[self._engine.drawable] = True
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


def _left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    longest = max(len(p) for p in prompts)
    ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, mask
