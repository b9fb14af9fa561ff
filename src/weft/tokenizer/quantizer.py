"""The bottleneck: vector quantization with a codebook that follows its vectors by moving averages.

    quantizer = VectorQuantizer(num_codes=16384, width=1280)
    quantizer.initialise(hidden[valid], generator)          # once, from real hidden states
    out = quantizer(hidden, valid)                          # training: also moves the codebook
    hidden = quantizer.lookup(out.codes)

Shapes: B batch, N tokens, D width, K codes, F valid frames of a batch (padding left out).

Source: the paper, section 2.1, for moving averages, commitment and restarts; van den Oord et al. 2017 (appendix A.1)
for the update; Dhariwal et al. 2020 (Jukebox) for restarts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class QuantizerConfig:
    """The vector quantizer and how its codebook is kept alive."""

    num_codes: int = 16_384
    """Codes in the codebook."""
    decay: float = 0.99
    """Decay of the moving averages, a training step."""
    commitment: float = 10.0
    """Weight of the pull of hidden states towards their codes."""
    epsilon: float = 1e-5
    """Laplace smoothing of the counts."""
    restart_every_steps: int = 100
    """Steps between restarts of unused codes; 0 turns restarts off."""
    restart_below: float | None = None
    """Moving-average count (vectors a step) below which a code restarts; default decay ** restart_every_steps, which
    a code falls under when it was not used since the last restart."""


@dataclass(frozen=True)
class Quantized:
    """`values` (B, N, D) carry gradients straight through to the input, `codes` are (B, N), `loss` is the mean squared
    distance from the valid inputs to their codes, already weighted by `commitment`."""

    values: Tensor
    codes: Tensor
    loss: Tensor


@dataclass(frozen=True)
class Health:
    """How a codebook is used: codes ever seen in the given counts, their share, perplexity, and bits a code."""

    codes_used: int
    codes_used_share: float
    perplexity: float
    bits: float


def health(counts: Tensor) -> Health:
    """Health of a codebook from how often each code (K,) was used."""
    total = counts.sum().clamp(min=1)
    p = counts.double() / total
    bits = float(-(p * p.clamp(min=1e-12).log2()).sum())
    used = int((counts > 0).sum())
    return Health(used, used / len(counts), 2.0**bits, bits)


class VectorQuantizer(nn.Module):
    """Nearest code by squared distance; the codebook is a buffer, moved by averages and never by gradients.

    The codebook rows equal `ema_sum / ema_count` up to smoothing, so a restarted code gets a new sum and a count of
    one: resetting the row alone would be undone one step later.
    """

    codebook: Tensor
    ema_count: Tensor
    ema_sum: Tensor
    num_updates: Tensor
    num_restarts: Tensor

    def __init__(self, config: QuantizerConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("codebook", torch.zeros(config.num_codes, width))
        self.register_buffer("ema_count", torch.ones(config.num_codes))
        self.register_buffer("ema_sum", torch.zeros(config.num_codes, width))
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.long))
        self.register_buffer("num_restarts", torch.zeros((), dtype=torch.long))

    def forward(self, hidden: Tensor, valid: Tensor) -> Quantized:
        """Quantize `hidden` (B, N, D); positions where `valid` (B, N) is false move and cost nothing."""
        codes = self.nearest(hidden)
        values = self.lookup(codes).to(hidden.dtype)
        flat, taken = hidden[valid].float(), codes[valid]
        loss = self.config.commitment * F.mse_loss(flat, self.lookup(taken))
        if self.training:
            self._update(flat.detach(), taken)
        return Quantized(hidden + (values - hidden).detach(), codes, loss)

    def nearest(self, hidden: Tensor) -> Tensor:
        """Code (...) of each vector (..., D)."""
        flat = hidden.reshape(-1, hidden.shape[-1]).to(self.codebook.dtype)
        # |x - c|^2 without its |x|^2, which is the same for every code
        distance = torch.addmm(self.codebook.square().sum(1), flat, self.codebook.T, alpha=-2)
        return distance.argmin(1).view(hidden.shape[:-1])

    def lookup(self, codes: Tensor) -> Tensor:
        """Vectors (..., D) of codes (...)."""
        return F.embedding(codes, self.codebook)

    @torch.no_grad()
    def initialise(self, vectors: Tensor, generator: torch.Generator, iterations: int = 10) -> None:
        """Set the codebook by k-means over real hidden states (F, D), F at least a few times K for a good one."""
        k = self.config.num_codes
        flat = vectors.float()
        self.codebook.copy_(flat[torch.randint(len(flat), (k,), generator=generator)])
        for _ in range(iterations):
            counts, sums = self._count(flat, self.nearest(flat))
            empty = counts == 0
            means = sums / counts.clamp(min=1)[:, None]
            means[empty] = flat[torch.randint(len(flat), (int(empty.sum()),), generator=generator)]
            self.codebook.copy_(means)
        self.ema_count.fill_(1.0)
        self.ema_sum.copy_(self.codebook)

    def freeze(self) -> None:
        """Drop what only training needs: the codebook stays, and moves no more."""
        del self.ema_count, self.ema_sum, self.num_updates, self.num_restarts

    @torch.no_grad()
    def _update(self, flat: Tensor, codes: Tensor) -> None:
        config = self.config
        counts, sums = self._count(flat, codes)
        self.ema_count.lerp_(counts, 1 - config.decay)
        self.ema_sum.lerp_(sums, 1 - config.decay)
        self.num_updates += 1
        if config.restart_every_steps and int(self.num_updates) % config.restart_every_steps == 0:
            self._restart(flat)
        total = self.ema_count.sum()
        smooth = (self.ema_count + config.epsilon) / (total + config.num_codes * config.epsilon) * total
        self.codebook.copy_(self.ema_sum / smooth[:, None])

    def _count(self, flat: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """How many vectors each code took (K,), and their sums (K, D)."""
        counts = torch.bincount(codes, minlength=self.config.num_codes).float()
        return counts, torch.zeros_like(self.codebook).index_add_(0, codes, flat)

    def _restart(self, flat: Tensor) -> None:
        config = self.config
        below = config.decay**config.restart_every_steps if config.restart_below is None else config.restart_below
        dead = (self.ema_count < below).nonzero()[:, 0]
        generator = torch.Generator().manual_seed(int(self.num_updates))
        fresh = flat[torch.randint(len(flat), (len(dead),), generator=generator).to(flat.device)]
        self.ema_count[dead] = 1.0
        self.ema_sum[dead] = fresh
        self.num_restarts += len(dead)
