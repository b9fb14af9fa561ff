"""The bottleneck: hidden states to codes and back. What every quantizer is, and the vector quantizer.

    quantizer = VectorQuantizer(QuantizerConfig(num_codes=16384), width=1280)
    quantizer.initialise(hidden[valid], generator)          # once, from real hidden states
    out = quantizer(hidden, valid)                          # any number of times in a training step, then, once,
    health = quantizer.update()                             # the codebook follows what it saw
    hidden = quantizer.lookup(out.codes)

The other kind is `weft.tokenizer.fsq`. Where several processes train together (`weft.training.distributed`), each
calls `initialise` and `update` with what it saw itself, and all have the same quantizer afterwards, to the bit.

Shapes: B batch, N tokens, D width, K codes, F valid frames (padding left out).

Source: the paper, section 2.1, for moving averages, commitment and restarts; van den Oord et al. 2017 (appendix A.1)
for the update; Dhariwal et al. 2020 (Jukebox) for restarts.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.config import Count, Natural, NonNegative, Positive, Share
from weft.errors import UserError
from weft.training import distributed

MAX_CODES = 1 << 16  # codes are kept as uint16
_DEFAULT_CODES = 1 << 14
_ROWS, _CODES = 1 << 16, 1 << 10  # of a distance matrix made at once, at most: 256 MiB, few enough codes for a cache
_MOST_FREQUENT = 10
_LEAST_USED_SHARE = 0.1  # of the codes that could be in use, below which a codebook has collapsed
_LARGEST_HEAD = 0.6  # share of all tokens that ten codes may take: silence, in one or a few codes, stays below


@dataclass(frozen=True)
class QuantizerConfig:
    """The quantizer: its kind, its codes, and how a codebook is kept alive."""

    kind: Literal["vq", "fsq"] = "vq"
    """vq, a codebook that follows the hidden states as in the paper; or fsq, finite scalar quantization, a fixed grid
    of `levels` between two trained projections."""
    num_codes: Count = _DEFAULT_CODES
    """Codes in the codebook; for fsq, the product of its levels, and need not be given."""
    levels: tuple[Count, ...] = ()
    """Of fsq: values that each dimension of the grid can take, such as 8 8 8 5, which makes 2560 codes."""
    init: Literal["kmeans", "samples"] = "kmeans"
    """Of vq: what the codebook starts from, means of real hidden states or a sample of them."""
    decay: Share = 0.99
    """Of vq: decay of the moving averages, a training step."""
    commitment: NonNegative = 10.0
    """Of vq: weight of the pull of hidden states towards their codes."""
    epsilon: Positive = 1e-5
    """Of vq: Laplace smoothing of the counts."""
    restart_every_steps: Natural = 100
    """Of vq: steps between restarts of unused codes; 0 turns restarts off."""
    restart_share: Share | None = None
    """Of vq: share of the mean code's use below which a code restarts. Without one, the paper's rule: when its moving
    count of vectors a step is down to decay ** restart_every_steps, as that of a code never used since it restarted. It
    takes used codes too where steps are so small that the mean count is no more than that: give a share then."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(self.levels))
        if self.kind == "fsq":
            self._follow_levels()
        elif self.levels:
            raise UserError("levels are given, and the quantizer's kind is vq: make it fsq, or leave them out")
        if not 2 <= self.num_codes <= MAX_CODES:
            raise UserError(f"num_codes is {self.num_codes}: give 2 to {MAX_CODES}")

    def _follow_levels(self) -> None:
        if not self.levels or min(self.levels) < 3:
            raise UserError(f"levels are {list(self.levels)}: give fsq some of 3 or more, such as [8, 8, 8, 5]")
        product = math.prod(self.levels)
        if self.num_codes not in (product, _DEFAULT_CODES):
            raise UserError(f"num_codes is {self.num_codes}, and levels make {product}: leave num_codes out")
        object.__setattr__(self, "num_codes", product)


@dataclass(frozen=True)
class Quantized:
    """`values` (B, N, D) carry gradients straight through to the input, `codes` are (B, N), `loss` is what the
    quantizer adds to the training loss, weighted already: a scalar."""

    values: Tensor
    codes: Tensor
    loss: Tensor


@dataclass(frozen=True)
class Health:
    """How a codebook is used: codes ever seen in the given counts (K,), their share, perplexity, bits a code, and codes
    restarted since training began."""

    codes_used: int
    codes_used_share: float
    perplexity: float
    bits: float
    restarts: int = 0
    counts: Tensor | None = field(default=None, compare=False, repr=False)


def health(counts: Tensor) -> Health:
    """Health of a codebook from how often each code (K,) was used."""
    total = counts.sum().clamp(min=1)
    p = counts.double() / total
    bits = float(-(p * p.clamp(min=1e-12).log2()).sum())
    used = int((counts > 0).sum())
    return Health(used, used / len(counts), 2.0**bits, bits, counts=counts)


def most_frequent_share(counts: Tensor) -> float:
    """Share of all uses that the ten most frequent codes have, from how often each code (K,) was used."""
    return float(counts.topk(min(_MOST_FREQUENT, len(counts))).values.sum() / counts.sum().clamp(min=1))


def collapse(counts: Tensor) -> str | None:
    """What is wrong with a codebook used so often (K,), and what to do about it: None where it is healthy.

    Of a codebook far larger than the speech is long, as many codes are expected to be in use as there are tokens.
    """
    num_codes, tokens, used = len(counts), int(counts.sum()), int((counts > 0).sum())
    if used < _LEAST_USED_SHARE * min(num_codes, tokens):
        what = f"only {used} of {num_codes} codes are in use, on {tokens} tokens"
    elif num_codes > 10 * _MOST_FREQUENT and most_frequent_share(counts) > _LARGEST_HEAD:
        what = f"{_MOST_FREQUENT} of {num_codes} codes take {most_frequent_share(counts):.0%} of the tokens"
    else:
        return None
    return (
        f"the codebook has collapsed: {what}. Train again with unused codes restarted sooner (restart_every_steps, "
        "restart_share = 0.1 of model.quantizer) or with kind = 'fsq', which has no codebook to lose; with the "
        "bottleneck closed later, on hidden states that mean something (quantize_from_step); with a lower train.lr, "
        "fewer codes or more speech. The training's log/metrics.jsonl shows when it went"
    )


class CodebookWatch:
    """Watches over a codebook while it trains, and says when it has collapsed.

        if warning := watch.see(quantizer.update()): print(warning)

    It judges by spans of steps in which every code could have been seen many times. A run that continues another begins
    a new span.
    """

    LEAST_STEPS = 100
    USES_PER_CODE = 10

    def __init__(self) -> None:
        self.warning: str | None = None
        """What was wrong in the last whole span, if anything."""
        self._counts: Tensor | None = None
        self._num_steps = 0

    def see(self, step: Health) -> str | None:
        """Take note of a step; at the end of a span, say what is wrong with it, if anything."""
        assert step.counts is not None
        self._counts = step.counts if self._counts is None else self._counts + step.counts
        self._num_steps += 1
        if self._num_steps < self.LEAST_STEPS or self._counts.sum() < self.USES_PER_CODE * len(self._counts):
            return None
        self.warning, self._counts, self._num_steps = collapse(self._counts), None, 0
        return self.warning


class Quantizer(nn.Module, ABC):
    """Hidden states to codes 0..K-1 and back. Both ways are computed in fp32, whatever autocast says: a code that
    depended on the precision of a run would not be the same code."""

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.num_codes = config.num_codes
        self._counts: Tensor | None = None  # how often each code was seen since the last update

    @abstractmethod
    def forward(self, hidden: Tensor, valid: Tensor) -> Quantized:
        """Quantize `hidden` (B, N, D); positions where `valid` (B, N) is false move and cost nothing."""

    @abstractmethod
    def nearest(self, hidden: Tensor) -> Tensor:
        """Code (...) of each vector (..., D)."""

    @abstractmethod
    def lookup(self, codes: Tensor) -> Tensor:
        """Vectors (..., D) of codes (...)."""

    @abstractmethod
    def initialise(self, vectors: Tensor, generator: torch.Generator) -> None:
        """Begin from real hidden states (F, D), of which the first process has some."""

    @torch.no_grad()
    def update(self) -> Health:
        """End a training step: learn from all that `forward` saw in it, and tell how the codes were used."""
        counts = self._counts
        if counts is None:
            counts = torch.zeros(self.num_codes, device=next(iter(self.state_dict().values())).device)
        distributed.all_reduce(counts)
        self._counts = None
        return health(counts)

    def freeze(self) -> None:
        """Drop what only training needs: the codes stay as they are."""

    def _see(self, codes: Tensor) -> None:
        counts = torch.bincount(codes, minlength=self.num_codes).float()
        self._counts = counts if self._counts is None else self._counts + counts


class VectorQuantizer(Quantizer):
    """Nearest code by squared distance; the codebook is a buffer, moved by averages and never by gradients.

    The codebook rows equal `ema_sum / ema_count` up to smoothing, so a restarted code gets a new sum and a new count:
    resetting the row alone would be undone one step later.
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
        self._sums: Tensor | None = None  # (K, D), of the vectors that each code took since the last update
        self._frames: list[Tensor] = []  # those vectors, where the next update restarts codes

    def forward(self, hidden: Tensor, valid: Tensor) -> Quantized:
        """Quantize `hidden` (B, N, D); the loss is the mean squared distance of the valid inputs to their codes."""
        codes = self.nearest(hidden)
        values = self.lookup(codes).to(hidden.dtype)
        flat, taken = hidden[valid].float(), codes[valid]
        loss = self.config.commitment * F.mse_loss(flat, self.lookup(taken))
        if self.training:
            self._remember(flat.detach(), taken)
        return Quantized(hidden + (values - hidden).detach(), codes, loss)

    def nearest(self, hidden: Tensor) -> Tensor:
        flat = hidden.reshape(-1, hidden.shape[-1])
        with torch.autocast(flat.device.type, enabled=False):
            codes = [_nearest(rows.to(self.codebook.dtype), self.codebook) for rows in flat.split(_ROWS)]
        return torch.cat(codes).view(hidden.shape[:-1])

    def lookup(self, codes: Tensor) -> Tensor:
        return F.embedding(codes, self.codebook)

    @torch.no_grad()
    def initialise(self, vectors: Tensor, generator: torch.Generator, iterations: int = 10) -> None:
        """Set the codebook from real hidden states (F, D): a sample of them, or k-means begun there, for which F is
        best many times K."""
        flat = vectors.float()
        self.codebook.copy_(_drawn(flat, self.num_codes, generator))
        for _ in range(iterations if self.config.init == "kmeans" else 0):
            codes = self.nearest(flat)
            counts = torch.bincount(codes, minlength=self.num_codes).float()
            sums = torch.zeros_like(self.codebook).index_add_(0, codes, flat)
            distributed.all_reduce(counts, sums)
            empty = counts == 0
            means = sums / counts.clamp(min=1)[:, None]
            means[empty] = _drawn(flat, int(empty.sum()), generator)
            self.codebook.copy_(means)
        self.ema_count.fill_(1.0)
        self.ema_sum.copy_(self.codebook)

    def freeze(self) -> None:
        """Drop what only training needs: the codebook stays, and moves no more."""
        del self.ema_count, self.ema_sum, self.num_updates, self.num_restarts

    @torch.no_grad()
    def update(self) -> Health:
        """Move the codebook by one step of its averages, and, every so often, restart the codes that nothing uses."""
        config = self.config
        counts = torch.zeros_like(self.ema_count) if self._counts is None else self._counts
        sums = torch.zeros_like(self.ema_sum) if self._sums is None else self._sums
        frames = torch.cat([self.ema_sum[:0], *self._frames])
        self._counts, self._sums, self._frames = None, None, []
        distributed.all_reduce(counts, sums)
        self.ema_count.lerp_(counts, 1 - config.decay)
        self.ema_sum.lerp_(sums, 1 - config.decay)
        if self._restart_is_due():
            self._restart(frames)
        self.num_updates += 1
        total = self.ema_count.sum()
        smooth = (self.ema_count + config.epsilon) / (total + config.num_codes * config.epsilon) * total
        self.codebook.copy_(self.ema_sum / smooth[:, None])
        return replace(health(counts), restarts=int(self.num_restarts))

    def _remember(self, flat: Tensor, codes: Tensor) -> None:
        self._see(codes)
        if self._sums is None:
            self._sums = torch.zeros_like(self.ema_sum)
        self._sums.index_add_(0, codes, flat)
        if self._restart_is_due():
            self._frames.append(flat)

    def _restart_is_due(self) -> bool:
        every = self.config.restart_every_steps
        return bool(every) and (int(self.num_updates) + 1) % every == 0

    def _restart(self, frames: Tensor) -> None:
        """Give unused codes the place of random `frames` (F, D) of the first process, the least used codes first where
        there are fewer frames than codes to restart."""
        config, mean = self.config, float(self.ema_count.mean())
        # R steps leave decay ** R of a count of 1, rounded up or down; of a code used once they leave more than this
        below, fresh = config.decay**config.restart_every_steps * (1 + (1 - config.decay) / 2), 1.0
        if config.restart_share is not None:
            below, fresh = config.restart_share * mean, mean
        num_dead = (self.ema_count < below).sum().clamp(max=len(frames))
        distributed.broadcast(num_dead)
        dead = self.ema_count.argsort(stable=True)[: int(num_dead)]
        generator = torch.Generator().manual_seed(int(self.num_updates) + 1)
        self.ema_sum[dead] = fresh * _drawn(frames, len(dead), generator)
        self.ema_count[dead] = fresh
        self.num_restarts += len(dead)


def _nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    """The code (F,) of the nearest of `codebook` (K, D) to each of `vectors` (F, D)."""
    codes = torch.zeros(len(vectors), dtype=torch.long, device=vectors.device)
    least = vectors.new_full((len(vectors),), torch.inf)
    for i, some in enumerate(codebook.split(_CODES)):
        # |x - c|^2 without its |x|^2, which is the same for every code
        found = torch.addmm(torch.linalg.vector_norm(some, dim=1).square(), vectors, some.T, alpha=-2).min(1)
        codes = torch.where(found.values < least, found.indices + i * _CODES, codes)
        least = torch.minimum(least, found.values)
    return codes


def _drawn(vectors: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """Random `num` of the first process's vectors (F, D), the same in every process; none twice if F is enough."""
    drawn = vectors.new_zeros(num, vectors.shape[1])
    if num and distributed.is_first():
        rounds = [torch.randperm(len(vectors), generator=generator) for _ in range(-(-num // len(vectors)))]
        drawn = vectors[torch.cat(rounds)[:num].to(vectors.device)]
    if num:
        distributed.broadcast(drawn)
    return drawn
