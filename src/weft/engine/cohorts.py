"""Many requests to a Llama-like model at once, in cohorts: the quick way of `Engine.generate` on a processor.

    if suits(model):
        results = generate(model, requests, Sampling(temperature=0.8), {end_id}, allowed, None, batch_size=256)

Requests are admitted in cohorts of about equal length, as soon as finished rows have left room for one, so that matrix
products always see nearly `batch_size` rows. Attention goes cohort by cohort over a cache no longer than what its rows
have seen.

A request's ids depend on the request and not on its company: a row's cache begins at position 0 whatever its
neighbours' lengths, and the kernels compute a row of a product alike for any number of rows and any number of masked
keys as long as both come in whole vectors. The tests hold that on a CPU, for fp32 and bf16, whatever the number of
threads; other kernels may round otherwise.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from weft.engine.sampling import Generated, Request, Sampling
from weft.engine.steps import ROWS, Cohort, State, Step, longest_first, read, whole

COHORTS = 4  # at once: more would be shorter of padding and longer in calls


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
    num_steps = max((r.max_new_tokens for r in requests), default=0)
    # the last row is nobody's, for cohorts to fill a vector with
    state = State.empty(len(requests) + 1, num_steps, max_repeats, device)
    everyone = torch.arange(len(requests), device=device)
    state.begin(everyone, requests)
    step = Step(model, sampling, stop_ids, allowed)
    waiting, size = longest_first(requests), max(1, batch_size // COHORTS)
    cohorts: list[Cohort] = []
    while waiting or cohorts:
        while waiting and (not cohorts or sum(len(c.rows) for c in cohorts) + size <= batch_size):
            chosen, waiting = waiting[:size], waiting[size:]
            nobody = [len(requests)] * (whole(len(chosen), ROWS) - len(chosen))
            rows = torch.tensor([*chosen, *nobody], device=device)
            cohorts.append(read(model, [requests[i].ids[:-1] for i in chosen], rows))
        step(state, torch.cat([c.rows for c in cohorts]), cohorts)
        for cohort in cohorts:
            _drop_finished(cohort, state.running[cohort.rows])
        cohorts = [c for c in cohorts if len(c.rows)]
    return state.results(everyone)


def _drop_finished(cohort: Cohort, running: Tensor) -> None:
    """Bring the running rows to the front, in whole vectors; the others make room."""
    cohort.num_positions += 1
    num_running = int(running.sum())
    size = whole(num_running, ROWS)
    if size >= len(cohort.rows):
        return
    holes = (~running[:size]).nonzero()[:, 0]
    movers = size + running[size:].nonzero()[:, 0]
    holes = holes[: len(movers)]
    cohort.rows[holes] = cohort.rows[movers]
    cohort.rows = cohort.rows[:size]
    for cached in (*cohort.keys, *cohort.values):
        cached[holes] = cached[movers]
