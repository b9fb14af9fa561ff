"""Codes to mel spectrogram by conditional flow matching, one block at a time.

    model = FlowDecoder(FlowConfig(num_codes=512))
    losses = model.loss(batch)                                  # training: a FlowBatch
    mel = model.sample(codes, before, noise)                    # the next block, given what came before it

A block is decoded from its own codes, the few codes before it, and the mel frames already decoded for those. That is
all it sees, in training as in a stream, so nothing is cached, masked or run again, and a block costs the same wherever
it stands. Every training window is a clip cut off after some block, with the frames before its last block given, which
is what the paper's second stage of training shows the model.

Encoder and estimator both work at the rate of codes: a code's mel frames are one vector. The estimator tells where the
path ends (the clean mel) and the velocity follows from that, so that a narrow model need not pass the noise through.

Shapes: B batch, C context codes, N codes of the block, P mel values of a code (frames a code * bands), D width.

Source: the paper, section 2.2, after CosyVoice (Du et al. 2024): optimal-transport path (Lipman et al. 2023), cosine
schedule of time, classifier-free guidance. Ours: the clean mel as the estimator's output and the encoder's own error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.config import Count, NonNegative, Share
from weft.errors import UserError

_LEAST_TIME_LEFT = 0.1  # bounds the weight of training frames near the end of the path
_SLOWEST, _FASTEST = 1.0, 1000.0  # radians over the path, of the sinusoids that tell the time


@dataclass(frozen=True)
class FlowConfig:
    """The model from codes to mel frames, and how it is sampled."""

    width: Count = 192
    """Width of the encoder and of the estimator."""
    heads: Count = 4
    """Attention heads."""
    encoder_layers: Count = 2
    """Layers from codes to a first guess of the mel, run once a block."""
    estimator_layers: Count = 3
    """Layers of the estimator, run twice for each Euler step."""
    context_codes: Count = 6
    """Codes before a block that it sees."""
    block_codes: Count = 10
    """Codes decoded at once: 10 is 0.8 s."""
    first_block_codes: Count = 4
    """Codes of an utterance's first block: fewer bring the first sound earlier."""
    sigma_min: Share = 1e-6
    """Noise left at the end of the path."""
    prior_weight: NonNegative = 1.0
    """Weight of the error of the encoder's first guess, beside the flow's."""
    condition_dropout: Share = 0.2
    """Share of training windows whose condition is hidden, so that guidance has something to point away from."""
    guidance: NonNegative = 0.7
    """Strength of classifier-free guidance."""
    euler_steps: Count = 10
    """Euler steps from noise to mel."""

    def __post_init__(self) -> None:
        if not 1 <= self.first_block_codes <= self.block_codes:
            raise UserError(f"first_block_codes is {self.first_block_codes}: choose 1..{self.block_codes}, block_codes")
        if self.width % (2 * self.heads):
            raise UserError(f"width is {self.width}: choose a multiple of twice heads {self.heads}")
        if self.context_codes < 1:
            raise UserError("context_codes is 0: a block must see a code before it, or the sound breaks at its edge")


@dataclass(frozen=True)
class FlowBatch:
    """Windows of training with all that is drawn at random: `codes` (B, C + N), `mel` (B, C + N, P) log-mel, `noise`
    (B, N, P) normal, `time` (B,) uniform in 0..1, `hidden` (B,) true where the condition is not shown."""

    codes: Tensor
    mel: Tensor
    noise: Tensor
    time: Tensor
    hidden: Tensor

    def __len__(self) -> int:
        """Windows, over which the losses are means."""
        return len(self.codes)


class FlowDecoder(nn.Module):
    """Encoder (codes to a first guess, the prior) and estimator (prior, time and a point of the path to clean mel).

    `values_per_code` is P. Code `num_codes` stands where an utterance has not begun.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: FlowConfig, num_codes: int, values_per_code: int) -> None:
        super().__init__()
        self.config = config
        self.num_codes, self.values_per_code = num_codes, values_per_code
        width, window = config.width, config.context_codes + config.block_codes
        self.embed = nn.Embedding(num_codes + 1, width)
        self.code_positions = nn.Parameter(0.02 * torch.randn(window, width))
        self.encoder = nn.ModuleList(_Layer(width, config.heads) for _ in range(config.encoder_layers))
        self.prior_out = nn.Linear(width, values_per_code)
        layers = config.estimator_layers
        self.time_mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, layers * width))
        self.estimator_in = nn.Linear(3 * values_per_code + 1, width)
        self.estimator_positions = nn.Parameter(0.02 * torch.randn(window, width))
        self.estimator = nn.ModuleList(_Layer(width, config.heads) for _ in range(layers))
        self.estimator_norm = nn.LayerNorm(width)
        self.estimator_out = _zero(nn.Linear(width, values_per_code))
        self.register_buffer("mean", torch.zeros(values_per_code))
        self.register_buffer("std", torch.ones(values_per_code))

    @torch.no_grad()
    def start_from(self, code_means: Tensor, mean: Tensor, std: Tensor) -> None:
        """Begin with the prior of every code at its mean mel, `code_means` (K + 1, P), to which the layers then add.

        `mean` and `std` (P,) normalise. This saves a small model most of its training.
        """
        self.mean.copy_(mean)
        self.std.copy_(std)
        table = (code_means - mean) / std
        centre = table.mean(0)
        u, s, v = torch.linalg.svd(table - centre, full_matrices=False)
        rank = min(self.config.width, len(s))
        self.embed.weight.normal_(0.0, 0.02)
        self.embed.weight[:, :rank] = (u * s)[:, :rank]
        self.prior_out.weight[:, :rank] = v[:rank].T
        self.prior_out.bias.copy_(centre)

    def loss(self, batch: FlowBatch) -> dict[str, Tensor]:
        """Losses over the blocks: "flow" of the velocity, "prior" of the first guess, "loss" to minimise."""
        config = self.config
        mel = (batch.mel - self.mean) / self.std
        before, target = mel[:, : config.context_codes], mel[:, config.context_codes :]
        prior = self.prior(batch.codes)
        shown = (~batch.hidden).to(mel.dtype)[:, None, None]
        t = schedule(batch.time)
        noise_left = 1 - (1 - config.sigma_min) * t[:, None, None]
        x = noise_left * batch.noise + t[:, None, None] * target
        clean = self.estimate(x, t, prior * shown, before * shown)
        flow = ((clean - target) / noise_left.clamp(min=_LEAST_TIME_LEFT)).square().mean()
        prior_loss = F.mse_loss(prior[:, config.context_codes :], target)
        return {"loss": flow + config.prior_weight * prior_loss, "flow": flow, "prior": prior_loss}

    def prior(self, codes: Tensor) -> Tensor:
        """Codes (B, C + N) to a first guess of their mel, normalised: (B, C + N, P)."""
        x = self.embed(codes) + self.code_positions[: codes.shape[1]]
        for layer in self.encoder:
            x = layer(x)
        return self.prior_out(x)

    def estimate(self, x: Tensor, time: Tensor, prior: Tensor, before: Tensor) -> Tensor:
        """The clean mel (B, N, P) that the path through `x` (B, N, P) at path time `time` (B,) leads to.

        `prior` (B, C + N, P) is of the whole window, `before` (B, C, P) the mel of its context; all are normalised,
        and zeros where hidden.
        """
        num_before, num_block = before.shape[1], x.shape[1]
        given = F.pad(torch.ones_like(before[..., :1]), (0, 0, 0, num_block))
        known, moving = F.pad(before, (0, 0, 0, num_block)), F.pad(x, (0, 0, num_before, 0))
        h = self.estimator_in(torch.cat([moving, known, prior, given], dim=-1))
        h = h + self.estimator_positions[: h.shape[1]]
        shifts = self.time_mlp(sinusoids(time, self.config.width))[:, None].chunk(len(self.estimator), dim=-1)
        for layer, shift in zip(self.estimator, shifts, strict=True):
            h = layer(h + shift)
        return prior[:, num_before:] + self.estimator_out(self.estimator_norm(h[:, num_before:]))

    @torch.no_grad()
    def sample(self, codes: Tensor, before: Tensor, noise: Tensor) -> Tensor:
        """Log-mel (B, N, P) of blocks, from the codes (B, C + N) of their windows, the log-mel `before` (B, C, P) of
        their contexts, and normal `noise` (B, N, P)."""
        config = self.config
        both = torch.cat([torch.ones(len(codes)), torch.zeros(len(codes))]).to(noise)[:, None, None]  # shown, hidden
        prior = self.prior(codes).repeat(2, 1, 1) * both
        before = ((before - self.mean) / self.std).repeat(2, 1, 1) * both
        x = noise
        for t, next_t in pairwise(schedule(torch.linspace(0, 1, config.euler_steps + 1)).tolist()):
            shown, hidden = self.estimate(x.repeat(2, 1, 1), x.new_full((2 * len(x),), t), prior, before).chunk(2)
            clean = (1 + config.guidance) * shown - config.guidance * hidden
            velocity = (clean - (1 - config.sigma_min) * x) / (1 - (1 - config.sigma_min) * t)
            x = x + (next_t - t) * velocity
        return x * self.std + self.mean


class _Layer(nn.Module):
    """Attention over the window, then a feed-forward part that sees the neighbours; both begin as nothing."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = _zero(nn.Linear(width, width))
        self.conv_norm = nn.LayerNorm(width)
        self.conv = nn.Conv1d(width, 2 * width, 3, padding=1)
        self.conv_out = _zero(nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        # plain products: PyTorch's fused attention is several times slower for windows as short as these
        weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(-1)
        x = x + self.attention_out((weights @ v).transpose(1, 2).flatten(2))
        return x + self.conv_out(F.gelu(self.conv(self.conv_norm(x).transpose(1, 2)).transpose(1, 2)))


def _zero(linear: nn.Linear) -> nn.Linear:
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def schedule(time: Tensor) -> Tensor:
    """The cosine schedule: time in 0..1 to path time in 0..1, with short steps where there is most noise."""
    return 1 - torch.cos(time * (math.pi / 2))


def sinusoids(time: Tensor, width: int) -> Tensor:
    """Path time (B,) as sines and cosines (B, D) from slow to fast."""
    frequencies = torch.logspace(math.log10(_SLOWEST), math.log10(_FASTEST), width // 2, device=time.device)
    angles = time[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
