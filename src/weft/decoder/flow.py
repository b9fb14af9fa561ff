"""Codes to mel spectrogram by conditional flow matching, one block at a time.

    model = FlowDecoder(FlowConfig(), num_codes=512, values_per_code=400)
    losses = model.loss(batch)                                  # training: a FlowBatch
    mel = model.sample(codes, before, noise)                    # the next block, given what precedes it

A block is decoded from its codes, a few codes before it, and the mel frames already decoded for those, in training as
in a stream. Nothing is cached, masked or recomputed, and a block costs the same at any position. A training
window is a clip that ends after some block and has true frames before it, as in the paper's second training stage.

Encoder and estimator run at the code rate: the mel frames of a code are one vector. The estimator predicts the end of
the path (the clean mel), from which the velocity follows, so that a narrow model need not pass the noise through.

A voice is that of a speaker of the training data, or that of a voice prompt, codes and mel frames that precede the
context of every block and stay the same.

Shapes: B batch, C codes of prompt and context, N codes of the block, P mel values of a code (frames per code * bands),
D width.

Sources: the paper, section 2.2, after CosyVoice (Du et al. 2024): optimal-transport path (Lipman et al. 2023), cosine
time schedule, classifier-free guidance. Our choices: the estimator returns the clean mel, and the encoder has a loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.config import Fraction, NonNegativeFloat, NonNegativeInt, PositiveInt
from weft.errors import UserError

_MIN_TIME_LEFT = 0.1  # bounds the loss weight near the end of the path
_MIN_FREQUENCY, _MAX_FREQUENCY = 1.0, 1000.0  # of the time embedding, in radians over the path


@dataclass(frozen=True)
class FlowConfig:
    """Shape, training and sampling of the flow-matching model."""

    width: PositiveInt = 192
    """Width of encoder and estimator."""
    heads: PositiveInt = 4
    """Attention heads."""
    encoder_layers: PositiveInt = 2
    """Encoder layers, which predict a first mel from the codes, once per block."""
    estimator_layers: PositiveInt = 3
    """Estimator layers, run twice per Euler step."""
    context_codes: PositiveInt = 6
    """Codes of context before a block."""
    prompt_codes: NonNegativeInt = 0
    """Codes of a voice prompt, which precedes the context of every block and gives the voice; 0: no prompts."""
    block_codes: PositiveInt = 10
    """Codes per block: 10 is 0.8 s."""
    first_block_codes: PositiveInt = 4
    """Codes of the first block of an utterance; fewer reduce the latency of the first audio."""
    sigma_min: Fraction = 1e-6
    """Noise level at the end of the path."""
    prior_weight: NonNegativeFloat = 1.0
    """Weight of the encoder's loss relative to the flow-matching loss."""
    condition_dropout: Fraction = 0.2
    """Fraction of training windows without condition, for classifier-free guidance."""
    voice_dropout: Fraction = 0.2
    """Fraction of training windows without voice prompt, and of those without speaker, so that both are optional."""
    guidance: NonNegativeFloat = 0.7
    """Strength of classifier-free guidance."""
    euler_steps: PositiveInt = 10
    """Euler steps from noise to mel."""

    def __post_init__(self) -> None:
        if not 1 <= self.first_block_codes <= self.block_codes:
            raise UserError(f"first_block_codes is {self.first_block_codes}: give 1 to block_codes, {self.block_codes}")
        if self.width % (2 * self.heads):
            raise UserError(f"width is {self.width}: give a multiple of 2 * heads, {2 * self.heads}")
        if self.context_codes < 1:
            raise UserError("context_codes is 0: give at least 1, or the audio breaks between blocks")

    @property
    def before_codes(self) -> int:
        """Codes before a block: voice prompt and context."""
        return self.prompt_codes + self.context_codes


@dataclass(frozen=True)
class FlowBatch:
    """Training windows with everything random: `codes` (B, C + N), log-mel `mel` (B, C + N, P), normal `noise` (B, N,
    P), `time` (B,) uniform in 0..1, `dropped` (B,), true where the condition is dropped, and the rows of `speakers`
    (B,), 0 where they are unknown."""

    codes: Tensor
    mel: Tensor
    noise: Tensor
    time: Tensor
    dropped: Tensor
    speakers: Tensor

    def __len__(self) -> int:
        """Number of windows, over which the losses are means."""
        return len(self.codes)

    def to(self, device: torch.device) -> FlowBatch:
        """Move all tensors to a device."""
        return FlowBatch(*(getattr(self, f.name).to(device) for f in fields(self)))


class FlowDecoder(nn.Module):
    """Encoder (codes to a prior mel) and estimator (prior, time and a point of the path to the clean mel).

    `values_per_code` is P. Code `num_codes` pads the context before the start of an utterance, and a prompt that is
    shorter or not given. Without speakers there is no table of them.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: FlowConfig, num_codes: int, values_per_code: int, num_speakers: int = 0) -> None:
        super().__init__()
        self.config = config
        self.num_codes, self.values_per_code = num_codes, values_per_code
        width, window = config.width, config.before_codes + config.block_codes
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
        self.speaker = nn.Embedding(num_speakers + 1, width) if num_speakers else None  # row 0: unknown
        if self.speaker is not None:
            nn.init.zeros_(self.speaker.weight)
        self.register_buffer("mean", torch.zeros(values_per_code))
        self.register_buffer("std", torch.ones(values_per_code))

    @torch.no_grad()
    def initialize(self, code_means: Tensor, mean: Tensor, std: Tensor) -> None:
        """Initialize the prior of every code to its mean mel, `code_means` (K + 1, P); `mean` and `std` (P,) normalize.

        This saves a small model most of its training.
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
        """Return the losses over the blocks: "flow" of the velocity, "prior" of the encoder, and their sum "loss"."""
        config = self.config
        mel = (batch.mel - self.mean) / self.std
        before, target = mel[:, : config.before_codes], mel[:, config.before_codes :]
        prior = self.prior(batch.codes, batch.speakers)
        keep_condition = (~batch.dropped).to(mel.dtype)[:, None, None]
        t = schedule(batch.time)
        noise_left = 1 - (1 - config.sigma_min) * t[:, None, None]
        x = noise_left * batch.noise + t[:, None, None] * target
        clean = self.estimate(x, t, prior * keep_condition, before * keep_condition, batch.speakers)
        flow = ((clean - target) / noise_left.clamp(min=_MIN_TIME_LEFT)).square().mean()
        prior_loss = F.mse_loss(prior[:, config.before_codes :], target)
        return {"loss": flow + config.prior_weight * prior_loss, "flow": flow, "prior": prior_loss}

    def prior(self, codes: Tensor, speakers: Tensor) -> Tensor:
        """Predict the normalized mel (B, C + N, P) of codes (B, C + N) by speakers (B,)."""
        x = self._with_speaker(self.embed(codes) + self.code_positions[: codes.shape[1]], speakers)
        for layer in self.encoder:
            x = layer(x)
        return self.prior_out(x)

    def _with_speaker(self, x: Tensor, speakers: Tensor) -> Tensor:
        return x if self.speaker is None else x + self.speaker(speakers)[:, None]

    def estimate(self, x: Tensor, time: Tensor, prior: Tensor, before: Tensor, speakers: Tensor) -> Tensor:
        """Predict the clean mel (B, N, P) at the end of the path through `x` (B, N, P) at path time `time` (B,).

        `prior` (B, C + N, P) covers the window and `before` (B, C, P) is the mel of its context. All are normalized,
        and zero where the condition is dropped.
        """
        num_before, num_block = before.shape[1], x.shape[1]
        is_context = F.pad(torch.ones_like(before[..., :1]), (0, 0, 0, num_block))
        context_mel, noisy = F.pad(before, (0, 0, 0, num_block)), F.pad(x, (0, 0, num_before, 0))
        h = self.estimator_in(torch.cat([noisy, context_mel, prior, is_context], dim=-1))
        h = self._with_speaker(h + self.estimator_positions[: h.shape[1]], speakers)
        shifts = self.time_mlp(sinusoids(time, self.config.width))[:, None].chunk(len(self.estimator), dim=-1)
        for layer, shift in zip(self.estimator, shifts, strict=True):
            h = layer(h + shift)
        return prior[:, num_before:] + self.estimator_out(self.estimator_norm(h[:, num_before:]))

    @torch.no_grad()
    def sample(self, codes: Tensor, before: Tensor, noise: Tensor, speakers: Tensor | None = None) -> Tensor:
        """Return the log-mel (B, N, P) of blocks, given codes (B, C + N), log-mel `before` (B, C, P) and `noise`.

        `speakers` (B,) are rows of the table, 0 and not given for none.
        """
        speakers = codes.new_zeros(len(codes)) if speakers is None else speakers
        prior, before = self.prior(codes, speakers), (before - self.mean) / self.std
        return self.follow_path(noise, prior, before, speakers) * self.std + self.mean

    def follow_path(self, noise: Tensor, prior: Tensor, before: Tensor, speakers: Tensor) -> Tensor:
        """Return the end (B, N, P) of the path from `noise` by Euler steps; all arguments are those of `estimate`."""
        config, x = self.config, noise
        if config.guidance:  # classifier-free guidance: the second half of the batch has no condition
            prior, before = (torch.cat([c, torch.zeros_like(c)]) for c in (prior, before))
            speakers = speakers.repeat(2)
        copies = 2 if config.guidance else 1
        for t, next_t in pairwise(schedule(torch.linspace(0, 1, config.euler_steps + 1)).tolist()):
            time = x.new_full((copies * len(x),), t)
            clean = self.estimate(x.repeat(copies, 1, 1), time, prior, before, speakers)
            if config.guidance:
                conditional, unconditional = clean.chunk(2)
                clean = (1 + config.guidance) * conditional - config.guidance * unconditional
            velocity = (clean - (1 - config.sigma_min) * x) / (1 - (1 - config.sigma_min) * t)
            x = x + (next_t - t) * velocity
        return x

    def distillation_loss(self, batch: FlowBatch, teacher: FlowDecoder) -> dict[str, Tensor]:
        """Return the losses of imitating a teacher's samples from the same noise in this model's Euler steps.

        "distillation" is the mean squared error of the mel, "prior" that of the encoder, and "loss" their sum.
        """
        config, mel = self.config, (batch.mel - self.mean) / self.std
        before, target = mel[:, : config.before_codes], mel[:, config.before_codes :]
        with torch.no_grad():
            prior = teacher.prior(batch.codes, batch.speakers)
            expected = teacher.follow_path(batch.noise, prior, before, batch.speakers)
        prior = self.prior(batch.codes, batch.speakers)
        distillation = F.mse_loss(self.follow_path(batch.noise, prior, before, batch.speakers), expected)
        prior_loss = F.mse_loss(prior[:, config.before_codes :], target)
        return {
            "loss": distillation + config.prior_weight * prior_loss,
            "distillation": distillation,
            "prior": prior_loss,
        }


class _Layer(nn.Module):
    """Attention over the window and a convolutional feed-forward part, both zero at initialization."""

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
        # For windows this short, PyTorch's fused attention takes several times as long as plain products.
        weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(-1)
        x = x + self.attention_out((weights @ v).transpose(1, 2).flatten(2))
        return x + self.conv_out(F.gelu(self.conv(self.conv_norm(x).transpose(1, 2)).transpose(1, 2)))


def _zero(linear: nn.Linear) -> nn.Linear:
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def schedule(time: Tensor) -> Tensor:
    """Map time in 0..1 to path time in 0..1 by the cosine schedule, with short steps where noise is high."""
    return 1 - torch.cos(time * (math.pi / 2))


def sinusoids(time: Tensor, width: int) -> Tensor:
    """Embed path time (B,) as sines and cosines (B, D)."""
    frequencies = torch.logspace(math.log10(_MIN_FREQUENCY), math.log10(_MAX_FREQUENCY), width // 2, device=time.device)
    angles = time[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
