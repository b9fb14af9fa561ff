"""The estimator of the paper's speech decoder: a one-dimensional U-Net over mel frames.

    estimator = UNet(UNetShape(), num_mels=80)
    velocity = estimator(x, time, conditions)       # (B, M, T), (B,), (B, 3 M, T) -> (B, M, T)

The frames are halved once and restored, with transformers on every level that attend to all frames.

Shapes: B batch, T frames, C channels, M mel bands, E width of the time embedding.

Sources: the released GLM-4-Voice decoder, after CosyVoice (arXiv 2407.05407) and Matcha-TTS (arXiv 2309.03199).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.config import PositiveInt

_GROUPS = 8
_TIME_SCALE, _MAX_PERIOD = 1000.0, 10_000.0


@dataclass(frozen=True)
class UNetShape:
    """Shape of the estimator. The defaults are published."""

    channels: PositiveInt = 256
    """Channels of all levels."""
    mid_blocks: PositiveInt = 12
    """Blocks at half the frame rate."""
    transformers: PositiveInt = 4
    """Transformer layers per block."""
    heads: PositiveInt = 8
    """Attention heads."""
    head_width: PositiveInt = 64
    """Width of a head."""


class UNet(nn.Module):
    """The estimator of the velocity, given the mel on the path, and its conditions as channels."""

    def __init__(self, shape: UNetShape, num_mels: int) -> None:
        super().__init__()
        channels, inputs = shape.channels, 4 * num_mels
        self.time_width, embedding = inputs, 4 * channels
        self.time_in, self.time_out = nn.Linear(inputs, embedding), nn.Linear(embedding, embedding)
        self.down_whole, self.down_half = (_Block(shape, n, embedding) for n in (inputs, channels))
        self.downsample = nn.Conv1d(channels, channels, 3, 2, 1)
        self.after_down = nn.Conv1d(channels, channels, 3, padding=1)
        self.middle = nn.ModuleList(_Block(shape, channels, embedding) for _ in range(shape.mid_blocks))
        self.up_half, self.up_whole = (_Block(shape, 2 * channels, embedding) for _ in range(2))
        self.upsample = nn.ConvTranspose1d(channels, channels, 4, 2, 1)
        self.after_up = nn.Conv1d(channels, channels, 3, padding=1)
        self.last = _Convolution(channels, channels)
        self.output = nn.Conv1d(channels, num_mels, 1)

    def forward(self, x: Tensor, time: Tensor, conditions: Tensor) -> Tensor:
        """Return the velocity (B, M, T) at `x` (B, M, T) and `time` (B,), given `conditions` (B, 3M, T)."""
        t = self.time_out(F.silu(self.time_in(_sinusoids(time, self.time_width))))
        whole = self.down_whole(torch.cat([x, conditions], dim=1), t)
        half = self.down_half(self.downsample(whole), t)
        h = self.after_down(half)
        for block in self.middle:
            h = block(h, t)
        h = self.upsample(self.up_half(torch.cat([h, half], dim=1), t))[..., : whole.shape[-1]]
        h = self.after_up(self.up_whole(torch.cat([h, whole], dim=1), t))
        return self.output(self.last(h))


class _Convolution(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(inputs, outputs, 3, padding=1), nn.GroupNorm(_GROUPS, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.mish(self.norm(self.conv(x)))


class _Block(nn.Module):
    """Two convolutions with the time between them, and transformer layers."""

    def __init__(self, shape: UNetShape, inputs: int, embedding: int) -> None:
        super().__init__()
        channels = shape.channels
        self.first, self.second = _Convolution(inputs, channels), _Convolution(channels, channels)
        self.time = nn.Linear(embedding, channels)
        self.skip = nn.Conv1d(inputs, channels, 1)
        self.layers = nn.ModuleList(_Transformer(shape) for _ in range(shape.transformers))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the output (B, C, T) for inputs (B, C, T) and the embedded time (B, E)."""
        h = self.second(self.first(x) + self.time(F.mish(t))[..., None]) + self.skip(x)
        h = h.transpose(1, 2)
        for layer in self.layers:
            h = layer(h)
        return h.transpose(1, 2)


class _Transformer(nn.Module):
    """Attention to all frames and a feed-forward part, each after a norm."""

    def __init__(self, shape: UNetShape) -> None:
        super().__init__()
        channels, inner = shape.channels, shape.heads * shape.head_width
        self.heads = shape.heads
        self.attention_norm, self.ffn_norm = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.query, self.key, self.value = (nn.Linear(channels, inner, bias=False) for _ in range(3))
        self.attention_out = nn.Linear(inner, channels)
        self.expand, self.contract = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        h = self.attention_norm(x)
        query, key, value = (
            part(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        x = x + self.attention_out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        return x + self.contract(F.gelu(self.expand(self.ffn_norm(x))))


def _sinusoids(time: Tensor, width: int) -> Tensor:
    """Return sines and cosines (B, D) of times (B,) in 0..1."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=time.device) * (-math.log(_MAX_PERIOD) / (half - 1)))
    angles = _TIME_SCALE * time[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
