"""Finite scalar quantization: a fixed grid between two trained projections, without a codebook.

    quantizer = FiniteScalarQuantizer(QuantizerConfig(kind="fsq", levels=(8, 8, 8, 5)), width=1280)     # 2560 codes

A hidden state is projected to one number per level, bounded by a tanh, and rounded to the grid. The code is the
mixed-radix number of the rounded digits. There is no commitment loss and nothing to restart.

Shapes: B batch, N tokens, D width, K codes, F valid frames (without padding), L levels.

Sources: Mentzer et al. 2023 (arXiv 2309.15505), section 3 and appendix A; CosyVoice 2 (arXiv 2412.10117) uses it in an
ASR encoder. Our choice: the projections start as the principal directions of real hidden states.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.tokenizer.quantizer import Quantized, Quantizer, QuantizerConfig
from weft.training import distributed

_MARGIN = 1e-3  # by which the tanh exceeds the outermost levels, so that rounding can reach them
_RIDGE = 1e-4  # regularizes the least squares of the output projection if there are few hidden states


class FiniteScalarQuantizer(Quantizer):
    """Rounds projections of a hidden state to a grid; gradients pass straight through the rounding.

    Digit i of n has the value i - n // 2, so 0 is a value of every dimension. The first is the least significant.
    """

    def __init__(self, config: QuantizerConfig, width: int) -> None:
        super().__init__(config)
        self.down = nn.Linear(width, len(config.levels))
        self.up = nn.Linear(len(config.levels), width)

    @property
    def levels(self) -> Tensor:
        """Number of values per dimension, (L,)."""
        return torch.tensor(self.config.levels, device=self.up.weight.device)

    @property
    def place_values(self) -> Tensor:
        """Weight of a digit of each dimension in the code, (L,)."""
        return self.levels.cumprod(0) // self.levels

    def forward(self, hidden: Tensor, valid: Tensor) -> Quantized:
        """Quantize `hidden` (B, N, D). The loss is zero."""
        bounded = self._bound(hidden)
        rounded = bounded + (bounded.round() - bounded).detach()
        codes = self._to_codes(rounded.detach())
        if self.training:
            self._count(codes[valid])
        return Quantized(self._project_up(rounded).to(hidden.dtype), codes, hidden.new_zeros(()))

    def encode(self, hidden: Tensor) -> Tensor:
        return self._to_codes(self._bound(hidden).round())

    def decode(self, codes: Tensor) -> Tensor:
        return self._project_up(self._to_values(codes))

    def distance(self, hidden: Tensor, codes: Tensor) -> Tensor:
        return F.mse_loss(self._bound(hidden), self._to_values(codes))

    @torch.no_grad()
    def initialize(self, vectors: Tensor, generator: torch.Generator) -> None:
        """Project hidden states (F, D) to their whitened principal components, and back by least squares."""
        x = vectors.float()
        num = distributed.all_reduce_sum(len(x))

        def mean_of(sums: Tensor) -> Tensor:
            distributed.all_reduce(sums)
            return sums / num

        mean = mean_of(x.sum(0))
        variance, directions = torch.linalg.eigh(mean_of((x - mean).T @ (x - mean)))
        largest = torch.arange(-1, -1 - len(self.levels), -1, device=x.device) % len(variance)
        scale = variance[largest].clamp(min=1e-6 * float(variance[-1]) + 1e-12).rsqrt()
        self.down.weight.copy_(directions.T[largest] * scale[:, None])
        self.down.bias.copy_(-self.down.weight @ mean)
        distributed.broadcast(*self.down.parameters())  # the signs of directions may differ between processors
        grid = self._scale(self._bound(x).round())
        gram = mean_of(grid.T @ grid) + _RIDGE * torch.eye(grid.shape[1], device=x.device)
        self.up.weight.copy_(torch.linalg.solve(gram, mean_of(grid.T @ (x - mean))).T)
        self.up.bias.copy_(mean)
        distributed.broadcast(*self.up.parameters())

    def _bound(self, hidden: Tensor) -> Tensor:
        """Return projections (..., L) between half a step below the lowest and half a step above the highest value."""
        with torch.autocast(hidden.device.type, enabled=False):
            half = (self.levels - 1) * (1 + _MARGIN) / 2
            offset = 0.5 * (1 - self.levels % 2)  # an even number of values is not symmetric about 0
            z = self.down(hidden.to(self.down.weight.dtype))
            return torch.tanh(z + torch.atanh(offset / half)) * half - offset

    def _to_codes(self, rounded: Tensor) -> Tensor:
        digits = rounded.nan_to_num().long() + self.levels // 2  # the loss of a NaN is NaN, and its step is skipped
        return (digits * self.place_values).sum(-1)

    def _to_values(self, codes: Tensor) -> Tensor:
        digits = codes[..., None] // self.place_values % self.levels
        return (digits - self.levels // 2).to(self.up.weight.dtype)

    def _project_up(self, rounded: Tensor) -> Tensor:
        with torch.autocast(rounded.device.type, enabled=False):
            return self.up(self._scale(rounded))

    def _scale(self, rounded: Tensor) -> Tensor:
        """Return grid values in -1..1."""
        return rounded / (self.levels // 2)
