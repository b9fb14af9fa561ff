"""Cross-entropy of a linear head, computed by blocks of the vocabulary, without all logits in memory.

    losses = linear_cross_entropy(hidden, head.weight, head.bias, targets)        # (N,) float32

With 150,000 or more ids, the logits of a step and their gradient take gigabytes. Here, a block of the vocabulary is
multiplied by all rows of `hidden` for its part of the log-sum-exp, and again in the backward pass for its part of the
gradients, so that losses can be weighted arbitrarily. This is one product more than plain cross-entropy. On a CPU it is
faster nevertheless, because blocks stay in the cache.

Shapes: N targets, D hidden size, V vocabulary, K ids of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

GPU_BLOCK_LOGITS = 1 << 26
"""Logits per block. A GPU needs large products."""
_BLOCK_LOGITS = {"cpu": 1 << 22}  # 16 MiB in fp32, about the size of a cache
_GPU_ID_MULTIPLE = 256  # products of other matrices are several times slower
_CPU_ID_MULTIPLE = 1024  # few shapes of blocks, because products of a new shape have to be prepared
_MIN_BLOCK_IDS = 512  # smaller blocks would spend their time on sums


def linear_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """Return the cross-entropy of logits `hidden @ weight.T + bias` with `targets` (N,) int64: (N,) float32, in nats.

    `hidden` (N, D), `weight` (V, D), `bias` (V,). Products have the dtype of autocast or, without it, of `weight`; the
    rest is float32, as in plain cross-entropy of `logits.float()`, which is used if all logits fit in one block.
    """
    num_ids = _block_ids(hidden.device.type, len(targets))
    if num_ids >= len(weight):
        logits = nn.functional.linear(hidden, weight, bias).float()
        return nn.functional.cross_entropy(logits, targets, reduction="none")
    device_type = hidden.device.type
    autocast = torch.is_autocast_enabled(device_type)
    dtype = torch.get_autocast_dtype(device_type) if autocast else weight.dtype
    losses: Tensor = _InBlocks.apply(hidden, weight, bias, targets, dtype, num_ids)  # type: ignore[no-untyped-call]
    return losses


def _block_ids(device_type: str, num_targets: int) -> int:
    """Return the number of ids of a block; on a GPU, a multiple for which rows of logits are aligned in memory."""
    num_ids = max(_MIN_BLOCK_IDS, _BLOCK_LOGITS.get(device_type, GPU_BLOCK_LOGITS) // max(1, num_targets))
    multiple = _GPU_ID_MULTIPLE if device_type != "cpu" else min(num_ids, _CPU_ID_MULTIPLE)
    return num_ids // multiple * multiple


class _InBlocks(torch.autograd.Function):
    """The losses. Each row of the weight's gradient is one product over all targets, which sums in fp32."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, dtype: torch.dtype, num_ids: int
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
        return (highest - chosen) + total.log()  # in this order, because large logits would round the sum

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor | None, ...]:
        """Return gradients; `weights` (N,) is the gradient with respect to the losses."""
        hidden, weight, bias, targets, highest, total = ctx.saved_tensors
        rows = hidden.to(ctx.dtype)
        rows_grad = torch.zeros_like(hidden, dtype=torch.float32)
        weight_grad, bias_grad = torch.empty_like(weight), None if bias is None else torch.empty_like(bias)
        for block, block_weight, logits in _blocks(rows, weight, bias, ctx.num_ids):
            column, inside = _columns(targets, block)
            gradient = logits.sub_(highest[:, None]).exp_().mul_((weights / total)[:, None])
            gradient.scatter_add_(1, column, -(weights * inside)[:, None])
            if bias_grad is not None:
                bias_grad[block] = gradient.sum(0)
            gradient = gradient.to(ctx.dtype)
            rows_grad += gradient @ block_weight
            weight_grad[block] = gradient.t() @ rows
        return rows_grad.to(hidden.dtype), weight_grad, bias_grad, None, None, None


def _blocks(rows: Tensor, weight: Tensor, bias: Tensor | None, num_ids: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield blocks of the vocabulary: ids, rows of the weight (K, D) in the dtype of `rows`, and logits (N, K) in fp32.

    The caller may overwrite the logits.
    """
    for start in range(0, len(weight), num_ids):
        block = slice(start, min(start + num_ids, len(weight)))
        part = weight[block].to(rows.dtype)
        logits = nn.functional.linear(rows, part, None if bias is None else bias[block].to(rows.dtype))
        yield block, part, logits.float()


def _columns(targets: Tensor, block: slice) -> tuple[Tensor, Tensor]:
    """Return the column of each target in a block (N, 1), or the nearest one, and whether the target is inside (N,).

    Every row has a column, which avoids a synchronization with the device.
    """
    inside = (targets >= block.start) & (targets < block.stop)
    return (targets - block.start).clamp_(0, block.stop - block.start - 1)[:, None], inside
