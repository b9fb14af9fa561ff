"""Causal attention within the segments of one packed sequence, as an attention implementation of transformers.

    with segment_attention(model):
        model(input_ids=ids, position_ids=positions, use_cache=False, **flash_attention_kwargs([5, 3, 7]))  # (1, 15)

A segment is a range of consecutive tokens, such as a document. On a GPU in bf16 or fp16, all segments are one call of
PyTorch's variable-length flash attention. Elsewhere, and with dropout or soft capping, a long segment is one call of
`scaled_dot_product_attention`. Short segments (with a sliding window or soft capping, all) are concatenated to rows of
a padded batch with a block-diagonal causal mask, because many small calls would take longer than its masked products.

Shapes: T tokens of the sequence, H heads, G key-value heads, E head size. The padded batch has B rows of W slots, each
with a token or padding. Together with the tokens of the long segments, these are P slots.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, PreTrainedModel

from weft.data.batching import first_fit

_NAME = "weft_segments"
_MIN_LONG = 256  # tokens; shorter segments are computed in the padded batch


def flash_attention_kwargs(lengths: Sequence[int], device: torch.device | None = None) -> dict[str, Any]:
    """Return the `FlashAttentionKwargs` of a model's forward pass for consecutive segments of these lengths."""
    bounds = F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).to(device=device, dtype=torch.int32)
    longest = max(lengths)
    return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}


@contextmanager
def segment_attention(model: PreTrainedModel) -> Iterator[None]:
    """Use this attention in `model`: a token attends to itself and the earlier tokens of its segment."""
    before = model.config._attn_implementation
    model.config._attn_implementation = _NAME
    try:
        yield
    finally:
        model.config._attn_implementation = before


def _attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int = 0,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Return the attention of queries (1, H, T, E) over keys and values (1, G, T, E), as (1, T, H, E).

    Raises NotImplementedError for a model family that does not pass the `FlashAttentionKwargs` on.
    """
    if cu_seq_lens_q is None:
        raise NotImplementedError(f"{type(module).__name__} does not pass cu_seq_lens_q on")
    query, key = query.to(value.dtype), key.to(value.dtype)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    window = sliding_window if sliding_window is not None and sliding_window < max_length_q else None
    if value.is_cuda and value.dtype != torch.float32 and not dropout and softcap is None:
        q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))  # (T, H or G, E)
        bounds: Any = cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q
        window_size = (-1 if window is None else window - 1, 0)
        enable_gqa = key.shape[1] != query.shape[1]
        output: Any = varlen_attn(q, k, v, *bounds, scale=scale, window_size=window_size, enable_gqa=enable_gqa)
        return output[None], None
    lengths = tuple(cu_seq_lens_q.diff().tolist())
    return _padded_attention(query, key, value, lengths, scale, dropout, window, softcap), None


AttentionInterface.register(_NAME, _attention_forward)


@torch.compiler.disable
def _padded_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: tuple[int, ...],
    scale: float,
    dropout: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Return the same without a variable-length kernel: short segments in a padded batch, each long one by itself."""
    is_long = tuple(n >= _MIN_LONG and window is None and softcap is None for n in lengths)
    layout = _layout_of(lengths, is_long, window)
    slot_to_token, token_to_slot = layout.slot_to_token.to(query.device), layout.token_to_slot.to(query.device)
    num_rows, width = layout.mask.shape[0], layout.mask.shape[-1]
    sizes = [num_rows * width, *(n for n, long in zip(lengths, is_long, strict=True) if long)]

    def split(x: Tensor) -> list[Tensor]:
        """Return the padded batch (B, H, W, E), then each long segment (1, H, its length, E)."""
        batch, *long_segments = _IndexSelect.apply(x[0].transpose(0, 1), slot_to_token, token_to_slot).split(sizes)
        parts = [batch.unflatten(0, (num_rows, width)), *(segment[None] for segment in long_segments)]
        repeats = query.shape[1] // x.shape[1]
        return [(p.repeat_interleave(repeats, dim=2) if repeats > 1 else p).transpose(1, 2) for p in parts]

    (q, *queries), (k, *keys), (v, *values) = map(split, (query, key, value))
    outputs = []
    if num_rows:
        scores, mask = (q @ k.transpose(2, 3)).float(), layout.mask.to(q.device)
        if softcap is None:
            scores = torch.add(mask, scores, alpha=scale)
        else:
            scores = mask + softcap * torch.tanh(scores * (scale / softcap))
        weights = scores.softmax(-1).to(v.dtype)
        outputs.append((F.dropout(weights, dropout) if dropout else weights) @ v)
    for q, k, v in zip(queries, keys, values, strict=True):
        outputs.append(F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, scale=scale))
    slots = torch.cat([output.transpose(1, 2).flatten(0, 1) for output in outputs])  # (P, H, E)
    tokens: Tensor = _IndexSelect.apply(slots, token_to_slot, slot_to_token)
    return tokens[None]


class _IndexSelect(torch.autograd.Function):
    """Return `x[index]`, tokens to slots or back, with the gradient `gradient[inverse]`: faster than a scatter-add.

    This is not the gradient of padding slots, which need none: they attend only to themselves, and are discarded.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return x.flatten(1).index_select(0, index).view(-1, *x.shape[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return gradient.flatten(1).index_select(0, inverse).view(-1, *gradient.shape[1:]), None, None


@dataclass(frozen=True)
class _Layout:
    slot_to_token: Tensor
    """(P,) index of the token in each slot, 0 in padding: the rows of the padded batch, then the long segments."""
    token_to_slot: Tensor
    """(T,) index of the slot of each token."""
    mask: Tensor
    """(B, 1, W, W) float32, added to the scores: 0 where a slot attends to another, otherwise minus infinity."""


@lru_cache(maxsize=2)  # all layers of a model use the same one; those of Gemma, two
def _layout_of(lengths: tuple[int, ...], is_long: tuple[bool, ...], window: int | None) -> _Layout:
    """Concatenate short segments, by first-fit decreasing, to rows that are as wide as the longest of them."""
    tokens = np.split(np.arange(sum(lengths)), np.cumsum(lengths)[:-1])  # of each segment
    short = [i for i in range(len(lengths)) if not is_long[i]]
    width = max((lengths[i] for i in short), default=0)
    rows = [[short[j] for j in row] for row in first_fit([lengths[i] for i in short], width)]
    batch = np.zeros((len(rows), width), np.int64)  # the token of each slot
    segment_ids = -np.arange(1, batch.size + 1).reshape(batch.shape)  # each padding slot is a segment of its own
    for r, segments in enumerate(rows):
        num_tokens = sum(lengths[i] for i in segments)
        batch[r, :num_tokens] = np.concatenate([tokens[i] for i in segments])
        segment_ids[r, :num_tokens] = np.repeat(segments, [lengths[i] for i in segments])
    slot_to_token = np.concatenate([batch.ravel(), *(tokens[i] for i in range(len(lengths)) if is_long[i])])
    used_slots = np.concatenate([np.flatnonzero(segment_ids >= 0), np.arange(batch.size, len(slot_to_token))])
    token_to_slot = np.empty(sum(lengths), np.int64)
    token_to_slot[slot_to_token[used_slots]] = used_slots
    distance = np.subtract.outer(np.arange(width), np.arange(width))
    visible = (distance >= 0) & (distance < (window or width)) & (segment_ids[:, :, None] == segment_ids[:, None, :])
    mask = torch.from_numpy(np.where(visible, np.float32(0), np.float32(-np.inf)))
    return _Layout(torch.from_numpy(slot_to_token), torch.from_numpy(token_to_slot), mask[:, None])
