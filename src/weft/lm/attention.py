"""Attention inside the segments of one long row: no padding, no mask, and no product that a mask would throw away.

    with attention_in_segments(model):
        model(input_ids=ids, position_ids=positions, use_cache=False, **segments([5, 3, 7]))       # ids (1, 15)

transformers' models call what is registered here in place of their own attention; where segments begin goes to it by
the names that transformers has for that. On a GPU in half precision a row is one call of torch's flash attention for
segments of any length. Elsewhere long segments take turns, and short ones are attended together, laid into a table as
wide as the longest of them: many small products would cost more than the few that its mask leaves out.

Shapes: T ids of the row, H heads, G key-value heads, E head width; B rows and W columns of the table.
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

_NAME = "weft_segments"
_LONG = 256  # ids of a segment that is worth a call of the fused kernel


def segments(lengths: Sequence[int], device: torch.device | None = None) -> dict[str, Any]:
    """Arguments of a model's forward pass that tell of `lengths`, one segment behind the other."""
    bounds = F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).to(device=device, dtype=torch.int32)
    longest = max(lengths)
    return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}


@contextmanager
def attention_in_segments(model: PreTrainedModel) -> Iterator[None]:
    """`model` with this attention: a row's ids see the earlier ones of their own segment."""
    before = model.config._attn_implementation
    model.config._attn_implementation = _NAME
    try:
        yield
    finally:
        model.config._attn_implementation = before


def _attend(
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
    """Queries (1, H, T, E), keys and values (1, G, T, E) to (1, T, H, E), as transformers' attention has them.

    Raises NotImplementedError where a family does not pass on what it was given of segments.
    """
    if cu_seq_lens_q is None:
        raise NotImplementedError(f"{type(module).__name__} is not told of segments")
    query, key = query.to(value.dtype), key.to(value.dtype)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    window = sliding_window if sliding_window is not None and sliding_window < max_length_q else None
    if value.is_cuda and value.dtype != torch.float32 and not dropout and softcap is None:
        q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))  # (T, H or G, E)
        heard: Any = varlen_attn(
            q,
            k,
            v,
            cu_seq_lens_q,
            cu_seq_lens_q,
            max_length_q,
            max_length_q,
            scale=scale,
            window_size=(-1 if window is None else window - 1, 0),
            enable_gqa=key.shape[1] != query.shape[1],
        )
        return heard[None], None
    lengths = tuple(cu_seq_lens_q.diff().tolist())
    heard = _by_length(query, key, value, lengths, scale, dropout, window, softcap)
    return heard, None


AttentionInterface.register(_NAME, _attend)


@torch.compiler.disable
def _by_length(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: tuple[int, ...],
    scale: float,
    dropout: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Short segments together, and long ones in turn, to (1, T, H, E)."""
    long = tuple(n >= _LONG and window is None and softcap is None for n in lengths)
    table = _table(lengths, long, window)
    index, back = table.index.to(query.device), table.back.to(query.device)
    num_rows, width = table.mask.shape[0], table.mask.shape[-1]
    in_table = num_rows * width
    sizes = [in_table, *(n for n, is_long in zip(lengths, long, strict=True) if is_long)]

    def parts_of(x: Tensor) -> list[Tensor]:
        """The table (B, H, W, E), then each long segment (1, H, L, E)."""
        table, *others = _Take.apply(x[0].transpose(0, 1), index, back).split(sizes)
        heads = [table.unflatten(0, (num_rows, width)), *(other[None] for other in others)]
        repeats = query.shape[1] // x.shape[1]
        return [(h.repeat_interleave(repeats, dim=2) if repeats > 1 else h).transpose(1, 2) for h in heads]

    (q, *queries), (k, *keys), (v, *values) = map(parts_of, (query, key, value))
    heard = []
    if num_rows:
        scores, mask = (q @ k.transpose(2, 3)).float(), table.mask.to(q.device)
        if softcap is None:
            scores = torch.add(mask, scores, alpha=scale)
        else:
            scores = mask + softcap * torch.tanh(scores * (scale / softcap))
        shares = scores.softmax(-1).to(v.dtype)
        heard.append((F.dropout(shares, dropout) if dropout else shares) @ v)
    for q, k, v in zip(queries, keys, values, strict=True):
        heard.append(F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, scale=scale))
    whole: Tensor = _Take.apply(torch.cat([h.transpose(1, 2).flatten(0, 1) for h in heard]), back, index)
    return whole[None]


class _Take(torch.autograd.Function):
    """Items of `x` (N, ...) at `index`, which has every one once, at `back`, and some a second time in vain.

    What is taken in vain gives no gradient, and its own gradient means nothing: attention lets it meet itself alone.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return x.flatten(1).index_select(0, index).view(-1, *x.shape[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        return gradient.flatten(1).index_select(0, back).view(-1, *gradient.shape[1:]), None, None


@dataclass(frozen=True)
class _Table:
    index: Tensor
    """(B W + ids of long segments,) places in the row: of the table's cells, then of the long segments."""
    back: Tensor
    """(T,) where each id of the row stands in `index`."""
    mask: Tensor
    """(B, 1, W, W) float32, minus infinity at what a cell does not see."""


@lru_cache(maxsize=2)  # the layers of a model ask for the same one, in Gemma for two in turn
def _table(lengths: tuple[int, ...], long: tuple[bool, ...], window: int | None) -> _Table:
    """Short segments laid by first-fit into rows as wide as the longest one; cells that are left hold id 0, alone."""
    starts = np.cumsum([0, *lengths[:-1]])
    short = [i for i in range(len(lengths)) if not long[i]]
    width = max((lengths[i] for i in short), default=0)
    filled: list[int] = []
    at = {}
    for i in sorted(short, key=lambda i: -lengths[i]):
        row = next((r for r, n in enumerate(filled) if n + lengths[i] <= width), len(filled))
        if row == len(filled):
            filled.append(0)
        at[i] = row * width + filled[row]
        filled[row] += lengths[i]
    cells = np.zeros(len(filled) * width, np.int64)
    owners = -np.arange(1, len(cells) + 1)  # an empty cell is its own
    for i, cell in at.items():
        cells[cell : cell + lengths[i]] = np.arange(starts[i], starts[i] + lengths[i])
        owners[cell : cell + lengths[i]] = i
    taken = owners >= 0
    others = [np.arange(starts[i], starts[i] + lengths[i]) for i in range(len(lengths)) if long[i]]
    index = np.concatenate([cells, *others])
    back = np.empty(sum(lengths), np.int64)
    meant = np.concatenate([np.flatnonzero(taken), np.arange(len(cells), len(index))])
    back[index[meant]] = meant
    grid, column = owners.reshape(len(filled), width), np.arange(width)
    distance = column[:, None] - column
    seen = (distance >= 0) & (distance < (window or width)) & (grid[:, :, None] == grid[:, None, :])
    mask = torch.from_numpy(np.where(seen, np.float32(0), np.float32(-np.inf)))
    return _Table(torch.from_numpy(index), torch.from_numpy(back), mask[:, None])
