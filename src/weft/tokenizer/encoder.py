"""A Whisper with a bottleneck in the middle of its encoder: first half -> pooling -> codes -> second half -> text.

    model = BottleneckWhisper(config, whisper)      # whisper: a transformers WhisperForConditionalGeneration
    hidden = model.first_half(features, state=None) # (B, N, D) pooled, at 12.5 Hz
    codes = model.quantizer.nearest(hidden)         # the speech codes
    heard = model.second_half(model.quantizer.lookup(codes), valid)
    text = model.text_logits(heard, valid, text_ids)

The layers are transformers' own, called one by one, so stock weights load unchanged; what is ours is the causal
padding of the convolutions, the block-causal mask, the pooling and the bottleneck.

Shapes: B batch, M mel bands, T encoder frames (50 a second), N tokens (T / pooling), D width, L text tokens.

Source: the paper, section 2.1; positions after the bottleneck as in the released GLM-4-Voice tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, DynamicCache, WhisperConfig, WhisperForConditionalGeneration

from weft.errors import UserError
from weft.tokenizer.fsq import FiniteScalarQuantizer
from weft.tokenizer.quantizer import Quantizer, QuantizerConfig, VectorQuantizer
from weft.training.loop import quickest_attention

ENCODER_HZ = 50


@dataclass(frozen=True)
class BottleneckConfig:
    """Where Whisper's encoder is cut, and how."""

    layer: int = 16
    """Encoder layers before the bottleneck."""
    pooling: int = 4
    """Encoder frames (20 ms) averaged into one token: 4 gives 12.5 tokens a second."""
    block_frames: int = 100
    """Encoder frames (20 ms) in one block of attention: 100 is 2 s, as in the paper."""
    log_mel_floor: str = "window"
    """Floor of the log-mel features: "window" as Whisper's, or "fixed", which a stream can compute."""
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)

    def __post_init__(self) -> None:
        if self.block_frames % self.pooling:
            raise UserError(f"block_frames is {self.block_frames}: give a multiple of pooling, {self.pooling}")


@dataclass
class EncoderState:
    """What the first half remembers between blocks of a stream: the convolutions' last inputs, every layer's keys
    and values, and how many frames have passed."""

    mel_tail: Tensor
    conv_tail: Tensor
    cache: DynamicCache
    num_frames: int = 0


class BottleneckWhisper(nn.Module):
    """Whisper with the bottleneck after one of its encoder layers."""

    def __init__(self, config: BottleneckConfig, whisper: WhisperForConditionalGeneration) -> None:
        super().__init__()
        self.config = config
        self.whisper = whisper
        whisper.set_attn_implementation(quickest_attention())
        encoder = whisper.model.encoder
        if not 0 < config.layer < len(encoder.layers):
            raise UserError(f"layer is {config.layer}: this Whisper has {len(encoder.layers)}, leave some on each side")
        width = whisper.config.d_model
        self.quantizer = new_quantizer(config.quantizer, width)
        rows = whisper.config.max_source_positions // config.pooling
        self.positions_after = nn.Embedding.from_pretrained(encoder.embed_positions.weight[:rows].clone(), freeze=False)
        for index, layer in enumerate(encoder.layers):
            layer.self_attn.layer_idx = index  # so that transformers' cache can hold an encoder layer's keys

    @property
    def whisper_config(self) -> WhisperConfig:
        return self.whisper.config

    def new_state(self) -> EncoderState:
        """The state at the start of a stream (batch of one)."""
        c = self.whisper_config
        weight = self.whisper.model.encoder.conv1.weight
        mel_tail = weight.new_zeros(1, c.num_mel_bins, 2)
        return EncoderState(mel_tail, weight.new_zeros(1, c.d_model, 1), DynamicCache())

    def first_half(self, features: Tensor, valid: Tensor | None = None, state: EncoderState | None = None) -> Tensor:
        """Log-mel features (B, M, 2T) to pooled hidden states (B, N, D).

        `valid` (B, N) marks real tokens. With a `state`, the features continue a stream by whole blocks.
        """
        encoder = self.whisper.model.encoder
        mel_tail = state.mel_tail if state else features.new_zeros(*features.shape[:2], 2)
        x = torch.cat([mel_tail, features], dim=-1)
        if state:
            state.mel_tail = x[..., -2:]
        x = F.gelu(F.conv1d(x, encoder.conv1.weight, encoder.conv1.bias))
        tail = state.conv_tail if state else x.new_zeros(*x.shape[:2], 1)
        x = torch.cat([tail, x], dim=-1)
        if state:
            state.conv_tail = x[..., -1:]
        x = F.gelu(F.conv1d(x, encoder.conv2.weight, encoder.conv2.bias, stride=2)).transpose(1, 2)
        first = state.num_frames if state else 0
        x = x + encoder.embed_positions.weight[first : first + x.shape[1]]
        frames_valid = None if valid is None else valid.repeat_interleave(self.config.pooling, dim=1)
        mask = _bias(block_mask(x.shape[1], self.config.block_frames, first, frames_valid, x.device))
        for layer in encoder.layers[: self.config.layer]:
            x = layer(x, mask, past_key_values=state.cache if state else None)
        if state:
            state.num_frames += x.shape[1]
        return x.unflatten(1, (-1, self.config.pooling)).mean(dim=2)

    def second_half(self, values: Tensor, valid: Tensor) -> Tensor:
        """Code vectors (B, N, D) to what Whisper's decoder attends to (B, N, D)."""
        encoder = self.whisper.model.encoder
        x = values + self.positions_after.weight[: values.shape[1]]
        mask = _bias(block_mask(x.shape[1], self.config.block_frames // self.config.pooling, 0, valid, x.device))
        for layer in encoder.layers[self.config.layer :]:
            x = layer(x, mask)
        return encoder.layer_norm(x)

    def text_logits(self, heard: Tensor, valid: Tensor, text_ids: Tensor, cache: Cache | None = None) -> Tensor:
        """Next-token logits (B, L, vocabulary) of Whisper's decoder over `heard`, its padding masked."""
        decoder = self.whisper.model.decoder
        past = cache.get_seq_length() if cache is not None else 0
        x = decoder.embed_tokens(text_ids) + decoder.embed_positions.weight[past : past + text_ids.shape[1]]
        causal = torch.ones(x.shape[1], past + x.shape[1], dtype=torch.bool, device=x.device).tril(past)
        mask, heard_mask = _bias(causal[None, None]), _bias(valid[:, None, None, :].expand(-1, 1, x.shape[1], -1))
        for layer in decoder.layers:
            x = layer(x, mask, heard, heard_mask, past_key_values=cache, use_cache=cache is not None)
        return self.whisper.proj_out(decoder.layer_norm(x))


def new_quantizer(config: QuantizerConfig, width: int) -> Quantizer:
    """The quantizer that `config` asks for, of vectors (..., width), not initialised."""
    return (FiniteScalarQuantizer if config.kind == "fsq" else VectorQuantizer)(config, width)


def block_mask(num_frames: int, block: int, first: int, valid: Tensor | None, device: torch.device) -> Tensor:
    """Who may attend to whom, (B or 1, 1, T, first + T): a frame sees its whole block and every earlier block, and
    no padding. Padding itself sees the first frame only, so that no row is empty."""
    total = first + num_frames
    block_of = torch.arange(total, device=device) // block
    mask = (block_of[first:, None] >= block_of[None, :])[None, None]
    if valid is None:
        return mask
    start = torch.zeros(total, dtype=torch.bool, device=device)
    start[0] = True
    return mask & (valid[:, None, None, :] | start)


def _bias(mask: Tensor) -> Tensor:
    """A mask of who may attend to whom as what every attention of transformers adds to its scores."""
    return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, torch.finfo(torch.float32).min)
