"""The decoding step of a Llama-like model for many rows at different positions, shared by all schedules.

    state = State.empty(num_rows, num_steps, max_repeats, device)
    state.begin(rows, requests)
    batch = prefill(model, [r.ids[:-1] for r in requests], rows)
    step = Step(model, Sampling(temperature=0.8), {end_id}, allowed)
    step(state, rows, [batch])                      # samples one id for each running row and updates the state

A step reads and writes tensors in place, and its shapes depend only on the rows and the caches, never on sampled ids.
It can therefore be compiled, and captured as a CUDA graph. The output head is restricted to the allowed ids. Norms,
sums and probabilities are fp32; matrix products have the dtype of the weights.

Shapes: M rows, S ids of a row, N rows of a sub-batch, G key-value heads, R queries per key-value head, E head size,
T positions, D hidden size, V allowed ids.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from weft.engine.sampling import Generated, History, Request, Sampling, draw, uniform_draws

ROW_MULTIPLE = 8  # numbers of rows and keys in whole vectors, for which kernels compute a row independently of others
_KEY_MULTIPLE = 16
_ROWS_PER_DRAW = 64  # the probabilities of more rows do not fit in a processor's cache
_MODELS = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")  # whose angles depend only on the position


def is_supported(model: PreTrainedModel) -> bool:
    """Whether this module implements the model's layers; all of them must have full attention."""
    config: Any = model.config
    return (
        type(model).__name__ in _MODELS
        and all(kind == "full_attention" for kind in getattr(config, "layer_types", None) or ())
        and config.rope_parameters.get("rope_type") in _ROPE_TYPES
    )


@dataclass
class State:
    """The progress of M rows. A row belongs to a request, or is unused."""

    max_lengths: Tensor  # (M,), maximum number of new ids
    prompt_lengths: Tensor  # (M,), in ids
    draws: Tensor  # (M, steps), the random numbers
    newest: Tensor  # (M,), the last id
    lengths: Tensor  # (M,), number of new ids
    stopped: Tensor  # (M,) bool, whether a stop id was sampled
    running: Tensor  # (M,) bool
    history: History

    @classmethod
    def empty(cls, num_rows: int, num_steps: int, max_repeats: int | None, device: torch.device) -> State:
        """Return unused rows with space for `num_steps` new ids each."""
        zeros = torch.zeros(num_rows, dtype=torch.long, device=device)
        return cls(
            max_lengths=zeros,
            prompt_lengths=zeros + 1,
            draws=torch.zeros(num_rows, num_steps, device=device),
            newest=zeros.clone(),
            lengths=zeros.clone(),
            stopped=zeros > 0,
            running=zeros > 0,
            history=History(num_rows, num_steps, max_repeats, device),
        )

    def begin(self, rows: Tensor, requests: Sequence[Request]) -> None:
        """Assign `rows` (M',) to requests."""
        draws = torch.zeros(len(requests), self.draws.shape[1])
        for row, r in zip(draws, requests, strict=True):
            count = min(r.max_new_tokens, len(row))
            row[:count] = torch.from_numpy(uniform_draws(np.random.default_rng(r.seed), count))
        self.draws[rows] = draws.to(rows.device)
        numbers = [(r.max_new_tokens, len(r.ids), r.ids[-1]) for r in requests]
        columns = torch.tensor(numbers, dtype=torch.long, device=rows.device).view(-1, 3).unbind(1)
        self.max_lengths[rows], self.prompt_lengths[rows], self.newest[rows] = columns
        self.lengths[rows], self.stopped[rows], self.running[rows] = 0, False, columns[0] > 0

    def results(self, rows: Tensor) -> list[Generated]:
        """Return the results of `rows` (M',)."""
        ids = self.history.lists(self.lengths[rows], rows)
        return [Generated(row, stop) for row, stop in zip(ids, self.stopped[rows].tolist(), strict=True)]


@dataclass
class SubBatch:
    """Rows that were admitted together, and their KV cache. The cache may have unused rows at its end."""

    rows: Tensor  # (N,), indices into a state
    keys: list[Tensor]  # of each layer, (N or more, G, E, T)
    values: list[Tensor]  # of each layer, (N or more, G, T, E)
    num_positions: int  # that the next step needs; T may be larger

    @classmethod
    def empty(cls, model: PreTrainedModel, rows: Tensor, width: int) -> SubBatch:
        """Return a sub-batch with a cache of zeros, `width` positions wide."""
        config: Any = model.config
        heads = config.num_key_value_heads
        head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads

        def zeros(*shape: int) -> list[Tensor]:
            size = (len(rows), heads, *shape)
            return [torch.zeros(size, device=model.device, dtype=model.dtype) for _ in range(config.num_hidden_layers)]

        return cls(rows, zeros(head_size, width), zeros(width, head_size), width)

    def reserve(self) -> None:
        """Widen the cache to `num_positions`. Without spare columns, matrix products take it without a copy."""
        missing = round_up(self.num_positions, _KEY_MULTIPLE) - self.keys[0].shape[3]
        if missing > 0:
            # Zeros, because masked positions are still multiplied by a weight of zero.
            self.keys = [F.pad(k[: len(self.rows)], (0, missing)) for k in self.keys]
            self.values = [F.pad(v[: len(self.rows)], (0, 0, 0, missing)) for v in self.values]


def prefill(model: PreTrainedModel, prompts: Sequence[Sequence[int]], rows: Tensor) -> SubBatch:
    """Return a sub-batch whose cache contains the prompts of its `rows` (N,). Rows after the last prompt are unused."""
    batch = SubBatch.empty(model, rows, 0)
    longest = max(map(len, prompts))
    if longest:
        ids = torch.zeros(len(rows), round_up(longest, _KEY_MULTIPLE), dtype=torch.long)
        for row, prompt in zip(ids, prompts):  # noqa: B905 - unused rows have no prompt
            row[: len(prompt)] = torch.tensor(prompt, dtype=torch.long)
        batch.num_positions = longest
        positions = torch.arange(ids.shape[1], device=rows.device).expand(len(rows), -1)
        # Entries after a shorter prompt are masked until the row's own ids overwrite them.
        _forward(model, ids.to(rows.device), positions, [batch])
    batch.num_positions = longest + 1
    return batch


class Step:
    """The decoding step, with a copy of the output head that the model had at construction or `refresh`."""

    def __init__(
        self, model: PreTrainedModel, sampling: Sampling, stop_ids: Collection[int], allowed: Sequence[int] | None
    ) -> None:
        self.model, self._sampling = model, sampling
        self._stops = torch.tensor(sorted(stop_ids), dtype=torch.long, device=model.device)
        self._columns = None if allowed is None else torch.tensor(allowed, device=model.device)
        self._head = self._allowed_head()

    def refresh(self) -> None:
        """Copy the model's current head, in place."""
        for own, fresh in zip(self._head, self._allowed_head(), strict=True):
            own.copy_(fresh)

    def _allowed_head(self) -> list[Tensor]:
        """Return the weight (V, D) and, if there is one, the bias (V,)."""
        head: Any = self.model.get_output_embeddings()
        tensors = [head.weight] if head.bias is None else [head.weight, head.bias]
        return tensors if self._columns is None else [t[self._columns] for t in tensors]

    def __call__(self, state: State, rows: Tensor, batches: Sequence[SubBatch]) -> None:
        """Sample for `rows` (M,), those of the sub-batches in order. Rows that are not running do not change."""
        steps = state.lengths[rows]
        x = _forward(self.model, state.newest[rows, None], (state.prompt_lengths[rows] - 1 + steps)[:, None], batches)
        uniform = state.draws[rows, steps.clamp_max(state.draws.shape[1] - 1)]
        parts = zip(x.to(self.model.dtype).split(_ROWS_PER_DRAW), uniform.split(_ROWS_PER_DRAW), strict=True)
        ids = torch.cat([draw(F.linear(h, *self._head).float(), u, self._sampling) for h, u in parts])
        ids = ids if self._columns is None else self._columns[ids]
        active = state.running[rows]
        looping = state.history.append(rows, steps, ids)  # a row that has ended writes after its last id
        at_stop = (ids[:, None] == self._stops).any(1)
        state.newest[rows] = torch.where(active, ids, state.newest[rows])
        state.stopped[rows] = torch.where(active, at_stop, state.stopped[rows])
        state.lengths[rows] = steps + (active & ~at_stop)
        state.running[rows] = active & ~at_stop & ~looping & (steps + 1 < state.max_lengths[rows])


def _forward(model: Any, ids: Tensor, positions: Tensor, batches: Sequence[SubBatch]) -> Tensor:
    """Append `ids` (M, S) at `positions` (M, S) to the caches of the sub-batches; return states (M * S, D) in fp32."""
    x = model.model.embed_tokens(ids).float()
    cos, sin = model.model.rotary_emb(x, positions)
    parts, first = [], 0
    for batch in batches:
        part = slice(first, first := first + len(batch.rows))
        batch.reserve()
        parts.append(_CachedAttention(batch, part, positions[part]))
    x = x.flatten(0, 1)
    for index, layer in enumerate(model.model.layers):
        attention = layer.self_attn
        h = layer.input_layernorm(x).to(model.dtype)
        q, k, v = (
            project(h).view(*ids.shape, -1, attention.head_dim)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        if hasattr(attention, "q_norm"):
            q, k = attention.q_norm(q), attention.k_norm(k)
        q, k = (t.to(model.dtype) for t in apply_rotary_pos_emb(q * attention.scaling, k, cos, sin, unsqueeze_dim=2))
        attended = [part(index, q[part.rows], k[part.rows], v[part.rows]) for part in parts]
        x = x + attention.o_proj(torch.cat(attended))
        x = x + layer.mlp(layer.post_attention_layernorm(x).to(model.dtype))
    return model.model.norm(x)


class _CachedAttention:
    """Attention of one sub-batch over its cache."""

    def __init__(self, batch: SubBatch, rows: slice, positions: Tensor) -> None:
        self.rows = rows
        self._batch, self._positions = batch, positions
        self._row = torch.arange(len(positions), device=positions.device)[:, None]
        future = torch.arange(batch.keys[0].shape[3], device=positions.device) > positions[..., None]  # (N, S, T)
        self._mask = future[:, None, None]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append keys and values (N, S, G, E); return the outputs (N * S, heads * E) of queries (N, S, heads, E)."""
        keys, values = self._batch.keys[layer], self._batch.values[layer]
        keys[self._row, :, :, self._positions] = k
        values[self._row, :, self._positions] = v
        num_rows, num_ids = q.shape[:2]
        keys, values = keys[:num_rows], values[:num_rows]
        queries = q.view(num_rows, num_ids, k.shape[2], -1, q.shape[3]).permute(0, 2, 3, 1, 4)  # (N, G, R, S, E)
        scores = (queries.flatten(2, 3) @ keys).float().unflatten(2, (-1, num_ids))  # (N, G, R, S, T)
        weights = scores.masked_fill(self._mask, -torch.inf).softmax(-1).to(values.dtype)
        outputs = (weights.flatten(2, 3) @ values).unflatten(2, (-1, num_ids))
        return outputs.permute(0, 3, 1, 2, 4).reshape(num_rows * num_ids, -1)


def longest_first(requests: Sequence[Request]) -> list[int]:
    """Return the indices of requests for at least one id. Neighbours have similar lengths, and the last end first."""
    indices = (i for i, r in enumerate(requests) if r.max_new_tokens)
    return sorted(indices, key=lambda i: (-requests[i].max_new_tokens, len(requests[i].ids)))


def round_up(count: int, multiple: int) -> int:
    """Round `count` up to a multiple."""
    return -(-count // multiple) * multiple
