"""The bottleneck of the tokenizer: hidden states to codes and back.

    quantizer = VectorQuantizer(QuantizerConfig(num_codes=16384), width=1280)
    quantizer.initialize(hidden[valid], generator)          # once, from real hidden states
    out = quantizer(hidden, valid)                          # any number of times per training step
    usage = quantizer.update()                             # at the end of the step, or discard() if it is skipped
    hidden = quantizer.decode(out.codes)

`weft.tokenizer.fsq` is the other kind of quantizer. A forward pass changes no buffer; it collects what `update` needs.
In distributed training, every rank calls `initialize` and `update`, and all ranks have the same bits afterwards.

Shapes: B batch, N tokens, D width, K codes, F valid frames (without padding).

Sources: the paper, section 2.1, for moving averages, commitment and restarts; van den Oord et al. 2017 (appendix A.1)
for the update; Dhariwal et al. 2020 (Jukebox) for restarts.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft import progress
from weft.config import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from weft.errors import UserError
from weft.tokenizer.codebook import CodebookUsage, usage_of
from weft.training import distributed

MAX_CODES = 1 << 16  # codes are stored as uint16
_DEFAULT_CODES = 1 << 14
# Largest block of a distance matrix: 256 MiB, with few enough codes for a processor cache.
_BLOCK_ROWS, _BLOCK_CODES = 1 << 16, 1 << 10


@dataclass(frozen=True)
class QuantizerConfig:
    """Settings of the quantizer."""

    kind: Literal["vq", "fsq"] = "vq"
    """vq: a codebook that follows the hidden states, as in the paper. fsq: finite scalar quantization, a fixed grid of
    `levels` between two trained projections."""
    num_codes: PositiveInt = _DEFAULT_CODES
    """Codebook size. For fsq it is the product of the levels and need not be set."""
    levels: tuple[PositiveInt, ...] = ()
    """Number of values per dimension of the grid (fsq only), such as 8 8 8 5 for 2560 codes."""
    init: Literal["kmeans", "samples"] = "kmeans"
    """Initial codebook: k-means of real hidden states, or a sample of them (vq only)."""
    decay: Fraction = 0.99
    """Decay of the moving averages per training step (vq only)."""
    commitment: NonNegativeFloat = 10.0
    """Commitment loss weight (vq only)."""
    epsilon: PositiveFloat = 1e-5
    """Laplace smoothing of the code counts (vq only)."""
    restart_every_steps: NonNegativeInt = 100
    """Steps between restarts of unused codes; 0 disables restarts (vq only)."""
    restart_fraction: Fraction | None = None
    """Restart codes used less than this fraction of the mean (vq only). Not set: the paper's rule, which restarts codes
    whose moving count is below decay ** restart_every_steps, the count of a code never used since its last restart. Set
    it if a step has so few tokens that the mean count is near that value, because the rule then restarts used codes."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(self.levels))
        if self.kind == "fsq":
            if min(self.levels, default=0) < 3:
                raise UserError(f"levels are {list(self.levels)}: give levels of 3 or more, such as [8, 8, 8, 5]")
            product = math.prod(self.levels)
            if self.num_codes not in (product, _DEFAULT_CODES):
                raise UserError(f"num_codes is {self.num_codes}, but levels give {product} codes: remove num_codes")
            object.__setattr__(self, "num_codes", product)
        elif self.levels:
            raise UserError('levels are set but kind is "vq": set kind = "fsq", or remove levels')
        if not 2 <= self.num_codes <= MAX_CODES:
            raise UserError(f"num_codes is {self.num_codes}: give 2 to {MAX_CODES}")


@dataclass(frozen=True)
class Quantized:
    """Output of a quantizer.

    `values` (B, N, D) pass gradients straight through to the input, `codes` are (B, N), and `loss` is a scalar to add
    to the training loss, already weighted.
    """

    values: Tensor
    codes: Tensor
    loss: Tensor


class Quantizer(nn.Module, ABC):
    """Maps hidden states to codes 0..K-1 and back, always in fp32, so that codes do not depend on `precision`."""

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.num_codes = config.num_codes
        self.is_fixed = False
        """Whether `update` changes nothing, because the layers before are not trained."""
        self._counts: Tensor | None = None  # (K,), uses of each code since the last update

    @abstractmethod
    def forward(self, hidden: Tensor, valid: Tensor) -> Quantized:
        """Quantize `hidden` (B, N, D). Positions where `valid` (B, N) is false affect neither loss nor codebook."""

    @abstractmethod
    def encode(self, hidden: Tensor) -> Tensor:
        """Return the code (...) of each vector (..., D)."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Return the vectors (..., D) of codes (...)."""

    @abstractmethod
    def distance(self, hidden: Tensor, codes: Tensor) -> Tensor:
        """Return the mean squared distance of hidden states (F, D) to codes (F,), where `encode` compares them."""

    @abstractmethod
    def initialize(self, vectors: Tensor, generator: torch.Generator) -> None:
        """Initialize from hidden states (F, D), of which at least one rank has some."""

    @torch.no_grad()
    def update(self) -> CodebookUsage:
        """End a training step: update the codebook, if any, and return the use of codes since the last update."""
        counts, self._counts = self._counts, None
        if counts is None:
            counts = torch.zeros(self.num_codes, device=next(iter(self.state_dict().values())).device)
        distributed.all_reduce(counts)
        return usage_of(counts)

    def discard(self) -> None:
        """End a skipped training step: forget what its forward passes have collected."""
        self._counts = None

    def remove_training_state(self) -> None:
        """Remove the state that only training needs."""

    def _count(self, codes: Tensor) -> None:
        counts = torch.bincount(codes, minlength=self.num_codes).float()
        self._counts = counts if self._counts is None else self._counts + counts


class VectorQuantizer(Quantizer):
    """Nearest code by squared distance. The codebook is a buffer, updated by moving averages instead of gradients.

    A codebook row equals `ema_sum / ema_count` up to smoothing, so a restart resets the sum and the count of a code.
    """

    codebook: Tensor
    ema_count: Tensor
    ema_sum: Tensor
    num_updates: Tensor
    num_restarts: Tensor

    def __init__(self, config: QuantizerConfig, width: int) -> None:
        super().__init__(config)
        self.register_buffer("codebook", torch.zeros(config.num_codes, width))
        self.register_buffer("ema_count", torch.ones(config.num_codes))
        self.register_buffer("ema_sum", torch.zeros(config.num_codes, width))
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.long))
        self.register_buffer("num_restarts", torch.zeros((), dtype=torch.long))
        self._sums: Tensor | None = None  # (K, D), sum of the vectors of each code since the last update
        self._frames: list[Tensor] = []  # those vectors, if the next update restarts codes

    def forward(self, hidden: Tensor, valid: Tensor) -> Quantized:
        """Quantize `hidden` (B, N, D). The loss is the mean squared distance of valid inputs to their codes."""
        codes = self.encode(hidden)
        values = self.decode(codes).to(hidden.dtype)
        frames, frame_codes = hidden[valid].float(), codes[valid]
        loss = self.config.commitment * self.distance(frames, frame_codes)
        if self.training and self.is_fixed:
            self._count(frame_codes)
        elif self.training:
            self._accumulate(frames.detach(), frame_codes)
        return Quantized(hidden + (values - hidden).detach(), codes, loss)

    def encode(self, hidden: Tensor) -> Tensor:
        flat = hidden.reshape(-1, hidden.shape[-1])
        with torch.autocast(flat.device.type, enabled=False):
            codes = [_nearest(rows.to(self.codebook.dtype), self.codebook) for rows in flat.split(_BLOCK_ROWS)]
        return torch.cat(codes).view(hidden.shape[:-1])

    def decode(self, codes: Tensor) -> Tensor:
        return F.embedding(codes, self.codebook)

    def distance(self, hidden: Tensor, codes: Tensor) -> Tensor:
        return F.mse_loss(hidden.float(), self.decode(codes))

    @torch.no_grad()
    def initialize(self, vectors: Tensor, generator: torch.Generator, iterations: int = 10) -> None:
        """Initialize the codebook from hidden states (F, D), by sampling or k-means. F should be many times K."""
        flat = vectors.float()
        self.codebook.copy_(_sample(flat, self.num_codes, generator))
        if self.config.init == "kmeans":
            self._k_means(flat, generator, iterations)
        self.reset_averages()

    def reset_averages(self) -> None:
        """Start the moving averages at the codebook."""
        self.ema_count.fill_(1.0)
        self.ema_sum.copy_(self.codebook)

    def _k_means(self, vectors: Tensor, generator: torch.Generator, iterations: int) -> None:
        """Move every code to the mean of the vectors (F, D) nearest to it, and one without any to a random vector."""
        with progress.bar("k-means", iterations) as advance:
            for _ in range(iterations):
                codes = self.encode(vectors)
                counts = torch.bincount(codes, minlength=self.num_codes).float()
                sums = torch.zeros_like(self.codebook).index_add_(0, codes, vectors)
                distributed.all_reduce(counts, sums)
                empty = counts == 0
                means = sums / counts.clamp(min=1)[:, None]
                means[empty] = _sample(vectors, int(empty.sum()), generator)
                self.codebook.copy_(means)
                advance()

    def remove_training_state(self) -> None:
        """Keep the codebook and remove the moving averages."""
        del self.ema_count, self.ema_sum, self.num_updates, self.num_restarts

    @torch.no_grad()
    def update(self) -> CodebookUsage:
        """Update the moving averages and the codebook, and restart unused codes if it is time to."""
        if self.is_fixed:
            return super().update()
        config = self.config
        counts = torch.zeros_like(self.ema_count) if self._counts is None else self._counts
        sums = torch.zeros_like(self.ema_sum) if self._sums is None else self._sums
        frames = torch.cat([self.ema_sum[:0], *self._frames])
        self.discard()
        distributed.all_reduce(counts, sums)
        self.ema_count.lerp_(counts, 1 - config.decay)
        self.ema_sum.lerp_(sums, 1 - config.decay)
        if self._restart_is_due():
            self._restart(frames)
        self.num_updates += 1
        total = self.ema_count.sum()
        smooth = (self.ema_count + config.epsilon) / (total + config.num_codes * config.epsilon) * total
        self.codebook.copy_(self.ema_sum / smooth[:, None])
        return replace(usage_of(counts), restarts=int(self.num_restarts))

    def discard(self) -> None:
        super().discard()
        self._sums, self._frames = None, []

    def _accumulate(self, frames: Tensor, codes: Tensor) -> None:
        self._count(codes)
        if self._sums is None:
            self._sums = torch.zeros_like(self.ema_sum)
        self._sums.index_add_(0, codes, frames)
        if self._restart_is_due():
            self._frames.append(frames)

    def _restart_is_due(self) -> bool:
        every = self.config.restart_every_steps
        return bool(every) and (int(self.num_updates) + 1) % every == 0

    def _restart(self, frames: Tensor) -> None:
        """Replace unused codes by random frames (F, D), the least used codes first if frames are few."""
        config, mean = self.config, float(self.ema_count.mean())
        # A count of 1 decays to decay ** R in R steps, up to rounding; that of a code used once stays above this.
        threshold, count = config.decay**config.restart_every_steps * (1 + (1 - config.decay) / 2), 1.0
        if config.restart_fraction is not None:
            threshold, count = config.restart_fraction * mean, mean
        num_unused = min(int((self.ema_count < threshold).sum()), distributed.all_reduce_sum(len(frames)))
        unused = self.ema_count.argsort(stable=True)[:num_unused]
        generator = torch.Generator().manual_seed(int(self.num_updates) + 1)
        self.ema_sum[unused] = count * _sample(frames, len(unused), generator)
        self.ema_count[unused] = count
        self.num_restarts += len(unused)


def _nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Return the index (F,) of the row of `codebook` (K, D) nearest to each of `vectors` (F, D)."""
    codes = torch.zeros(len(vectors), dtype=torch.long, device=vectors.device)
    smallest = vectors.new_full((len(vectors),), torch.inf)
    for i, block in enumerate(codebook.split(_BLOCK_CODES)):
        # |x - c|^2 without |x|^2, which is the same for every code
        found = torch.addmm(torch.linalg.vector_norm(block, dim=1).square(), vectors, block.T, alpha=-2).min(1)
        codes = torch.where(found.values < smallest, found.indices + i * _BLOCK_CODES, codes)
        smallest = torch.minimum(smallest, found.values)
    return codes


def _sample(vectors: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """Return `num` random vectors (F, D) of all ranks; without repetition if there are enough.

    They depend on the vectors in the order of the ranks, and not on the number of ranks.
    """
    sampled = vectors.new_zeros(num, vectors.shape[1])
    if num:
        counts = distributed.all_gather_object(len(vectors))
        total, first = sum(counts), sum(counts[: distributed.rank()])
        rounds = [torch.randperm(total, generator=generator) for _ in range(-(-num // total))]
        chosen = (torch.cat(rounds)[:num] - first).to(vectors.device)
        here = (chosen >= 0) & (chosen < len(vectors))
        sampled[here] = vectors[chosen[here]]
        distributed.all_reduce(sampled)  # every row is that of one rank, plus zeros
    return sampled
