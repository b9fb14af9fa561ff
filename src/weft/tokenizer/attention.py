"""Attention of Whisper's layers with any mask, as an attention implementation of transformers.

    whisper.set_attn_implementation(ATTENTION)

On a CPU, a kernel that keeps no attention matrix takes a third of the time for sequences of 20 seconds, but twice the
time for sequences of two, where products with a whole matrix are better.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

ATTENTION = "weft_by_length"
_MIN_KEYS = 400  # of the kernel on a CPU; both take about the same time at 288, and the kernel 0.6 times at 508


def _attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: object,
) -> tuple[Tensor, None]:
    """Return the attention of queries (B, H, Q, E) over keys and values (B, H, K, E), as (B, Q, H, E).

    `attention_mask` (B or 1, 1, Q, K) is added to the scores.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
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
