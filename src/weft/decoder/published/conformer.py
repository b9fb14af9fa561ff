"""The encoder of the paper's speech decoder: a transformer over codes in blocks, with relative positions.

    encoder = BlockEncoder(EncoderShape())
    hidden = encoder(embedded)          # (B, N, D) -> (B, N, D)

A code attends to all codes of its own block and of the blocks before it.

Shapes: B batch, N codes, D width, H heads, K width of a head.

Sources: the released GLM-4-Voice decoder, which takes the encoder from CosyVoice (arXiv 2407.05407); relative positions
as in Transformer-XL (arXiv 1901.02860).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.config import PositiveInt
from weft.errors import UserError

_EPSILON = 1e-12  # of the norms inside the layers


@dataclass(frozen=True)
class EncoderShape:
    """Shape of the encoder. The defaults are published."""

    width: PositiveInt = 512
    """Width."""
    heads: PositiveInt = 8
    """Attention heads."""
    layers: PositiveInt = 6
    """Layers."""
    ffn: PositiveInt = 2048
    """Width of the feed-forward part."""
    block_codes: PositiveInt = 10
    """Codes of a block: 10 is 0.8 s."""

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads):
            raise UserError(f"width is {self.width}: give a multiple of 2 * heads, {2 * self.heads}")


class BlockEncoder(nn.Module):
    """The encoder."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.shape = shape
        self.input = nn.Linear(shape.width, shape.width)
        self.input_norm = nn.LayerNorm(shape.width)
        self.layers = nn.ModuleList(_Layer(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the hidden states (B, N, D) of embedded codes (B, N, D)."""
        x = math.sqrt(self.shape.width) * self.input_norm(self.input(x))
        positions = relative_positions(x.shape[1], self.shape.width).to(x)
        block = torch.arange(x.shape[1], device=x.device) // self.shape.block_codes
        is_visible = block[:, None] >= block
        for layer in self.layers:
            x = layer(x, positions, is_visible)
        return self.norm(x)


class _Layer(nn.Module):
    """Attention with learned biases for contents and positions, and a feed-forward part, each after a norm."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        width, self.heads = shape.width, shape.heads
        self.attention_norm = nn.LayerNorm(width, eps=_EPSILON)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.position = nn.Linear(width, width, bias=False)
        self.content_bias = nn.Parameter(torch.zeros(shape.heads, width // shape.heads))
        self.position_bias = nn.Parameter(torch.zeros(shape.heads, width // shape.heads))
        self.attention_out = nn.Linear(width, width)
        self.ffn_norm = nn.LayerNorm(width, eps=_EPSILON)
        self.expand, self.contract = nn.Linear(width, shape.ffn), nn.Linear(shape.ffn, width)

    def forward(self, x: Tensor, positions: Tensor, is_visible: Tensor) -> Tensor:
        """Return the output (B, N, D), given embedded positions (2N - 1, D) and which codes see which (N, N)."""
        h = self.attention_norm(x)
        query, key, value = (self._by_head(part(h)) for part in (self.query, self.key, self.value))
        by_position = (query + self.position_bias[:, None]) @ self._by_head(self.position(positions)[None]).mT
        scores = (query + self.content_bias[:, None]) @ key.mT + _shifted(by_position)
        scores = (scores / math.sqrt(query.shape[-1])).masked_fill(~is_visible, -torch.inf)
        x = x + self.attention_out((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))
        return x + self.contract(F.silu(self.expand(self.ffn_norm(x))))

    def _by_head(self, x: Tensor) -> Tensor:
        """Return (B, H, N, K) of (B, N, D)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def relative_positions(num: int, width: int) -> Tensor:
    """Return sines and cosines (2N - 1, D) of the distances N - 1 to 1 - N, alternating."""
    distance = torch.arange(num - 1, -num, -1, dtype=torch.float32)[:, None]
    angles = distance * torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


def _shifted(scores: Tensor) -> Tensor:
    """Return the scores (B, H, N, N) of pairs of codes, from those of queries and distances (B, H, N, 2N - 1)."""
    num = scores.shape[2]
    code = torch.arange(num, device=scores.device)
    index = num - 1 - code[:, None] + code
    return scores.gather(-1, index.expand(*scores.shape[:2], num, num))
