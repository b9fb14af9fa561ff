"""Finite scalar quantization: no codebook to keep alive, but a fixed grid between two trained projections.

    quantizer = FiniteScalarQuantizer(QuantizerConfig(kind="fsq", levels=(8, 8, 8, 5)), width=1280)     # 2560 codes

A hidden state is projected to as few numbers as there are levels, each bounded by a tanh and rounded to one of its
levels; the code is those digits, read as one number. There is nothing to commit to and nothing to restart.

Shapes: B batch, N tokens, D width, K codes, F valid frames (padding left out), L levels.

Source: Mentzer et al. 2023 (arXiv 2309.15505), section 3 and appendix A; CosyVoice 2 (arXiv 2412.10117) has it in an
ASR encoder, as here. Ours: the projections begin at the principal directions of real hidden states.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from weft.tokenizer.quantizer import Quantized, Quantizer, QuantizerConfig
from weft.training import distributed

_MARGIN = 1e-3  # by which the tanh reaches beyond the outermost levels, so that rounding can reach them
_RIDGE = 1e-4  # keeps the least squares of the way back solvable where few hidden states are seen


class FiniteScalarQuantizer(Quantizer):
    """Each of a few projections of a hidden state, rounded to its levels; gradients pass the rounding straight through.

    Level i of n is i - n // 2, so 0 is a level of each; digits are told apart first dimension first.
    """

    def __init__(self, config: QuantizerConfig, width: int) -> None:
        super().__init__(config)
        self.down = nn.Linear(width, len(config.levels))
        self.up = nn.Linear(len(config.levels), width)

    @property
    def levels(self) -> Tensor:
        """How many values each dimension can take, (L,)."""
        return torch.tensor(self.config.levels, device=self.up.weight.device)

    @property
    def places(self) -> Tensor:
        """What a digit of each dimension is worth, (L,)."""
        return self.levels.cumprod(0) // self.levels

    def forward(self, hidden: Tensor, valid: Tensor) -> Quantized:
        """Quantize `hidden` (B, N, D); the loss is zero."""
        bounded = self._bounded(hidden)
        rounded = bounded + (bounded.round() - bounded).detach()
        codes = self._codes(rounded.detach())
        if self.training:
            self._see(codes[valid])
        return Quantized(self._raised(rounded).to(hidden.dtype), codes, hidden.new_zeros(()))

    def nearest(self, hidden: Tensor) -> Tensor:
        return self._codes(self._bounded(hidden).round())

    def lookup(self, codes: Tensor) -> Tensor:
        digits = codes[..., None] // self.places % self.levels
        return self._raised((digits - self.levels // 2).to(self.up.weight.dtype))

    @torch.no_grad()
    def initialise(self, vectors: Tensor, generator: torch.Generator) -> None:
        """Look at real hidden states (F, D) in the directions where they vary most, each at unit variance, and back by
        least squares: the grid begins as a coarse view of them. Uses those of the first process."""
        x = vectors.float()
        if distributed.is_first():
            mean = x.mean(0)
            variance, directions = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))
            largest = torch.arange(-1, -1 - len(self.levels), -1, device=x.device) % len(variance)
            scale = variance[largest].clamp(min=1e-6 * float(variance[-1]) + 1e-12).rsqrt()
            self.down.weight.copy_(directions.T[largest] * scale[:, None])
            self.down.bias.copy_(-self.down.weight @ mean)
            seen = self._scaled(self._bounded(x).round())
            gram = seen.T @ seen / len(x) + _RIDGE * torch.eye(seen.shape[1], device=x.device)
            self.up.weight.copy_(torch.linalg.solve(gram, seen.T @ (x - mean) / len(x)).T)
            self.up.bias.copy_(mean)
        distributed.broadcast(*self.parameters())

    def _bounded(self, hidden: Tensor) -> Tensor:
        """Projections (..., L), each between half a level below its lowest and half a level above its highest."""
        with torch.autocast(hidden.device.type, enabled=False):
            half = (self.levels - 1) * (1 + _MARGIN) / 2
            offset = 0.5 * (1 - self.levels % 2)  # an even number of levels is not symmetric about 0
            z = self.down(hidden.to(self.down.weight.dtype))
            return torch.tanh(z + torch.atanh(offset / half)) * half - offset

    def _codes(self, rounded: Tensor) -> Tensor:
        return ((rounded.long() + self.levels // 2) * self.places).sum(-1)

    def _raised(self, rounded: Tensor) -> Tensor:
        with torch.autocast(rounded.device.type, enabled=False):
            return self.up(self._scaled(rounded))

    def _scaled(self, rounded: Tensor) -> Tensor:
        """Levels as numbers in -1..1."""
        return rounded / (self.levels // 2)
