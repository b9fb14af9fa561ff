"""Whisper with a bottleneck inside its encoder: layers -> pooling -> codes -> layers -> text decoder.

    model = BottleneckWhisper(config, whisper)      # whisper: a transformers WhisperForConditionalGeneration
    hidden = model.to_bottleneck(features, valid)   # (B, N, D) pooled, at 12.5 Hz
    codes = model.quantizer.encode(hidden)          # the speech codes
    encoded = model.from_bottleneck(model.quantizer.decode(codes), valid)
    logits = model.text_logits(encoded, valid, text_ids)

The layers are those of transformers, called one by one, so released weights load unchanged. Added are causal padding of
the convolutions, a block-causal mask, pooling and the bottleneck; without them, it is Whisper. `to_bottleneck` takes
padded batches for training; `weft.tokenizer.packed` computes codes.

Shapes: B batch, M mel bands, T encoder frames (50 per second), N tokens (T / pooling), D width, L text tokens.

Sources: the paper, section 2.1; padding, masks and positions after the bottleneck follow the released GLM-4-Voice
tokenizer (its speech_tokenizer/modeling_whisper.py).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, WhisperConfig, WhisperForConditionalGeneration
from transformers.models.whisper.modeling_whisper import WhisperDecoderLayer, WhisperEncoderLayer

from weft.audio import SAMPLE_RATE_HZ
from weft.config import NonNegativeInt, PositiveInt
from weft.errors import UserError
from weft.tokenizer.attention import ATTENTION, from_rows, in_rows, steps_of
from weft.tokenizer.fsq import FiniteScalarQuantizer
from weft.tokenizer.quantizer import Quantizer, QuantizerConfig, VectorQuantizer

ENCODER_HZ = 50
SAMPLES_PER_FRAME = SAMPLE_RATE_HZ // ENCODER_HZ


@dataclass(frozen=True)
class BottleneckConfig:
    """Position and shape of the bottleneck in Whisper's encoder."""

    layer: PositiveInt = 16
    """Encoder layers before the quantizer."""
    pooling: PositiveInt = 4
    """Encoder frames (20 ms) per token: 4 gives 12.5 tokens per second, 1 disables pooling."""
    pooling_type: Literal["avg", "max"] = "avg"
    """Average or maximum pooling."""
    pooling_layer: NonNegativeInt = 0
    """Encoder layers before pooling, at most `layer`; 0: pool right before the quantizer."""
    block_frames: NonNegativeInt = 100
    """Encoder frames (20 ms) per attention block: 100 is 2 s, as in the paper; 0 is full attention."""
    causal_convolution: bool = True
    """Pad the convolutions on the left only, so that they see no later frames; otherwise on both sides, as Whisper."""
    log_mel_floor: Literal["window", "fixed"] = "window"
    """Floor of the log-mel: relative to the loudest frame of the window, as in Whisper, or fixed, for streaming."""
    positions_after: bool = True
    """Add a second position table after the quantizer, initialized with the first rows of Whisper's."""
    encoder_only: bool = False
    """Keep only the part that computes codes, which can neither be trained nor transcribe."""
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)

    def __post_init__(self) -> None:
        if self.block_frames % self.pooling:
            raise UserError(f"block_frames is {self.block_frames}: give a multiple of pooling, {self.pooling}")
        if self.pooling_layer > self.layer:
            raise UserError(f"pooling_layer is {self.pooling_layer}: give at most {self.layer}, the quantizer's layer")


class BottleneckWhisper(nn.Module):
    """Whisper with a bottleneck after one of its encoder layers. With `encoder_only`, the rest is removed."""

    def __init__(self, config: BottleneckConfig, whisper: WhisperForConditionalGeneration) -> None:
        super().__init__()
        self.config = config
        self.whisper = whisper
        whisper.set_attn_implementation(ATTENTION)
        for module in whisper.model.modules():
            if isinstance(module, WhisperEncoderLayer | WhisperDecoderLayer):
                for norm in module.children():
                    if isinstance(norm, nn.LayerNorm):
                        norm.register_forward_hook(_cast_once)
        encoder = whisper.model.encoder
        encoder.embed_positions.requires_grad_(False)  # as in Whisper's own training; transformers' loading undoes it
        max_layer = len(encoder.layers) - (not config.encoder_only)
        if not 0 < config.layer <= max_layer:
            raise UserError(
                f"layer is {config.layer}: give 1 to {max_layer} for a Whisper of {len(encoder.layers)} layers"
            )
        self.quantizer = new_quantizer(config.quantizer, whisper.config.d_model)
        if config.encoder_only:
            encoder.layers = encoder.layers[: config.layer]
            del encoder.layer_norm, whisper.model.decoder, whisper.proj_out
            self.quantizer.remove_training_state()
        rows = math.ceil(whisper.config.max_source_positions / config.pooling) if config.positions_after else 0
        self.positions_after = nn.Embedding.from_pretrained(encoder.embed_positions.weight[:rows].clone(), freeze=False)

    @property
    def whisper_config(self) -> WhisperConfig:
        return self.whisper.config

    def part_of(self, parameter: str) -> Literal["before", "after", "decoder"]:
        """Return the part of the model that a parameter belongs to, by its name; the quantizer is before."""
        if parameter.startswith(("whisper.model.decoder.", "whisper.proj_out.")):
            return "decoder"
        layer = re.match(r"quantizer|whisper\.model\.encoder\.(?:conv|embed_positions|layers\.(\d+))", parameter)
        return "before" if layer and int(layer[1] or 0) < self.config.layer else "after"

    def fix_parts(self, lr_ratios: Mapping[str, float]) -> None:
        """Do not train parts whose learning rate is 0."""
        for name, parameter in self.named_parameters():
            if not lr_ratios[self.part_of(name)]:
                parameter.requires_grad_(False)
        self.quantizer.is_fixed = not lr_ratios["before"]

    def to_bottleneck(self, features: Tensor, valid: Tensor | None = None) -> Tensor:
        """Encode log-mel features (B, M, 2T) into pooled hidden states (B, N, D).

        `valid` marks what is not padding, by frames (B, T) or by tokens (B, N).
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
        """Pool frames (..., T, D) into tokens (..., N, D)."""
        frames = frames.unflatten(-2, (-1, self.config.pooling))
        return frames.mean(dim=-2) if self.config.pooling_type == "avg" else frames.amax(dim=-2)

    def _convolve(self, features: Tensor) -> Tensor:
        """Apply the two convolutions: (B, M, 2T) to (B, T, D)."""
        encoder = self.whisper.model.encoder
        if not self.config.causal_convolution:
            x = encoder.conv2(F.gelu(encoder.conv1(features)))
        else:
            x = F.gelu(F.conv1d(F.pad(features, (2, 0)), encoder.conv1.weight, encoder.conv1.bias))
            x = F.conv1d(F.pad(x, (2, 0)), encoder.conv2.weight, encoder.conv2.bias, stride=2)
        return F.gelu(x.transpose(1, 2).contiguous())  # in the order of its gradient

    def _attend(self, x: Tensor, start: int, end: int, pooling: int, valid: Tensor | None) -> Tensor:
        """Apply encoder layers `start` to `end` to (B, positions, D), each position `pooling` frames long."""
        shape, block = x.shape[:2], self.config.block_frames // pooling
        mask, steps = _bias(block_mask(x.shape[1], block, valid, x.device)), []
        if x.device.type == "cpu":
            steps = steps_of(x.shape[1], block, x.shape[1] if valid is None else int(valid.sum(1).min()))
        if has_rows := _trains_on_cpu(x):
            x, mask = in_rows(x), mask.expand(shape[0], -1, -1, -1)
        for layer in self.whisper.model.encoder.layers[start:end]:
            x = layer(x, mask, steps=steps)
        return from_rows(x, *shape) if has_rows else x

    def require_whole(self) -> None:
        """Raise UserError for an `encoder_only` tokenizer, which cannot transcribe codes."""
        if self.config.encoder_only:
            raise UserError(
                "this tokenizer is encoder_only and cannot transcribe codes: train the other layers with it as init"
            )

    def from_bottleneck(self, values: Tensor, valid: Tensor | None) -> Tensor:
        """Encode code vectors (B, N, D) for Whisper's decoder. Raises UserError for an `encoder_only` tokenizer."""
        encoder, config = self.whisper.model.encoder, self.config
        self.require_whole()
        x = values + self.positions_after.weight[: values.shape[1]] if config.positions_after else values
        return encoder.layer_norm(self._attend(x, config.layer, len(encoder.layers), config.pooling, valid))

    def text_logits(self, encoded: Tensor, valid: Tensor, text_ids: Tensor, cache: Cache | None = None) -> Tensor:
        """Return next-token logits (B, L, vocabulary) of Whisper's decoder, given the encoder output (B, N, D)."""
        return self.whisper.proj_out(self.text_states(encoded, valid, text_ids, cache))

    def text_states(self, encoded: Tensor, valid: Tensor, text_ids: Tensor, cache: Cache | None = None) -> Tensor:
        """Return the states (B, L, D) of Whisper's decoder from which `proj_out` computes logits."""
        decoder = self.whisper.model.decoder
        past = cache.get_seq_length() if cache is not None else 0
        x = decoder.embed_tokens(text_ids) + decoder.embed_positions.weight[past : past + text_ids.shape[1]]
        shape = x.shape[:2]
        causal = torch.ones(x.shape[1], past + x.shape[1], dtype=torch.bool, device=x.device).tril(past)
        mask, encoded_mask = _bias(causal[None, None]), _bias(valid[:, None, None, :].expand(-1, 1, x.shape[1], -1))
        if has_rows := cache is None and _trains_on_cpu(x):
            x, encoded, mask = in_rows(x), in_rows(encoded), mask.expand(shape[0], -1, -1, -1)
        for layer in decoder.layers:
            x = layer(x, mask, encoded, encoded_mask, past_key_values=cache, use_cache=cache is not None)
        return decoder.layer_norm(from_rows(x, *shape) if has_rows else x)


def new_quantizer(config: QuantizerConfig, width: int) -> Quantizer:
    """Create the quantizer of `config` for vectors (..., width), not initialized."""
    return (FiniteScalarQuantizer if config.kind == "fsq" else VectorQuantizer)(config, width)


def encoder_parameters(config: BottleneckConfig, whisper: WhisperConfig) -> int:
    """Return the number of parameters that compute codes: convolutions, position tables, first layers and codebook."""
    with torch.device("meta"):
        encoder = BottleneckWhisper(replace(config, encoder_only=True), WhisperForConditionalGeneration(whisper))
    return sum(tensor.numel() for tensor in encoder.state_dict().values())


def valid_frames(num_samples: Sequence[int], num_frames: int) -> Tensor:
    """Return which of `num_frames` encoder frames begin within recordings of so many samples, (B, T)."""
    return torch.arange(num_frames) * SAMPLES_PER_FRAME < torch.as_tensor(num_samples)[:, None]


def block_mask(num_frames: int, block: int, valid: Tensor | None, device: torch.device) -> Tensor:
    """Return the attention mask (B or 1, 1, T, T), true where a frame may attend.

    A frame attends to its own and all earlier blocks without padding; the first frame is always visible, so that no
    row is empty. A block of 0 frames means full attention.
    """
    position = torch.arange(num_frames, device=device)
    block_of = position // (block or num_frames)
    mask = (block_of[:, None] >= block_of[None, :])[None, None]
    return mask if valid is None else mask & (valid[:, None, None, :] | (position == 0))


def _trains_on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and torch.is_grad_enabled()


def _cast_once(_: nn.Module, __: object, output: Tensor) -> Tensor:
    """Return the output of a layer norm in the precision of autocast, which would cast it in every product."""
    device = output.device.type
    return output.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else output


def _bias(mask: Tensor) -> Tensor:
    """Return a boolean mask as the bias that transformers adds to attention scores."""
    return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, torch.finfo(torch.float32).min)
