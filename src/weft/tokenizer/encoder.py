"""A Whisper with a bottleneck in the middle of its encoder: first half -> pooling -> codes -> second half -> text.

    model = BottleneckWhisper(config, whisper)      # whisper: a transformers WhisperForConditionalGeneration
    hidden = model.first_half(features, valid)      # (B, N, D) pooled, at 12.5 Hz
    codes = model.quantizer.nearest(hidden)         # the speech codes
    heard = model.second_half(model.quantizer.lookup(codes), valid)
    text = model.text_logits(heard, valid, text_ids)

The layers are transformers' own, called one by one, so stock weights load unchanged; what is ours is the causal
padding of the convolutions, the block-causal mask, the pooling and the bottleneck. Every one of them can be turned off
(`causal_convolution=False, block_frames=0, pooling=1, positions_after=False`, and the quantizer not called), which
leaves Whisper itself. `first_half` is for training, of padded batches; `weft.tokenizer.packed` makes codes.

Shapes: B batch, M mel bands, T encoder frames (50 a second), N tokens (T / pooling), D width, L text tokens.

Source: the paper, section 2.1; padding, masks and positions after the bottleneck as in the released GLM-4-Voice
tokenizer (its speech_tokenizer/modeling_whisper.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, WhisperConfig, WhisperForConditionalGeneration

from weft.audio import SAMPLE_RATE_HZ
from weft.config import Count, Natural
from weft.errors import UserError
from weft.tokenizer.fsq import FiniteScalarQuantizer
from weft.tokenizer.quantizer import Quantizer, QuantizerConfig, VectorQuantizer
from weft.training.loop import quickest_attention

ENCODER_HZ = 50
SAMPLES_PER_FRAME = SAMPLE_RATE_HZ // ENCODER_HZ
_QUANTIZERS: dict[str, type[VectorQuantizer] | type[FiniteScalarQuantizer]] = {
    "vq": VectorQuantizer,
    "fsq": FiniteScalarQuantizer,
}


@dataclass(frozen=True)
class BottleneckConfig:
    """Where Whisper's encoder is cut, and how."""

    layer: Count = 16
    """Encoder layers before the quantizer."""
    pooling: Count = 4
    """Encoder frames (20 ms) pooled into one token: 4 gives 12.5 tokens a second, 1 pools nothing."""
    pooling_type: Literal["avg", "max"] = "avg"
    """How frames are pooled: their average, or their maximum."""
    pooling_layer: Natural = 0
    """Encoder layers before pooling, at most `layer`; with 0, pooling comes right before the quantizer."""
    block_frames: Natural = 100
    """Encoder frames (20 ms) in one block of attention: 100 is 2 s, as in the paper; 0 is full attention."""
    causal_convolution: bool = True
    """Pad the convolutions on the left only, so that they hear nothing later; otherwise as Whisper, on both sides."""
    log_mel_floor: Literal["window", "fixed"] = "window"
    """Floor of the log-mel features: "window" as Whisper's, or "fixed", which a stream can compute."""
    positions_after: bool = True
    """Add a second position table after the quantizer, which begins as the first rows of Whisper's."""
    encoder_only: bool = False
    """Keep only what makes codes: no later layers, no text decoder, and so neither training nor transcripts."""
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)

    def __post_init__(self) -> None:
        if self.block_frames % self.pooling:
            raise UserError(f"block_frames is {self.block_frames}: give a multiple of pooling, {self.pooling}")
        if self.pooling_layer > self.layer:
            raise UserError(f"pooling_layer is {self.pooling_layer}: give at most {self.layer}, the quantizer's layer")


class BottleneckWhisper(nn.Module):
    """Whisper with the bottleneck after one of its encoder layers; with `encoder_only`, `whisper` loses the rest."""

    def __init__(self, config: BottleneckConfig, whisper: WhisperForConditionalGeneration) -> None:
        super().__init__()
        self.config = config
        self.whisper = whisper
        whisper.set_attn_implementation(quickest_attention())
        encoder = whisper.model.encoder
        if not 0 < config.layer < len(encoder.layers) + config.encoder_only:
            raise UserError(f"layer is {config.layer}: this Whisper has {len(encoder.layers)}, leave some on each side")
        self.quantizer = new_quantizer(config.quantizer, whisper.config.d_model)
        if config.encoder_only:
            encoder.layers = encoder.layers[: config.layer]
            del encoder.layer_norm, whisper.model.decoder, whisper.proj_out
            self.quantizer.freeze()
        rows = math.ceil(whisper.config.max_source_positions / config.pooling) if config.positions_after else 0
        self.positions_after = nn.Embedding.from_pretrained(encoder.embed_positions.weight[:rows].clone(), freeze=False)

    @property
    def whisper_config(self) -> WhisperConfig:
        return self.whisper.config

    def first_half(self, features: Tensor, valid: Tensor | None = None) -> Tensor:
        """Log-mel features (B, M, 2T) to pooled hidden states (B, N, D).

        `valid` marks what is real and not padding, by frames (B, T) or by tokens (B, N).
        """
        encoder, config = self.whisper.model.encoder, self.config
        x = self._convolve(features)
        x = x + encoder.embed_positions.weight[: x.shape[1]]
        if valid is not None:
            valid = valid.repeat_interleave(x.shape[1] // valid.shape[1], dim=1)
        pooled_after = config.pooling_layer or config.layer
        x = self.pool(self._attend(x, 0, pooled_after, 1, valid))
        valid = None if valid is None else valid[:, :: config.pooling]
        return self._attend(x, pooled_after, config.layer, config.pooling, valid)

    def pool(self, frames: Tensor) -> Tensor:
        """Frames (..., T, D) pooled into tokens (..., N, D)."""
        frames = frames.unflatten(-2, (-1, self.config.pooling))
        return frames.mean(dim=-2) if self.config.pooling_type == "avg" else frames.amax(dim=-2)

    def _convolve(self, features: Tensor) -> Tensor:
        """The two convolutions: (B, M, 2T) to (B, T, D)."""
        encoder = self.whisper.model.encoder
        if not self.config.causal_convolution:
            return F.gelu(encoder.conv2(F.gelu(encoder.conv1(features)))).transpose(1, 2)
        x = F.gelu(F.conv1d(F.pad(features, (2, 0)), encoder.conv1.weight, encoder.conv1.bias))
        return F.gelu(F.conv1d(F.pad(x, (2, 0)), encoder.conv2.weight, encoder.conv2.bias, stride=2)).transpose(1, 2)

    def _attend(self, x: Tensor, start: int, end: int, pooling: int, valid: Tensor | None) -> Tensor:
        """Encoder layers `start` to `end` over (B, positions, D), each position `pooling` frames long."""
        mask = _bias(block_mask(x.shape[1], self.config.block_frames // pooling, valid, x.device))
        for layer in self.whisper.model.encoder.layers[start:end]:
            x = layer(x, mask)
        return x

    def second_half(self, values: Tensor, valid: Tensor) -> Tensor:
        """Code vectors (B, N, D) to what Whisper's decoder attends to (B, N, D).

        Raises UserError when only the first half is here.
        """
        encoder, config = self.whisper.model.encoder, self.config
        if config.encoder_only:
            raise UserError("this tokenizer was kept without the half that reads codes: it makes codes, and no text")
        x = values + self.positions_after.weight[: values.shape[1]] if config.positions_after else values
        return encoder.layer_norm(self._attend(x, config.layer, len(encoder.layers), config.pooling, valid))

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
    return _QUANTIZERS[config.kind](config, width)


def kept_parameters(config: BottleneckConfig, whisper: WhisperConfig) -> int:
    """Numbers in the half that makes codes: convolutions, both position tables, the layers before the quantizer, and
    the codebook."""
    with torch.device("meta"):
        kept = BottleneckWhisper(replace(config, encoder_only=True), WhisperForConditionalGeneration(whisper))
    return sum(tensor.numel() for tensor in kept.state_dict().values())


def real_frames(num_samples: Sequence[int], num_frames: int) -> Tensor:
    """Which of `num_frames` encoder frames begin within their sound, (B, T), for sounds of so many samples."""
    return torch.arange(num_frames) * SAMPLES_PER_FRAME < torch.as_tensor(num_samples)[:, None]


def block_mask(num_frames: int, block: int, valid: Tensor | None, device: torch.device) -> Tensor:
    """Who may attend to whom, (B or 1, 1, T, T): a frame sees its whole block and every earlier block, but no padding,
    save the first frame, so that no row is empty. A block of 0 frames is all of them."""
    block_of = torch.arange(num_frames, device=device) // (block or num_frames)
    mask = (block_of[:, None] >= block_of[None, :])[None, None]
    if valid is None:
        return mask
    start = torch.zeros(num_frames, dtype=torch.bool, device=device)
    start[0] = True
    return mask & (valid[:, None, None, :] | start)


def _bias(mask: Tensor) -> Tensor:
    """A mask of who may attend to whom as what every attention of transformers adds to its scores."""
    return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, torch.finfo(torch.float32).min)
