"""Many requests to a Llama-like model at once, each row at a place of its own: the quick way of `Engine.generate`.

    if suits(model):
        results = generate(model, requests, Sampling(temperature=0.8), {end_id}, allowed, None, batch_size=256)

Requests are admitted in cohorts of about equal length, as soon as finished rows have left room for one, so that matrix
products always see nearly `batch_size` rows. Attention goes cohort by cohort over a cache no longer than what its rows
have seen. The head is cut to the ids that may be drawn. Norms, sums and probabilities are fp32; products are in the
precision of the model's weights.

A request's ids depend on the request and not on its company: a row's cache begins at position 0 whatever its
neighbours' lengths, and the kernels compute a row of a product alike for any number of rows and any number of masked
keys as long as both come in whole vectors (`_ROWS`, `_KEYS`). The tests hold that on a CPU, for fp32 and bf16, whatever
the number of threads; other kernels may round otherwise. It is written for a GPU as well, and was not run on one yet.

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

_COHORTS = 4  # at once: more would be shorter of padding and longer in calls
_ROWS = 8
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
class _Cohort:
    """Requests that began together, and their cache. It may have more rows, behind theirs, that are of no use."""

    rows: Tensor  # (N,), which requests
    keys: list[Tensor]  # of each layer, (N or more, G, E, T)
    values: list[Tensor]  # of each layer, (N or more, G, T, E)
    num_positions: int  # that the next step needs, of T

    def make_room(self) -> None:
        """Make the cache as wide as `num_positions` needs: with none to spare, products take it as it lies."""
        more = _whole(self.num_positions, _KEYS) - self.keys[0].shape[3]
        if more > 0:
            # zeros, because what is masked still counts: by nothing times its value
            self.keys = [F.pad(k[: len(self.rows)], (0, more)) for k in self.keys]
            self.values = [F.pad(v[: len(self.rows)], (0, 0, 0, more)) for v in self.values]


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    requests: Sequence[Request],
    sampling: Sampling,
    stop_ids: Collection[int],
    allowed: Sequence[int] | None,
    max_repeats: int | None,
    batch_size: int,
) -> list[Generated]:
    """What `Engine.generate` gives, of requests that are known to fit; `allowed` has distinct ids."""
    device = model.device
    columns = None if allowed is None else torch.tensor(allowed, device=device)
    head: Any = model.get_output_embeddings()
    weight, bias = head.weight, head.bias
    if columns is not None:
        weight, bias = weight[columns], None if bias is None else bias[columns]
    requests = [*requests, Request([0], 0)]  # nobody's, for rows that fill a vector
    caps = torch.tensor([r.max_new_tokens for r in requests], device=device)
    stops = torch.tensor(sorted(stop_ids), dtype=torch.long, device=device)
    max_steps = int(caps.max())
    draws = torch.zeros(len(requests), max_steps, device=device)
    for row, r in zip(draws, requests, strict=True):
        row[: r.max_new_tokens] = torch.from_numpy(uniform_draws(np.random.default_rng(r.seed), r.max_new_tokens))
    history = History(len(requests), max_steps, max_repeats, device)
    prompt_lengths = torch.tensor([len(r.ids) for r in requests], device=device)
    newest = torch.tensor([r.ids[-1] for r in requests], device=device)
    lengths, stopped, running = torch.zeros_like(caps), torch.zeros_like(caps, dtype=torch.bool), caps > 0

    waiting = [i for i in _longest_first(requests) if requests[i].max_new_tokens]
    size = max(1, batch_size // _COHORTS)
    cohorts: list[_Cohort] = []
    while waiting or cohorts:
        while waiting and (not cohorts or sum(len(c.rows) for c in cohorts) + size <= batch_size):
            cohorts.append(_admit(model, requests, waiting[:size]))
            waiting = waiting[size:]
        rows = torch.cat([c.rows for c in cohorts])
        steps = lengths[rows]
        x = _forward(model, newest[rows, None], (prompt_lengths[rows] - 1 + steps)[:, None], cohorts)
        uniform = draws[rows, steps.clamp_max(max_steps - 1)]
        parts = zip(x.to(weight.dtype).split(_DRAWN), uniform.split(_DRAWN), strict=True)
        ids = torch.cat([draw(F.linear(h, weight, bias).float(), u, sampling) for h, u in parts])
        ids = ids if columns is None else columns[ids]
        active = running[rows]
        rows, ids, steps = rows[active], ids[active], steps[active]
        newest[rows] = ids
        circling = history.append(rows, steps, ids)
        at_stop = torch.isin(ids, stops)
        stopped[rows] = at_stop
        lengths[rows] = steps + (~at_stop).long()
        running[rows] = ~at_stop & ~circling & (steps + 1 < caps[rows])
        for cohort in cohorts:
            _drop_finished(cohort, running[cohort.rows])
        cohorts = [c for c in cohorts if len(c.rows)]
    pairs = zip(history.lists(lengths), stopped.tolist(), strict=True)
    return [Generated(ids, stop) for ids, stop in pairs][:-1]


def _longest_first(requests: Sequence[Request]) -> list[int]:
    """Neighbours are of about equal length, and the last to begin are the first to end."""
    return sorted(range(len(requests)), key=lambda i: (-requests[i].max_new_tokens, len(requests[i].ids)))


def _admit(model: PreTrainedModel, requests: Sequence[Request], chosen: Sequence[int]) -> _Cohort:
    """A cohort whose cache has seen its prompts, save their last ids: those begin the first common step."""
    config: Any = model.config
    device, dtype = model.device, model.dtype
    prompts = [requests[i].ids[:-1] for i in chosen]
    num_rows = _whole(len(chosen), _ROWS)
    longest = max(map(len, prompts))
    heads = config.num_key_value_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    empty = torch.zeros(num_rows, heads, 0, width, device=device, dtype=dtype)
    rows = torch.tensor([*chosen, *[len(requests) - 1] * (num_rows - len(chosen))], device=device)
    num_layers = config.num_hidden_layers
    cohort = _Cohort(rows, [empty.transpose(2, 3)] * num_layers, [empty] * num_layers, longest)
    if longest:
        ids = torch.zeros(num_rows, _whole(longest, _KEYS), dtype=torch.long)
        for row, prompt in zip(ids, prompts):  # noqa: B905, nobody's rows have none
            row[: len(prompt)] = torch.tensor(prompt, dtype=torch.long)
        place = torch.arange(ids.shape[1], device=device).expand(num_rows, -1)
        # what is written behind a shorter prompt is masked until ids of the row's own take its place
        _forward(model, ids.to(device), place, [cohort])
    cohort.num_positions = longest + 1
    return cohort


def _forward(model: Any, ids: Tensor, place: Tensor, cohorts: Sequence[_Cohort]) -> Tensor:
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

    def __init__(self, cohort: _Cohort, rows: slice, place: Tensor) -> None:
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


def _drop_finished(cohort: _Cohort, running: Tensor) -> None:
    """Bring the running rows to the front, in whole vectors; the others make room."""
    cohort.num_positions += 1
    num_running = int(running.sum())
    size = _whole(num_running, _ROWS)
    if size >= len(cohort.rows):
        return
    holes = (~running[:size]).nonzero()[:, 0]
    movers = size + running[size:].nonzero()[:, 0]
    holes = holes[: len(movers)]
    cohort.rows[holes] = cohort.rows[movers]
    cohort.rows = cohort.rows[:size]
    for cached in (*cohort.keys, *cohort.values):
        cached[holes] = cached[movers]


def _whole(count: int, step: int) -> int:
    """`count`, rounded up to whole vectors."""
    return -(-count // step) * step
