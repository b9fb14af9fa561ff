"""Attention of Whisper's layers with any mask, as an attention implementation of transformers.

    whisper.set_attn_implementation(ATTENTION)
    layer(x, bias)                                      # a mask as a bias of the scores
    layer(x, bias, steps=steps_of(700, 100, 700))       # block-causal, on a CPU
    from_rows(layer(in_rows(x), bias), *x.shape[:2])    # with other batches' shapes of products, on a CPU

On a CPU, block-causal attention is computed block by block, with the visible keys of each, and without a mask where
nothing is masked. The kernel of the forward pass saves no scores; the backward pass computes them again by products,
because it takes half the time of that kernel's backward pass. Other attention uses the kernel for long sequences only.

Shapes: B recordings, H heads, Q queries, K keys, E head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface

ATTENTION = "weft_by_blocks"
_MIN_KEYS = 400  # of the kernel on a CPU; both take about the same time at 288, and the kernel 0.6 times at 508
_ROW_MULTIPLE = 64
_MIN_QUERIES = 100  # of a step; smaller blocks are computed together


class Step(NamedTuple):
    """Queries `start` to `end` of all recordings, which attend to the first `num_keys` keys."""

    start: int
    end: int
    num_keys: int
    is_masked: bool
    """Whether any of these keys is masked for any of these queries."""


def steps_of(num_positions: int, block: int, min_valid: int) -> list[Step]:
    """Return the steps of block-causal attention of recordings with at least `min_valid` positions before padding.

    A block of 0 positions means full attention.
    """
    block = block or num_positions
    size = -(-_MIN_QUERIES // block) * block
    ends = [min(start + size, num_positions) for start in range(0, num_positions, size)]
    return [Step(size * i, end, end, size > block or end > min_valid) for i, end in enumerate(ends)]


def in_rows(x: Tensor) -> Tensor:
    """Return (B, T, D) as rows (1, R, D), a multiple of 64 with zeros at the end, which share shapes between batches.

    On a CPU, products of a new shape are prepared by oneDNN, which took up to a third of a training step.
    """
    num_rows = x.shape[0] * x.shape[1]
    return F.pad(x.flatten(0, 1), (0, 0, 0, -num_rows % _ROW_MULTIPLE))[None]


def from_rows(rows: Tensor, batch: int, positions: int) -> Tensor:
    """Return the recordings (B, T, ...) of rows (1, R, ...)."""
    return rows[0, : batch * positions].unflatten(0, (batch, positions))


def _attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    steps: Sequence[Step] = (),
    **_: object,
) -> tuple[Tensor, None]:
    """Return the attention of queries (B, H, Q, E) over keys and values (B, H, K, E), as (B, Q, H, E).

    `attention_mask` (B or 1, 1, Q, K) is added to the scores. Its shape is that of queries and keys unless these are
    `in_rows`, (1, H, R, E).
    """
    if attention_mask is not None and attention_mask.shape[2] != query.shape[2]:
        (batch, _one, *lengths), num_rows = attention_mask.shape, query.shape[2]
        query, key, value = (
            from_rows(x.transpose(1, 2), batch, n).transpose(1, 2)
            for x, n in ((query, lengths[0]), (key, lengths[1]), (value, lengths[1]))
        )
        found, _none = _attention_forward(module, query, key, value, attention_mask, scaling, dropout, steps)
        found = found.flatten(0, 1)
        return F.pad(found, (0, 0, 0, 0, 0, num_rows - len(found)))[None], None
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if steps and not dropout:
        output: Tensor = _BySteps.apply(query if scale == 1 else query * scale, key, value, attention_mask, steps)
        return output, None
    if query.is_cuda or key.shape[2] >= _MIN_KEYS:
        output = F.scaled_dot_product_attention(query, key, value, attention_mask, dropout, scale=scale)
    else:
        scores = torch.matmul(query, key.transpose(2, 3)) * scale
        if attention_mask is not None:
            scores = scores + attention_mask
        weights = F.dropout(F.softmax(scores, dim=-1), dropout, module.training)
        output = torch.matmul(weights, value)
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, _attention_forward)


class _BySteps(torch.autograd.Function):
    """Attention by steps, as (B, Q, H, E). The products of a step are those of all heads (B * H, queries, keys)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, steps: Sequence[Step]) -> Tensor:
        bias = bias.to(torch.promote_types(bias.dtype, query.dtype))  # the kernel misreads an fp32 bias of doubles
        ctx.save_for_backward(query, key, value, bias)
        ctx.steps = steps
        output = _empty(query)
        for start, end, num_keys, is_masked in steps:
            q, k, v = query[:, :, start:end], key[:, :, :num_keys], value[:, :, :num_keys]
            mask = bias[:, :, start:end, :num_keys] if is_masked else None
            output[:, start:end] = F.scaled_dot_product_attention(q, k, v, mask, scale=1.0).transpose(1, 2)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, bias = ctx.saved_tensors
        batch, heads = query.shape[:2]
        outputs = gradient.transpose(1, 2)
        query_grad = _empty(query)
        q, k, v, outputs = (x.reshape(batch * heads, *x.shape[2:]) for x in (query, key, value, outputs))
        keys, values = (x.transpose(1, 2).contiguous() for x in (k, v))
        key_grad, value_grad = (torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32)) for x in (k, v))
        for start, end, num_keys, is_masked in ctx.steps:
            scores = torch.bmm(q[:, start:end], keys[:, :, :num_keys])
            if is_masked:
                scores.view(batch, heads, end - start, num_keys).add_(bias[:, :, start:end, :num_keys])
            weights = scores.softmax(-1)
            weights_grad = torch.bmm(outputs[:, start:end], values[:, :, :num_keys])
            scores = torch.ops.aten._softmax_backward_data(weights_grad, weights, -1, weights.dtype)
            found = torch.bmm(scores, k[:, :num_keys])
            query_grad[:, start:end] = found.view(batch, heads, end - start, -1).transpose(1, 2)
            key_grad[:, :num_keys] += torch.bmm(scores.transpose(1, 2), q[:, start:end])
            value_grad[:, :num_keys] += torch.bmm(weights.transpose(1, 2), outputs[:, start:end])
        key_grad, value_grad = key_grad.to(k.dtype).view_as(key), value_grad.to(v.dtype).view_as(value)
        return query_grad.transpose(1, 2), key_grad, value_grad, None, None


def _empty(like: Tensor) -> Tensor:
    """Return an uninitialized tensor (B, Q, H, E) for one of (B, H, Q, E)."""
    batch, heads, positions, size = like.shape
    return like.new_empty(batch, positions, heads, size)
