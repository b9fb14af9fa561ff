"""One step of many rows of a Llama-like model, each row at a place of its own: what every quick schedule repeats.

    state = State.empty(num_rows, num_steps, max_repeats, device)
    state.begin(rows, requests)
    cohort = read(model, [r.ids[:-1] for r in requests], rows)
    step = Step(model, Sampling(temperature=0.8), {end_id}, allowed)
    step(state, rows, [cohort])                     # draws an id for each running row, and writes down what came of it

A step reads and writes tensors in place, and its shapes depend on the rows and the caches alone: nothing waits for what
was drawn. So it can be compiled, and recorded as a CUDA graph. The head is cut to the ids that may be drawn. Norms,
sums and probabilities are fp32; products are in the precision of the model's weights.

Shapes: M rows, S ids of a row, N rows of a cohort, G key-value heads, R queries a key-value head, E head width,
T positions, D width, V ids that may be drawn.
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

ROWS = 8  # in whole vectors
_KEYS = 16
_DRAWN = 64  # rows that draw at once: more probabilities would not stay in a processor's cache
_MODELS = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")  # whose angles depend on the position alone


def suits(model: PreTrainedModel) -> bool:
    """Whether the model has the layers that are known here, with full attention in all."""
    config: Any = model.config
    return (
        type(model).__name__ in _MODELS
        and all(kind == "full_attention" for kind in getattr(config, "layer_types", None) or ())
        and config.rope_parameters.get("rope_type") in _ROPE_TYPES
    )


@dataclass
class State:
    """Where M rows are, each the row of a request or of nobody."""

    caps: Tensor  # (M,), most new ids
    prompt_lengths: Tensor  # (M,), in ids
    draws: Tensor  # (M, steps), the uniform numbers that decide
    newest: Tensor  # (M,), the last id so far
    lengths: Tensor  # (M,), of new ids
    stopped: Tensor  # (M,) bool, at a stop id
    running: Tensor  # (M,) bool
    history: History

    @classmethod
    def empty(cls, num_rows: int, num_steps: int, max_repeats: int | None, device: torch.device) -> State:
        """Rows of nobody, with room for `num_steps` new ids."""
        none = torch.zeros(num_rows, dtype=torch.long, device=device)
        return cls(
            caps=none,
            prompt_lengths=none + 1,
            draws=torch.zeros(num_rows, num_steps, device=device),
            newest=none.clone(),
            lengths=none.clone(),
            stopped=none > 0,
            running=none > 0,
            history=History(num_rows, num_steps, max_repeats, device),
        )

    def begin(self, rows: Tensor, requests: Sequence[Request]) -> None:
        """Let `rows` (M',) be those of the requests, from their beginning."""
        self.give_draws(rows, requests)
        numbers = [(r.max_new_tokens, len(r.ids), r.ids[-1]) for r in requests]
        columns = torch.tensor(numbers, dtype=torch.long, device=rows.device).view(-1, 3)
        caps, prompt_lengths, newest = columns.unbind(1)
        self.caps[rows], self.prompt_lengths[rows], self.newest[rows] = caps, prompt_lengths, newest
        self.lengths[rows], self.stopped[rows], self.running[rows] = 0, False, caps > 0

    def give_draws(self, rows: Tensor, requests: Sequence[Request]) -> None:
        """The numbers that decide for the requests of `rows` (M',), as many as there is room for."""
        draws = torch.zeros(len(requests), self.draws.shape[1])
        for row, r in zip(draws, requests, strict=True):
            count = min(r.max_new_tokens, len(row))
            row[:count] = torch.from_numpy(uniform_draws(np.random.default_rng(r.seed), count))
        self.draws[rows] = draws.to(rows.device)

    def tensors(self) -> list[Tensor]:
        """All that it is, rows first."""
        numbers = [self.caps, self.prompt_lengths, self.draws, self.newest, self.lengths, self.stopped, self.running]
        return [*numbers, self.history.ids]

    def results(self, rows: Tensor) -> list[Generated]:
        """What `rows` (M',) have drawn."""
        drawn = self.history.lists(self.lengths[rows], rows)
        return [Generated(ids, stop) for ids, stop in zip(drawn, self.stopped[rows].tolist(), strict=True)]


@dataclass
class Cohort:
    """Rows that are together, and their cache. It may have more rows, behind theirs, that are of no use."""

    rows: Tensor  # (N,), which of a state's
    keys: list[Tensor]  # of each layer, (N or more, G, E, T)
    values: list[Tensor]  # of each layer, (N or more, G, T, E)
    num_positions: int  # that the next step needs, of T

    @classmethod
    def empty(cls, model: PreTrainedModel, rows: Tensor, width: int) -> Cohort:
        """With a cache of zeros, `width` positions wide."""
        config: Any = model.config
        heads = config.num_key_value_heads
        head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads

        def zeros(*shape: int) -> list[Tensor]:
            size = (len(rows), heads, *shape)
            return [torch.zeros(size, device=model.device, dtype=model.dtype) for _ in range(config.num_hidden_layers)]

        return cls(rows, zeros(head_width, width), zeros(width, head_width), width)

    def make_room(self) -> None:
        """Make the cache as wide as `num_positions` needs: with none to spare, products take it as it lies."""
        more = whole(self.num_positions, _KEYS) - self.keys[0].shape[3]
        if more > 0:
            # zeros, because what is masked still counts: by nothing times its value
            self.keys = [F.pad(k[: len(self.rows)], (0, more)) for k in self.keys]
            self.values = [F.pad(v[: len(self.rows)], (0, 0, 0, more)) for v in self.values]


def read(model: PreTrainedModel, prompts: Sequence[Sequence[int]], rows: Tensor) -> Cohort:
    """A cohort whose cache has seen the prompts of its `rows` (N,); those behind the last prompt have none."""
    cohort = Cohort.empty(model, rows, 0)
    longest = max(map(len, prompts))
    if longest:
        ids = torch.zeros(len(rows), whole(longest, _KEYS), dtype=torch.long)
        for row, prompt in zip(ids, prompts):  # noqa: B905, nobody's rows have none
            row[: len(prompt)] = torch.tensor(prompt, dtype=torch.long)
        cohort.num_positions = longest
        place = torch.arange(ids.shape[1], device=rows.device).expand(len(rows), -1)
        # what is written behind a shorter prompt is masked until ids of the row's own take its place
        _forward(model, ids.to(rows.device), place, [cohort])
    cohort.num_positions = longest + 1
    return cohort


class Step:
    """Draws the next id of many rows. The head is that of the model when this was made, or of the last `refresh`."""

    def __init__(
        self, model: PreTrainedModel, sampling: Sampling, stop_ids: Collection[int], allowed: Sequence[int] | None
    ) -> None:
        self.model, self._sampling = model, sampling
        self._stops = torch.tensor(sorted(stop_ids), dtype=torch.long, device=model.device)
        self._columns = None if allowed is None else torch.tensor(allowed, device=model.device)
        self._head = self._drawable_head()

    def refresh(self) -> None:
        """Take the head as the model has it now, in place."""
        for own, fresh in zip(self._head, self._drawable_head(), strict=True):
            own.copy_(fresh)

    def _drawable_head(self) -> list[Tensor]:
        """Weight (V, D) and, where there is one, bias (V,)."""
        head: Any = self.model.get_output_embeddings()
        whole = [head.weight] if head.bias is None else [head.weight, head.bias]
        return whole if self._columns is None else [t[self._columns] for t in whole]

    def __call__(self, state: State, rows: Tensor, cohorts: Sequence[Cohort]) -> None:
        """Draw for `rows` (M,), those of the cohorts one after the other; rows that do not run stay as they are."""
        steps = state.lengths[rows]
        x = _forward(self.model, state.newest[rows, None], (state.prompt_lengths[rows] - 1 + steps)[:, None], cohorts)
        uniform = state.draws[rows, steps.clamp_max(state.draws.shape[1] - 1)]
        parts = zip(x.to(self.model.dtype).split(_DRAWN), uniform.split(_DRAWN), strict=True)
        drawn = [draw(F.linear(h, *self._head).float(), u, self._sampling) for h, u in parts]
        ids = torch.cat(drawn)
        ids = ids if self._columns is None else self._columns[ids]
        active = state.running[rows]
        circling = state.history.append(rows, steps, ids)  # an ended row's lies beyond its length
        at_stop = (ids[:, None] == self._stops).any(1)
        state.newest[rows] = torch.where(active, ids, state.newest[rows])
        state.stopped[rows] = torch.where(active, at_stop, state.stopped[rows])
        state.lengths[rows] = steps + (active & ~at_stop)
        state.running[rows] = active & ~at_stop & ~circling & (steps + 1 < state.caps[rows])


def _forward(model: Any, ids: Tensor, place: Tensor, cohorts: Sequence[Cohort]) -> Tensor:
    """Append `ids` (M, S) of the cohorts' rows, at their places (M, S), to the caches; states (M * S, D) in fp32."""
    x = model.model.embed_tokens(ids).float()
    cos, sin = model.model.rotary_emb(x, place)
    parts, first = [], 0
    for cohort in cohorts:
        part = slice(first, first := first + len(cohort.rows))
        cohort.make_room()
        parts.append(_Part(cohort, part, place[part]))
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
        heard = [part.attend(index, q[part.rows], k[part.rows], v[part.rows]) for part in parts]
        x = x + attention.o_proj(torch.cat(heard))
        x = x + layer.mlp(layer.post_attention_layernorm(x).to(model.dtype))
    return model.model.norm(x)


class _Part:
    """What a cohort does in a pass over the model."""

    def __init__(self, cohort: Cohort, rows: slice, place: Tensor) -> None:
        self.rows = rows
        self._cohort, self._place = cohort, place
        self._row = torch.arange(len(place), device=place.device)[:, None]
        unseen = torch.arange(cohort.keys[0].shape[3], device=place.device) > place[..., None]  # (N, S, T)
        self._unseen = unseen[:, None, None]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries (N, S, heads, E), keys and values (N, S, G, E), which the cache takes, to (N * S, heads * E)."""
        keys, values = self._cohort.keys[layer], self._cohort.values[layer]
        keys[self._row, :, :, self._place] = k
        values[self._row, :, self._place] = v
        num_rows, num_ids = q.shape[:2]
        keys, values = keys[:num_rows], values[:num_rows]
        asked = q.view(num_rows, num_ids, k.shape[2], -1, q.shape[3]).permute(0, 2, 3, 1, 4)  # (N, G, R, S, E)
        scores = (asked.flatten(2, 3) @ keys).float().unflatten(2, (-1, num_ids))  # (N, G, R, S, T)
        shares = scores.masked_fill(self._unseen, -torch.inf).softmax(-1).to(values.dtype)
        heard = (shares.flatten(2, 3) @ values).unflatten(2, (-1, num_ids))
        return heard.permute(0, 3, 1, 2, 4).reshape(num_rows * num_ids, -1)


def longest_first(requests: Sequence[Request]) -> list[int]:
    """The requests that want new ids. Neighbours are of about equal length; the last to begin are the first to end."""
    wanted = (i for i, r in enumerate(requests) if r.max_new_tokens)
    return sorted(wanted, key=lambda i: (-requests[i].max_new_tokens, len(requests[i].ids)))


def whole(count: int, step: int) -> int:
    """`count`, rounded up to whole vectors."""
    return -(-count // step) * step
