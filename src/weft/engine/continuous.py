"""Continuous batching for Llama-like models: the default schedule of `Engine.generate`.

    if is_supported(model):
        results = generate(model, requests, Sampling(temperature=0.8), {end_id}, allowed, None, batch_size=256)

Requests of similar length are admitted together, as a sub-batch, as soon as finished rows leave room for it, so that
matrix products always have nearly `batch_size` rows. Attention runs per sub-batch, over a cache as wide as its longest.

The ids of a request do not depend on the other requests: the cache of a row begins at position 0, and kernels compute
a row identically for any number of rows, and of masked keys that is a multiple of the vector width. Tests check
this on the CPU for fp32 and bf16 and any number of threads; other kernels may round differently.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from weft.engine.sampling import Generated, Request, Sampling
from weft.engine.step import ROW_MULTIPLE, State, Step, SubBatch, longest_first, prefill, round_up

NUM_SUB_BATCHES = 4  # more would pad less and make more calls


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
    """Generate as `Engine.generate` does, for requests that fit the model's positions; `allowed` ids are distinct."""
    device = model.device
    num_steps = max((r.max_new_tokens for r in requests), default=0)
    # The last row is unused: it pads sub-batches to a multiple of rows.
    state = State.empty(len(requests) + 1, num_steps, max_repeats, device)
    all_rows = torch.arange(len(requests), device=device)
    state.begin(all_rows, requests)
    step = Step(model, sampling, stop_ids, allowed)
    waiting, size = longest_first(requests), max(1, batch_size // NUM_SUB_BATCHES)
    batches: list[SubBatch] = []
    while waiting or batches:
        while waiting and (not batches or sum(len(b.rows) for b in batches) + size <= batch_size):
            chosen, waiting = waiting[:size], waiting[size:]
            padding_rows = [len(requests)] * (round_up(len(chosen), ROW_MULTIPLE) - len(chosen))
            rows = torch.tensor([*chosen, *padding_rows], device=device)
            batches.append(prefill(model, [requests[i].ids[:-1] for i in chosen], rows))
        step(state, torch.cat([b.rows for b in batches]), batches)
        for batch in batches:
            _drop_finished(batch, state.running[batch.rows])
        batches = [b for b in batches if len(b.rows)]
    return state.results(all_rows)


def _drop_finished(batch: SubBatch, running: Tensor) -> None:
    """Move the running rows to the front and drop the others, up to a multiple of rows."""
    batch.num_positions += 1
    num_running = int(running.sum())
    size = round_up(num_running, ROW_MULTIPLE)
    if size >= len(batch.rows):
        return
    holes = (~running[:size]).nonzero()[:, 0]
    moved = size + running[size:].nonzero()[:, 0]
    holes = holes[: len(moved)]
    batch.rows[holes] = batch.rows[moved]
    batch.rows = batch.rows[:size]
    for cached in (*batch.keys, *batch.values):
        cached[holes] = cached[moved]
