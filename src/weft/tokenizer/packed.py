"""The part of a BottleneckWhisper that computes codes, for many recordings at once and without padding.

    hidden = to_bottleneck(model, features, Recordings(num_frames=[700, 96], num_valid=[699, 95]))     # (N, D)
    state = new_state(model)
    hidden = to_bottleneck(model, [block], Recordings([100], [100]), state)      # the next block of a stream

It computes what `BottleneckWhisper.to_bottleneck` does for padded batches. The frames of all recordings are rows of one
matrix. The convolutions see two zero columns between recordings as padding. Attention runs block by block over all
recordings that have the block, with the keys up to its end, so almost nothing is computed only to be masked. A stream
is one recording whose blocks arrive one at a time and whose keys and values are kept.

Layers may have bf16 weights (`to_bf16`): products are then computed in bf16, and the residual stream stays in fp32.

Shapes: G recordings, T encoder frames (50 Hz), R rows (frames of all recordings), M mel bands, D width, N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer

from weft.tokenizer.encoder import BottleneckWhisper

_MAX_SCORES = 1 << 22
_GAP = 2  # zero columns between recordings: the padding of both convolutions, whose kernels have 3


@dataclass(frozen=True)
class Recordings:
    """Lengths of packed recordings, the one with the most valid frames first.

    `num_frames` are encoder frames, a whole number of tokens. `num_valid` of them (at least one) are not padding.
    """

    num_frames: Sequence[int]
    num_valid: Sequence[int]


@dataclass
class StreamState:
    """State of a stream: inputs of the convolutions (1, M or D, 2), keys and values (1, rows, D), number of frames."""

    mel_tail: Tensor
    conv_tail: Tensor
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    num_frames: int = 0


def new_state(model: BottleneckWhisper) -> StreamState:
    """Return the state at the start of a stream."""
    config, whisper = model.config, model.whisper_config
    weight = model.whisper.model.encoder.conv1.weight
    state = StreamState(weight.new_zeros(1, whisper.num_mel_bins, _GAP), weight.new_zeros(1, whisper.d_model, _GAP))
    for index in range(config.layer):
        pooled = config.pooling if config.pooling_layer and index >= config.pooling_layer else 1
        shape = (1, whisper.max_source_positions // pooled, whisper.d_model)
        for kept in (state.keys, state.values):
            kept.append(torch.empty(shape, device=weight.device, dtype=_attention_dtype(weight)))
    return state


def to_bf16(model: BottleneckWhisper) -> None:
    """Convert the weights before the quantizer to bf16, for computing codes only."""
    encoder = model.whisper.model.encoder
    for part in (encoder.conv1, encoder.conv2, *encoder.layers[: model.config.layer].modules()):
        if isinstance(part, nn.Linear | nn.Conv1d):
            part.to(torch.bfloat16)


def to_bottleneck(
    model: BottleneckWhisper, features: Sequence[Tensor], recordings: Recordings, state: StreamState | None = None
) -> Tensor:
    """Encode the log-mel features (M, at least 2T) of each recording into pooled hidden states, all in one (N, D).

    With a `state`, the only recording continues a stream by a whole block, or ends it.
    """
    config = model.config
    first = state.num_frames if state else 0
    x = _convolve(model, features, recordings.num_frames, state)
    place = torch.cat([torch.arange(first, first + n, device=x.device) for n in recordings.num_frames])
    x = x + model.whisper.model.encoder.embed_positions.weight[place]
    pooled_after = config.pooling_layer or config.layer
    x = _attend(model, x, range(pooled_after), 1, recordings, state)
    x = _attend(model, model.pool(x), range(pooled_after, config.layer), config.pooling, recordings, state)
    if state:
        state.num_frames += recordings.num_frames[0]
    return x


def _convolve(
    model: BottleneckWhisper, features: Sequence[Tensor], num_frames: Sequence[int], state: StreamState | None
) -> Tensor:
    """Apply the two convolutions, giving (R, D). There is a gap before each recording and after the last."""
    encoder = model.whisper.model.encoder
    shift = 0 if model.config.causal_convolution else 1  # the kernel sees two columns before, or one on each side
    begins = [0, *accumulate(_GAP + f.shape[1] for f in features)]
    end = begins[-1]
    gaps = torch.tensor([b + i for b in begins for i in range(_GAP)], device=features[0].device)
    x = encoder.conv1.weight.new_zeros(1, features[0].shape[0], end + _GAP)
    for begin, f in zip(begins, features, strict=False):  # the last gap has no recording
        x[0, :, begin + _GAP : begin + _GAP + f.shape[1]] = f
    if state:
        x[..., :_GAP] = state.mel_tail
        state.mel_tail = x[..., end - _GAP : end].clone()
    # the padding shifts the output back behind the gap
    x = F.gelu(F.conv1d(x[..., shift:], encoder.conv1.weight, encoder.conv1.bias, padding=_GAP))
    x[..., gaps] = 0.0
    if state:
        x[..., :_GAP] = state.conv_tail
        state.conv_tail = x[..., end - _GAP : end].clone()
    x = x[..., shift:].to(encoder.conv2.weight.dtype)
    x = F.gelu(F.conv1d(x, encoder.conv2.weight, encoder.conv2.bias, stride=2))
    rows = [torch.arange(b // 2, b // 2 + n, device=x.device) for b, n in zip(begins, num_frames, strict=False)]
    return x[0].T[torch.cat(rows)].float()


def _attend(
    model: BottleneckWhisper, x: Tensor, layers: range, pooling: int, recordings: Recordings, state: StreamState | None
) -> Tensor:
    """Apply some encoder layers to rows (R, D), each `pooling` frames long."""
    past = state.num_frames // pooling if state else 0
    lengths = [n // pooling for n in recordings.num_frames]
    valid = [-(-n // pooling) for n in recordings.num_valid]
    blocks = _Blocks(lengths, valid, model.config.block_frames // pooling, past, x.device)
    for index in layers:
        past_rows = (state.keys[index], state.values[index]) if state else None
        x = _layer(model.whisper.model.encoder.layers[index], x, blocks, past_rows)
    return x


def _layer(layer: WhisperEncoderLayer, x: Tensor, blocks: _Blocks, past_rows: tuple[Tensor, Tensor] | None) -> Tensor:
    """Apply a transformers layer to rows (R, D) in fp32."""
    attention = layer.self_attn
    h = layer.self_attn_layer_norm(x).to(attention.q_proj.weight.dtype)
    q, k, v = (blocks.unpack(project(h)) for project in (attention.q_proj, attention.k_proj, attention.v_proj))
    if past_rows is not None:
        k, v = blocks.appended(past_rows[0], k), blocks.appended(past_rows[1], v)
    x = x + attention.out_proj(blocks.attention(q, k, v, attention.num_heads).to(h.dtype))
    h = layer.final_layer_norm(x).to(layer.fc1.weight.dtype)
    return x + layer.fc2(layer.activation_fn(layer.fc1(h)))


@dataclass(frozen=True)
class _Step:
    """One call of attention: recordings, their query rows, number of keys, and which keys are valid (g, 1, 1, keys)."""

    recordings: slice
    queries: slice
    num_keys: int
    mask: Tensor | None = None


class _Blocks:
    """Block-causal attention of packed rows: a row sees the valid rows of its own and all earlier blocks."""

    def __init__(
        self, lengths: Sequence[int], valid: Sequence[int], block: int, past: int, device: torch.device
    ) -> None:
        """Plan the attention of recordings of `lengths` rows, `valid` of them not padding, after `past` rows of each.

        Recordings are sorted by `valid`, descending. A block of 0 rows means full attention.
        """
        self._shape = (len(lengths), max(lengths))
        self._past = past
        starts = [i * self._shape[1] for i in range(len(lengths))]
        self._places = torch.cat([torch.arange(s, s + n, device=device) for s, n in zip(starts, lengths, strict=True)])
        self._steps: list[_Step] = []
        total = past + self._shape[1]
        for begin in range(past, total, block or total):
            end = min(begin + (block or total), total)
            queries = slice(begin - past, end - past)
            num_full = sum(past + n >= end for n in valid)
            num_some = sum(past + n > begin for n in lengths)
            if num_full:
                self._steps.append(_Step(slice(0, num_full), queries, end))
            if num_full < num_some:
                max_keys, keys = past + valid[num_full], torch.tensor(valid[num_full:num_some], device=device) + past
                equal = valid[num_full] == valid[num_some - 1]
                mask = None if equal else (torch.arange(max_keys, device=device) < keys[:, None])[:, None, None]
                self._steps.append(_Step(slice(num_full, num_some), queries, max_keys, mask))

    def unpack(self, rows: Tensor) -> Tensor:
        """Return packed rows (R, D) as (G, longest, D), with zeros after shorter recordings."""
        rows = rows.to(_attention_dtype(rows))
        if self._shape[0] == 1:
            return rows[None]
        unpacked = rows.new_zeros(self._shape[0] * self._shape[1], rows.shape[1])
        return unpacked.index_copy_(0, self._places, rows).view(*self._shape, -1)

    def appended(self, past_rows: Tensor, rows: Tensor) -> Tensor:
        """Write `rows` (1, T, D) after the past ones, and return all of them."""
        end = self._past + rows.shape[1]
        past_rows[:, self._past : end] = rows
        return past_rows[:, :end]

    def attention(self, q: Tensor, k: Tensor, v: Tensor, num_heads: int) -> Tensor:
        """Attend with queries (G, longest, D) to keys and values (G, past + longest, D); return packed rows (R, D)."""
        out = torch.empty_like(q)
        q, k, v = (t.unflatten(2, (num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        if self._shape[0] > 1:  # otherwise every step would copy them
            q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        for step in self._steps:
            queries, keys = q[step.recordings, :, step.queries], slice(0, step.num_keys)
            found = _attention(queries, k[step.recordings, :, keys], v[step.recordings, :, keys], step.mask)
            out[step.recordings, step.queries] = found.transpose(1, 2).flatten(2)
        rows = out.flatten(0, 1)
        return rows if self._shape[0] == 1 else rows[self._places]


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attend with queries (g, heads, queries, d), by the fused kernel or by plain products.

    On a CPU, plain products take two thirds of the time of the fused kernel as long as the scores fit the cache.
    """
    num_scores = q[..., 0].numel() * k.shape[2]
    if q.device.type != "cpu" or num_scores > _MAX_SCORES:
        return F.scaled_dot_product_attention(q, k, v, mask)
    scores = (q * q.shape[3] ** -0.5) @ k.transpose(2, 3)
    if mask is not None:
        scores.masked_fill_(~mask, -torch.inf)
    return scores.softmax(-1) @ v


def _attention_dtype(like: Tensor) -> torch.dtype:
    """Return fp32 on a CPU, where attention is faster in it than in bf16."""
    return torch.float32 if like.device.type == "cpu" else like.dtype
