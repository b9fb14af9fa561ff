"""Log-likelihoods of several continuations of a prompt, which is computed once.

    found = score(model, [Prompt(ids, [ending, other_ending]), ...])        # (prompts, endings) of (total, number)

Prompts of similar length are a batch, padded on the left; its keys and values are those of all endings, padded on the
right. Padding is masked, so that a score does not depend on the batch but for rounding.

Shapes: B prompts of a batch, K endings of each, P ids of the longest prompt, E ids of the longest ending, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from weft import progress
from weft.errors import UserError

_BATCH_TOKENS, _BATCH_LOGITS = 8192, 1 << 26  # with padding
_ROWS = 64  # of logits that are in fp32 at once


@dataclass(frozen=True)
class Ending:
    """Ids of a continuation, and a mask of those whose likelihood counts."""

    ids: np.ndarray
    counted: np.ndarray


@dataclass(frozen=True)
class Prompt:
    """Ids of a prompt, and its endings, of which all prompts have the same number."""

    ids: np.ndarray
    endings: Sequence[Ending]

    @property
    def longest_ending(self) -> int:
        """Ids of the longest ending."""
        return max(len(ending.ids) for ending in self.endings)


@torch.no_grad()
def score(model: PreTrainedModel, prompts: Sequence[Prompt], allowed: Sequence[int] | None = None) -> np.ndarray:
    """Return the sums of the log-likelihoods of counted ids (prompts, endings), in fp64.

    With `allowed`, probabilities are those among these ids only. Raises UserError for a prompt and ending that are
    longer than the model's positions.
    """
    model.eval()
    max_positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = max(len(p.ids) + p.longest_ending for p in prompts)
    if max_positions is not None and longest > max_positions:
        raise UserError(
            f"a prompt and ending have {longest} ids, more than the model's {max_positions} positions: shorten them"
        )
    among = None if allowed is None else torch.tensor(sorted(set(allowed)), device=model.device)
    totals = np.zeros((len(prompts), len(prompts[0].endings)))
    with progress.bar("score", len(prompts)) as advance:
        for rows in _batches(prompts, model.config.get_text_config().vocab_size):
            totals[rows] = _score_batch(model, [prompts[row] for row in rows], among).cpu().numpy()
            advance(len(rows))
    return totals


def _batches(prompts: Sequence[Prompt], vocab_size: int) -> Iterator[list[int]]:
    """Yield the indices of prompts of similar length, whose ids and logits fit the limits (or one prompt)."""
    batch: list[int] = []
    longest = ending = 0
    num = len(prompts[0].endings)
    for i in sorted(range(len(prompts)), key=lambda i: (len(prompts[i].ids), prompts[i].longest_ending)):
        longest, ending = max(longest, len(prompts[i].ids)), max(ending, prompts[i].longest_ending)
        size = len(batch) + 1
        if batch and (
            size * (longest + num * ending) > _BATCH_TOKENS or size * num * ending * vocab_size > _BATCH_LOGITS
        ):
            yield batch
            batch, longest, ending = [], len(prompts[i].ids), prompts[i].longest_ending
        batch.append(i)
    yield batch


def _score_batch(model: PreTrainedModel, prompts: Sequence[Prompt], among: Tensor | None) -> Tensor:
    """Return the scores (B, K) of a batch."""
    num, device = len(prompts[0].endings), model.device
    ids, mask = padded([p.ids for p in prompts], left=True)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    first = model(**{k: v.to(device) for k, v in inputs.items()}, use_cache=True, logits_to_keep=1)
    cache = first.past_key_values
    cache.batch_repeat_interleave(num)
    endings = [ending for p in prompts for ending in p.endings]
    ids, present = padded([ending.ids for ending in endings], left=False)
    counted = padded([ending.counted for ending in endings], left=False)[0].bool()
    starts = mask.sum(1).repeat_interleave(num)
    positions = starts[:, None] + torch.arange(ids.shape[1])
    whole = torch.cat([mask.repeat_interleave(num, 0), present], dim=1)
    inputs = {"input_ids": ids, "attention_mask": whole, "position_ids": positions}
    given = {k: v.to(device) for k, v in inputs.items()}
    later = counted[:, 1:].nonzero()  # ids that are predicted inside an ending, by the id before
    with _head_at(model, (later[:, 0] * ids.shape[1] + later[:, 1]).to(device)):
        logits = model(**given, past_key_values=cache, use_cache=True).logits.flatten(0, -2)
    ids = ids.to(device)
    found = torch.zeros(ids.shape, dtype=torch.float64, device=device)
    found[later[:, 0], later[:, 1] + 1] = _log_likelihoods(logits, ids[later[:, 0], later[:, 1] + 1], among)
    before = first.logits[:, -1].repeat_interleave(num, 0)
    found[:, 0] = torch.where(counted[:, 0].to(device), _log_likelihoods(before, ids[:, 0], among), 0.0)
    return found.sum(1).unflatten(0, (-1, num))


@contextmanager
def _head_at(model: PreTrainedModel, indices: Tensor) -> Iterator[None]:
    """Compute the logits at some positions of the flattened batch only, as one row."""
    head: Any = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, inputs: (inputs[0].flatten(0, -2)[indices][None],))
    try:
        yield
    finally:
        hook.remove()


def _log_likelihoods(logits: Tensor, ids: Tensor, among: Tensor | None) -> Tensor:
    """Return the log-likelihoods (N,) of ids (N,) by logits (N, V), among some ids, in fp64."""
    chosen = logits.gather(-1, ids[:, None])[:, 0].double()
    parts = [part if among is None else part[:, among] for part in logits.split(_ROWS)]
    return chosen - torch.cat([part.float().logsumexp(-1) for part in parts]).double()


def padded(rows: Sequence[np.ndarray], left: bool) -> tuple[Tensor, Tensor]:
    """Return rows as one tensor, padded with 0, and the mask (1 or 0) of what is no padding."""
    width = max(len(row) for row in rows)
    values, mask = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), np.int64)
    for i, row in enumerate(rows):
        part = slice(width - len(row), width) if left else slice(0, len(row))
        values[i, part], mask[i, part] = row, 1
    return torch.from_numpy(values), torch.from_numpy(mask)
