"""Batched sampling from any Hugging Face causal LM, and step by step for a conversation.

    engine = Engine(model)
    request = Request(ids=prompt, max_new_tokens=60, seed=seed_of(document, span))
    results = engine.generate([request, ...], Sampling(temperature=0.8), stop_ids={end_id}, allowed=ids)

    session = engine.session(seed=7)
    session.feed(prompt)
    next_id = session.sample(Sampling(temperature=0.8), allowed=mask)

Every request has its own seed. Llama-like models run by `weft.engine.continuous`, where a result does not depend on the
other requests; large calls on a GPU by `weft.engine.captured`. Other models run as transformers implements them, in
groups of similar length. There, the shape of a batch may change rounding, and thereby a sampled id.

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

from weft.engine import continuous, step
from weft.engine.captured import CapturedStep
from weft.engine.sampling import Generated, History, Request, Sampling, draw, uniform_draws
from weft.errors import UserError

__all__ = ["Engine", "Generated", "Request", "Sampling", "Session"]

_COMPACT_BELOW = 0.85  # a group is compacted when less than this fraction of its rows is still running
_WIDTH_MULTIPLE = 128  # of captured caches, so that calls of similar length share one


class Engine:
    """Generation from one model, on its device and in its dtype.

    Sessions and calls of `generate` are independent, except that calls on a GPU take turns with the captured step.
    """

    def __init__(self, model: PreTrainedModel, batch_size: int = 256) -> None:
        self.model = model.eval()
        self.batch_size = batch_size
        self.max_positions: int = getattr(model.config, "max_position_embeddings", None) or 2**31
        accepted = inspect.signature(model.forward).parameters
        self._accepts_position_ids = "position_ids" in accepted
        self._accepts_logits_to_keep = "logits_to_keep" in accepted
        self._captured: tuple[object, CapturedStep] | None = None
        generation: Any = model.generation_config
        self.default_ids: list[int] | None = None
        """The ids that may be sampled if a call does not name any; None for all."""
        if generation is not None and generation.suppress_tokens:
            num_ids = model.get_output_embeddings().weight.shape[0]
            self.default_ids = sorted(set(range(num_ids)) - set(generation.suppress_tokens))

    def generate(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        stop_ids: Collection[int] = (),
        allowed: Collection[int] | None = None,
        max_repeats: int | None = None,
    ) -> list[Generated]:
        """Continue every request until it samples a stop id or gets into a loop (see `History`); return them in order.

        Only `allowed` ids are sampled; None allows all but the `suppress_tokens` of the model's generation config, such
        as rows without a token. Raises UserError if a request does not fit the model's positions.
        """
        for r in requests:
            if not r.ids:
                raise ValueError("a request needs a prompt of at least one id")
            self.check_fits(len(r.ids) + r.max_new_tokens)
        ids = self.default_ids if allowed is None else sorted(set(allowed))
        if step.is_supported(self.model):
            if self.model.device.type == "cuda" and len(requests) >= self.batch_size:
                return self._captured_for(requests, sampling, stop_ids, ids, max_repeats).generate(requests)
            return continuous.generate(self.model, requests, sampling, stop_ids, ids, max_repeats, self.batch_size)
        by_length = sorted(range(len(requests)), key=lambda i: (requests[i].max_new_tokens, len(requests[i].ids)))
        results: dict[int, Generated] = {}
        for first in range(0, len(requests), self.batch_size):
            group = by_length[first : first + self.batch_size]
            done = self._generate_group([requests[i] for i in group], sampling, stop_ids, ids, max_repeats)
            results |= zip(group, done, strict=True)
        return [results[i] for i in range(len(requests))]

    def _captured_for(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        stop_ids: Collection[int],
        ids: Sequence[int] | None,
        max_repeats: int | None,
    ) -> CapturedStep:
        """Return the captured step of the last call, if it has the same settings and is wide enough, or a new one."""
        width = step.round_up(max(len(r.ids) + r.max_new_tokens for r in requests), _WIDTH_MULTIPLE)
        settings = (sampling, set(stop_ids), ids, max_repeats)
        if self._captured is None or self._captured[0] != settings or self._captured[1].width < width:
            self._captured = None  # frees its memory first
            new_step = step.Step(self.model, sampling, stop_ids, ids)
            self._captured = settings, CapturedStep(new_step, max_repeats, self.batch_size, width)
        return self._captured[1]

    def session(self, seed: int = 0) -> Session:
        """Return a new conversation with its own cache."""
        return Session(self, seed)

    def check_fits(self, num_tokens: int) -> None:
        """Raise UserError if a sequence is longer than the model's positions."""
        if num_tokens > self.max_positions:
            raise UserError(
                f"a sequence of {num_tokens} tokens is longer than the model's {self.max_positions} positions: "
                "shorten the text, or use a model with more positions"
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
        max_lengths = torch.tensor([r.max_new_tokens for r in requests], device=device)
        stops = torch.tensor(sorted(stop_ids), dtype=torch.long, device=device)
        max_steps = int(max_lengths.max())
        draws = torch.from_numpy(np.stack([uniform_draws(np.random.default_rng(r.seed), max_steps) for r in requests]))
        draws = draws.to(device)
        history = History(len(requests), max_steps, max_repeats, device)
        lengths, stopped = torch.zeros_like(max_lengths), torch.zeros_like(max_lengths, dtype=torch.bool)

        rows = (max_lengths > 0).nonzero()[:, 0]  # the request of each row of the cache
        ids, mask = ids[rows], mask[rows]
        cache = new_cache(self.model)
        running = torch.ones_like(rows, dtype=torch.bool)
        for i in range(max_steps):
            logits = self.forward(ids, mask, cache)
            ids = draw(logits, draws[rows, i], sampling, _mask(allowed, logits))[:, None]
            at_stop = running & torch.isin(ids[:, 0], stops)
            looping = history.append(rows, torch.full_like(rows, i), ids[:, 0])
            stopped[rows[at_stop]] = True
            lengths[rows[running & ~at_stop]] = i + 1
            running &= ~at_stop & ~looping & (i + 1 < max_lengths[rows])
            num_running = int(running.sum())
            if num_running == 0:
                break
            if num_running < _COMPACT_BELOW * len(rows):
                kept = running.nonzero()[:, 0]
                rows, ids, mask, running = rows[kept], ids[kept], mask[kept], running[kept]
                cache.reorder_cache(kept)  # type: ignore[arg-type]
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        return [Generated(ids, stop) for ids, stop in zip(history.lists(lengths), stopped.tolist(), strict=True)]

    def forward(self, ids: Tensor, mask: Tensor, cache: DynamicCache) -> Tensor:
        """Append `ids` (B, N) to the cache; return the last logits (B, V). `mask` (B, T) marks valid positions."""
        kwargs: dict[str, object] = {}
        if self._accepts_position_ids:
            kwargs["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)[:, -ids.shape[1] :]
        if self._accepts_logits_to_keep:
            kwargs["logits_to_keep"] = 1
        out = self.model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **kwargs)
        return out.logits[:, -1].float()


class Session:
    """One conversation: feed given ids and sample new ones, in any order."""

    def __init__(self, engine: Engine, seed: int = 0) -> None:
        self.ids: list[int] = []
        self._num_processed = 0
        self._engine = engine
        self._cache = new_cache(engine.model)
        self._rng = np.random.default_rng(seed)
        self._logits: Tensor | None = None

    @torch.inference_mode()
    def feed(self, ids: Sequence[int]) -> None:
        """Append ids and run the model over them now, so that a later `sample` is fast."""
        self._engine.check_fits(len(self.ids) + len(ids))
        self.ids.extend(ids)
        self._process()

    @torch.inference_mode()
    def sample(self, sampling: Sampling, allowed: Tensor | None = None) -> int:
        """Sample the next id and append it; the model processes it in the next call. Needs at least one fed id.

        `allowed` (V,) bool marks the ids that may be sampled; None means the same as for `Engine.generate`.
        """
        self._engine.check_fits(len(self.ids) + 1)
        self._process()
        if self._logits is None:
            raise ValueError("sample() needs at least one id fed before it")
        draws = torch.from_numpy(uniform_draws(self._rng, 1)).to(self._logits.device)
        if allowed is None:
            mask = _mask(self._engine.default_ids, self._logits)
        else:
            mask = allowed.to(self._logits.device)[None]
        self.ids.append(int(draw(self._logits, draws, sampling, mask)))
        return self.ids[-1]

    def _process(self) -> None:
        ids = self.ids[self._num_processed :]
        if ids:
            device = self._engine.model.device
            mask = torch.ones(1, len(self.ids), dtype=torch.long, device=device)
            self._logits = self._engine.forward(torch.tensor([ids], device=device), mask, self._cache)
            self._num_processed = len(self.ids)


class _BufferedLayer(DynamicLayer):
    """A cache layer that writes into spare space, where transformers' own layer copies everything at every step."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._length = 0
            self._buffers = [key_states[:, :, :0], value_states[:, :, :0]]
        first, self._length = self._length, self._length + key_states.shape[-2]
        if self._length > self._buffers[0].shape[-2]:
            self._buffers = [_enlarged(buffer, first, self._length) for buffer in self._buffers]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, first : self._length] = states
        return self._views()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._buffers = [buffer.index_select(0, beam_idx) for buffer in self._buffers]
        self._views()

    def _views(self) -> tuple[Tensor, Tensor]:
        self.keys, self.values = (buffer[:, :, : self._length] for buffer in self._buffers)
        return self.keys, self.values


def _enlarged(buffer: Tensor, length: int, needed: int) -> Tensor:
    larger = buffer.new_empty(*buffer.shape[:2], needed + max(64, needed // 2), buffer.shape[3])
    larger[:, :, :length] = buffer[:, :, :length]
    return larger


def new_cache(model: PreTrainedModel) -> DynamicCache:
    """Return an empty cache of the kind that each layer of the model needs."""
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    cache.layers = [_BufferedLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _mask(ids: Sequence[int] | None, logits: Tensor) -> Tensor | None:
    """Return a mask (1, V) of ids; None for None."""
    if ids is None:
        return None
    mask = torch.zeros(1, logits.shape[1], dtype=torch.bool, device=logits.device)
    mask[0, ids] = True
    return mask


def _left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    longest = max(len(p) for p in prompts)
    ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, mask
