"""The half of a BottleneckWhisper that makes codes, over many recordings at once and without padding.

    hidden = first_half(model, features, Recordings(num_frames=[700, 96], num_real=[699, 95]))     # (N, D)
    state = new_state(model)
    hidden = first_half(model, [block], Recordings([100], [100]), state)      # the next block of a stream

It computes what `BottleneckWhisper.first_half` does, which training uses and which pads. Here the frames of all
recordings lie one after another as rows. Products and norms see nothing but rows; the convolutions see two empty
columns between recordings, which pad each; attention goes block by block, over all recordings that have the block: its
queries meet the keys of the frames up to its end, so that nothing is computed to be masked, save where recordings end.
A stream is one recording whose blocks come one at a time and whose keys and values are kept.

Layers may hold bf16 weights (`to_bf16`): their products are of bf16 then, and what is added up between them is fp32.

Shapes: G recordings, T encoder frames (50 a second), R rows (frames of all recordings), M mel bands, D width, N tokens.
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

_KERNEL = 3  # of both convolutions
_MAX_SCORES = 1 << 22
_GAP = 2  # columns between recordings: as many zeros as a kernel needs around one


@dataclass(frozen=True)
class Recordings:
    """What lies packed, the one with most real frames first: encoder frames of each, a whole number of tokens, and how
    many of them are its own sound's and not padding (at least one)."""

    num_frames: Sequence[int]
    num_real: Sequence[int]


@dataclass
class StreamState:
    """What the half remembers of one recording between its blocks: the convolutions' last inputs (1, M or D, 2), every
    layer's keys and values (1, rows of a window, D), and how many frames have passed."""

    mel_tail: Tensor
    conv_tail: Tensor
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    num_frames: int = 0


def new_state(model: BottleneckWhisper) -> StreamState:
    """The state at the start of a stream."""
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
    """Round the weights of the convolutions and layers before the quantizer to bf16, for making codes only."""
    encoder = model.whisper.model.encoder
    for part in (encoder.conv1, encoder.conv2, *encoder.layers[: model.config.layer].modules()):
        if isinstance(part, nn.Linear | nn.Conv1d):
            part.to(torch.bfloat16)


def first_half(
    model: BottleneckWhisper, features: Sequence[Tensor], recordings: Recordings, state: StreamState | None = None
) -> Tensor:
    """Log-mel features (M, at least 2T) of each recording to its pooled hidden states, all in one (N, D).

    With a `state`, the one recording continues a stream by a whole block, or ends it.
    """
    config = model.config
    first = state.num_frames if state else 0
    x = _convolve(model, features, recordings.num_frames, state)
    place = torch.cat([torch.arange(first, first + n, device=x.device) for n in recordings.num_frames])
    x = x + model.whisper.model.encoder.embed_positions.weight[place]
    pooled_after = config.pooling_layer or config.layer
    x = _attend(model, x, 0, pooled_after, 1, recordings, state)
    x = _attend(model, model.pool(x), pooled_after, config.layer, config.pooling, recordings, state)
    if state:
        state.num_frames += recordings.num_frames[0]
    return x


def _convolve(
    model: BottleneckWhisper, features: Sequence[Tensor], num_frames: Sequence[int], state: StreamState | None
) -> Tensor:
    """The two convolutions, to (R, D). Every recording follows a gap, and the last one is followed by one."""
    encoder = model.whisper.model.encoder
    shift = 0 if model.config.causal_convolution else 1  # hear two columns before, or one on each side
    begins = [0, *accumulate(_GAP + f.shape[1] for f in features)]
    end = begins[-1]
    gaps = torch.tensor([b + i for b in begins for i in range(_GAP)], device=features[0].device)
    x = encoder.conv1.weight.new_zeros(1, features[0].shape[0], end + _GAP)
    for begin, f in zip(begins, features):  # noqa: B905, the last gap has no recording
        x[0, :, begin + _GAP : begin + _GAP + f.shape[1]] = f
    if state:
        x[..., :_GAP] = state.mel_tail
        state.mel_tail = x[..., end - _GAP : end].clone()
    # padding puts what is heard back behind the gap
    x = F.gelu(F.conv1d(x[..., shift:], encoder.conv1.weight, encoder.conv1.bias, padding=_KERNEL - 1))
    x[..., gaps] = 0.0
    if state:
        x[..., :_GAP] = state.conv_tail
        state.conv_tail = x[..., end - _GAP : end].clone()
    x = F.gelu(
        F.conv1d(x[..., shift:].to(encoder.conv2.weight.dtype), encoder.conv2.weight, encoder.conv2.bias, stride=2)
    )
    rows = [torch.arange(b // 2, b // 2 + n, device=x.device) for b, n in zip(begins, num_frames)]  # noqa: B905
    return x[0].T[torch.cat(rows)].float()


def _attend(
    model: BottleneckWhisper,
    x: Tensor,
    start: int,
    end: int,
    pooling: int,
    recordings: Recordings,
    state: StreamState | None,
) -> Tensor:
    """Encoder layers `start` to `end` over rows (R, D), each `pooling` frames long."""
    past = state.num_frames // pooling if state else 0
    lengths = [n // pooling for n in recordings.num_frames]
    real = [-(-n // pooling) for n in recordings.num_real]
    blocks = _Blocks(lengths, real, model.config.block_frames // pooling, past, x.device)
    for index in range(start, end):
        layer = model.whisper.model.encoder.layers[index]
        past_rows = (state.keys[index], state.values[index]) if state else None
        x = _layer(layer, x, blocks, past_rows)
    return x


def _layer(layer: WhisperEncoderLayer, x: Tensor, blocks: _Blocks, past_rows: tuple[Tensor, Tensor] | None) -> Tensor:
    """What transformers' layer does, over rows (R, D) in fp32."""
    attention = layer.self_attn
    h = layer.self_attn_layer_norm(x).to(attention.q_proj.weight.dtype)
    q, k, v = (blocks.spread(project(h)) for project in (attention.q_proj, attention.k_proj, attention.v_proj))
    if past_rows is not None:
        k, v = blocks.appended(past_rows[0], k), blocks.appended(past_rows[1], v)
    x = x + attention.out_proj(blocks.attention(q, k, v, attention.num_heads).to(h.dtype))
    h = layer.final_layer_norm(x).to(layer.fc1.weight.dtype)
    return x + layer.fc2(layer.activation_fn(layer.fc1(h)))


@dataclass(frozen=True)
class _Step:
    """One call of attention: which recordings, which of their rows ask, how many keys they have at most, and which of
    those are real, (g, 1, 1, keys), unless all are."""

    recordings: slice
    queries: slice
    num_keys: int
    mask: Tensor | None = None


class _Blocks:
    """Attention of packed rows, block by block: a row sees its whole block and every earlier one of its recording, and
    of them what is real."""

    def __init__(
        self, lengths: Sequence[int], real: Sequence[int], block: int, past: int, device: torch.device
    ) -> None:
        """Recordings of `lengths` rows, of which `real` are, the most first, after `past` rows of each; a block of 0
        rows is all of them."""
        self._shape = (len(lengths), max(lengths))
        self._past = past
        starts = [i * self._shape[1] for i in range(len(lengths))]
        self._places = torch.cat([torch.arange(s, s + n, device=device) for s, n in zip(starts, lengths, strict=True)])
        self._steps: list[_Step] = []
        total = past + self._shape[1]
        for begin in range(past, total, block or total):
            end = min(begin + (block or total), total)
            queries = slice(begin - past, end - past)
            num_full = sum(past + n >= end for n in real)
            num_some = sum(past + n > begin for n in lengths)
            if num_full:
                self._steps.append(_Step(slice(0, num_full), queries, end))
            if num_full < num_some:
                most, keys = past + real[num_full], torch.tensor(real[num_full:num_some], device=device) + past
                alike = real[num_full] == real[num_some - 1]
                mask = None if alike else (torch.arange(most, device=device) < keys[:, None])[:, None, None]
                self._steps.append(_Step(slice(num_full, num_some), queries, most, mask))

    def spread(self, rows: Tensor) -> Tensor:
        """Packed rows (R, D) as (G, longest, D), zeros behind the shorter ones."""
        rows = rows.to(_attention_dtype(rows))
        if self._shape[0] == 1:
            return rows[None]
        spread = rows.new_zeros(self._shape[0] * self._shape[1], rows.shape[1])
        return spread.index_copy_(0, self._places, rows).view(*self._shape, -1)

    def appended(self, past_rows: Tensor, rows: Tensor) -> Tensor:
        """Write `rows` (1, T, D) behind those that passed, and return all of them."""
        end = self._past + rows.shape[1]
        past_rows[:, self._past : end] = rows
        return past_rows[:, :end]

    def attention(self, q: Tensor, k: Tensor, v: Tensor, num_heads: int) -> Tensor:
        """Queries (G, longest, D), keys and values (G, past + longest, D) to packed rows (R, D)."""
        heard = torch.empty_like(q)
        q, k, v = (t.unflatten(2, (num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        if self._shape[0] > 1:  # else every step would make such copies of its own
            q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        for step in self._steps:
            asked, keys = q[step.recordings, :, step.queries], slice(0, step.num_keys)
            found = _attention(asked, k[step.recordings, :, keys], v[step.recordings, :, keys], step.mask)
            heard[step.recordings, step.queries] = found.transpose(1, 2).flatten(2)
        return heard.flatten(0, 1) if self._shape[0] == 1 else heard.flatten(0, 1)[self._places]


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Queries (g, heads, queries, d) to what they hear, by the fused kernel, or on a CPU by plain products while their
    scores fit its cache, which takes two thirds of the time."""
    num_scores = q[..., 0].numel() * k.shape[2]
    if q.device.type != "cpu" or num_scores > _MAX_SCORES:
        return F.scaled_dot_product_attention(q, k, v, mask)
    scores = (q * q.shape[3] ** -0.5) @ k.transpose(2, 3)
    if mask is not None:
        scores.masked_fill_(~mask, -torch.inf)
    return scores.softmax(-1) @ v


def _attention_dtype(like: Tensor) -> torch.dtype:
    """fp32 on a CPU, whose attention is quicker in it than in bf16."""
    return torch.float32 if like.device.type == "cpu" else like.dtype
