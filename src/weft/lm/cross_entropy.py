"""A language model's losses without all of its logits: the head's product and cross-entropy, some ids at a time.

    losses = linear_cross_entropy(hidden, head.weight, head.bias, targets)        # (N,) float32

With 150,000 ids and more, the logits of a step and their gradient are gigabytes. Here a block of the vocabulary is
multiplied with all rows of `hidden` for its share of the log-sum-exp, and a second time in the backward pass for its
share of the gradients, so that losses can be weighed in any way. That is a product of the head more than plain
cross-entropy takes; on a CPU it is quicker nevertheless, because blocks stay in the cache.

Shapes: N targets, D width, V vocabulary, K ids of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

BLOCK_LOGITS = 1 << 26
"""Logits at a time: a GPU is busy with large products only."""
_BLOCK_LOGITS = {"cpu": 1 << 22}  # in fp32 16 MiB: about what a cache holds
_LEAST_BLOCK_IDS = 512  # where there are many targets: a thinner product would be mostly adding up


def linear_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """Cross-entropy of logits `hidden @ weight.T + bias` with `targets` (N,) int64: (N,) float32, in nats.

    `hidden` (N, D), `weight` (V, D), `bias` (V,). Products are made in the dtype of autocast, or else of `weight`, and
    everything after them in float32, as with plain cross-entropy of `logits.float()`. Where all logits are no more
    than a block, that is what is taken.
    """
    num_ids = max(_LEAST_BLOCK_IDS, _block_logits(hidden.device) // max(1, len(targets)))
    if num_ids >= len(weight):
        return nn.functional.cross_entropy(
            nn.functional.linear(hidden, weight, bias).float(), targets, reduction="none"
        )
    device_type = hidden.device.type
    autocast = torch.is_autocast_enabled(device_type)
    dtype = torch.get_autocast_dtype(device_type) if autocast else weight.dtype
    losses: Tensor = _InBlocks.apply(hidden, weight, bias, targets, dtype, num_ids)  # type: ignore[no-untyped-call]
    return losses


def _block_logits(device: torch.device) -> int:
    return _BLOCK_LOGITS.get(device.type, BLOCK_LOGITS)


class _InBlocks(torch.autograd.Function):
    """Each row of the weight's gradient is made by one product over all targets, which sums in fp32."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        dtype: torch.dtype,
        num_ids: int,
    ) -> Tensor:
        rows = hidden.to(dtype)
        highest = torch.full_like(targets, -torch.inf, dtype=torch.float32)
        total, chosen = torch.zeros_like(highest), torch.zeros_like(highest)
        for block, _, logits in _blocks(rows, weight, bias, num_ids):
            column, inside = _columns(targets, block)
            chosen += logits.gather(1, column)[:, 0] * inside
            before, highest = highest, torch.maximum(highest, logits.amax(1))
            total = total * (before - highest).exp_() + logits.sub_(highest[:, None]).exp_().sum(1)
        ctx.save_for_backward(hidden, weight, bias, targets, highest, total)
        ctx.dtype, ctx.num_ids = dtype, num_ids
        return (highest - chosen) + total.log()  # not their sum first, which large logits would round

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor | None, ...]:
        """`weights` (N,): the gradient with respect to the losses."""
        hidden, weight, bias, targets, highest, total = ctx.saved_tensors
        rows = hidden.to(ctx.dtype)
        of_rows = torch.zeros_like(hidden, dtype=torch.float32)
        of_weight, of_bias = torch.empty_like(weight), None if bias is None else torch.empty_like(bias)
        for block, block_weight, logits in _blocks(rows, weight, bias, ctx.num_ids):
            column, inside = _columns(targets, block)
            gradient = logits.sub_(highest[:, None]).exp_().mul_((weights / total)[:, None])
            gradient.scatter_add_(1, column, -(weights * inside)[:, None])
            if of_bias is not None:
                of_bias[block] = gradient.sum(0)
            gradient = gradient.to(ctx.dtype)
            of_rows += gradient @ block_weight
            of_weight[block] = gradient.t() @ rows
        return of_rows.to(hidden.dtype), of_weight, of_bias, None, None, None


def _blocks(rows: Tensor, weight: Tensor, bias: Tensor | None, num_ids: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """The vocabulary in blocks: which ids, their rows of the weight (K, D) in the dtype of `rows`, logits (N, K) fp32.

    The logits are the caller's to overwrite.
    """
    for start in range(0, len(weight), num_ids):
        block = slice(start, min(start + num_ids, len(weight)))
        part = weight[block].to(rows.dtype)
        logits = nn.functional.linear(rows, part, None if bias is None else bias[block].to(rows.dtype))
        yield block, part, logits.float()


def _columns(targets: Tensor, block: slice) -> tuple[Tensor, Tensor]:
    """The column of each target in a block, (N, 1), the nearest one for those outside, and whether it is inside, (N,).

    Every row has one, so that nothing has to wait for how many are inside.
    """
    inside = (targets >= block.start) & (targets < block.stop)
    return (targets - block.start).clamp_(0, block.stop - block.start - 1)[:, None], inside
