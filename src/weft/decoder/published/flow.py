"""The flow model of the paper's speech decoder: codes to mel frames.

    flow = PublishedFlow(PublishedConfig(), num_codes=16_384, code_rate_hz=12.5, mel=PUBLISHED_MEL)
    losses = flow.loss(batch)                               # training: a PublishedBatch
    mel = flow.sample(codes, noise)                         # (B, N) -> (B, M, T)
    mel = flow.sample(codes, noise, prompt)                 # T frames that start with those of `prompt` (B, M, P)

A mel frame has 256 samples at 22,050 Hz, so a code has 6.89 frames. Frames of codes come from the nearest position.

Shapes: B batch, N codes, T mel frames, M mel bands, P frames of the prompt, D width.

Sources: the paper, section 2.2; the released GLM-4-Voice decoder, after CosyVoice (arXiv 2407.05407).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.config import Fraction, NonNegativeFloat, PositiveInt
from weft.decoder.flow import schedule
from weft.decoder.mel import MelConfig
from weft.decoder.published.conformer import BlockEncoder, EncoderShape
from weft.decoder.published.unet import UNet, UNetShape

PUBLISHED_MEL = MelConfig(sample_rate_hz=22_050, window_samples=1024, hop_samples=256, num_mels=80, max_hz=8000)
"""The mel spectrogram of the paper's decoder."""


@dataclass(frozen=True)
class PublishedConfig:
    """Shape, training and sampling. The defaults are published, but for `max_clip_blocks`."""

    speaker_width: PositiveInt = 192
    """Width of a speaker embedding, which is always 0 in the released code."""
    encoder: EncoderShape = field(default_factory=EncoderShape)
    estimator: UNetShape = field(default_factory=UNetShape)
    sigma_min: Fraction = 1e-6
    """Noise level at the end of the path."""
    condition_dropout: Fraction = 0.2
    """Fraction of training clips without conditions, for classifier-free guidance."""
    prompt_fraction: Fraction = 0.5
    """Fraction of training clips whose first frames are given, as those of earlier blocks are in a stream."""
    max_prompt_fraction: Fraction = 0.8
    """Largest fraction of the frames of a clip that is given."""
    max_clip_blocks: PositiveInt = 8
    """Blocks of the longest training clip."""
    guidance: NonNegativeFloat = 0.7
    """Strength of classifier-free guidance."""
    euler_steps: PositiveInt = 10
    """Euler steps from noise to mel."""


@dataclass(frozen=True)
class PublishedBatch:
    """Training clips of one length with everything random: `codes` (B, N), log-mel `mel` (B, M, T), normal `noise` (B,
    M, T), `time` (B,) uniform in 0..1, the frames `num_given` (B,) of the prompt, and `dropped` (B,), true where the
    conditions are dropped."""

    codes: Tensor
    mel: Tensor
    noise: Tensor
    time: Tensor
    num_given: Tensor
    dropped: Tensor

    def __len__(self) -> int:
        """Number of clips, over which the loss is a mean."""
        return len(self.codes)

    def part(self, part: slice) -> PublishedBatch:
        """Return a part of the clips."""
        return PublishedBatch(*(getattr(self, f.name)[part] for f in fields(self)))

    def to(self, device: torch.device) -> PublishedBatch:
        """Move all tensors to a device."""
        return PublishedBatch(*(getattr(self, f.name).to(device) for f in fields(self)))


class PublishedFlow(nn.Module):
    """Encoder, up-sampling to mel frames, and estimator."""

    def __init__(self, config: PublishedConfig, num_codes: int, code_rate_hz: float, mel: MelConfig) -> None:
        super().__init__()
        self.config, self.mel = config, mel
        self.num_codes, self.code_rate_hz = num_codes, code_rate_hz
        self.samples_per_code = round(mel.sample_rate_hz / code_rate_hz)  # 1764 at 12.5 codes per second
        width, mels = config.encoder.width, mel.num_mels
        self.embed = nn.Embedding(num_codes, width)
        self.encoder = BlockEncoder(config.encoder)
        self.to_mel = nn.Linear(width, mels)
        self.convs = nn.ModuleList(nn.Conv1d(mels, mels, 3, padding=1) for _ in range(4))
        self.conv_norms = nn.ModuleList(nn.GroupNorm(1, mels) for _ in range(4))
        self.conv_out = nn.Conv1d(mels, mels, 1)
        self.speaker = nn.Linear(config.speaker_width, mels)
        self.estimator = UNet(config.estimator, mels)

    def num_frames(self, num_codes: int) -> int:
        """Return the mel frames of some codes, rounded down."""
        return num_codes * self.samples_per_code // self.mel.hop_samples

    def prior(self, codes: Tensor, num_frames: int) -> Tensor:
        """Return the condition (B, M, T) of codes (B, N) for so many frames."""
        hidden = self.to_mel(self.encoder(self.embed(codes))).transpose(1, 2)
        x = F.interpolate(hidden, size=num_frames, mode="nearest")
        for conv, norm in zip(self.convs, self.conv_norms, strict=True):
            x = F.mish(norm(conv(x)))
        return self.conv_out(x)

    def conditions(self, codes: Tensor, given: Tensor) -> Tensor:
        """Return the conditions (B, 3M, T) of the estimator: of codes (B, N), the speaker, and `given` frames (B, M,
        T), zero where none is given.

        The speaker is that of the release, whose speaker embedding is always 0.
        """
        prior = self.prior(codes, given.shape[-1])
        speaker = self.speaker(prior.new_zeros(self.config.speaker_width))[:, None].expand_as(prior)
        return torch.cat([prior, speaker.to(prior), given.to(prior)], dim=1)

    def loss(self, batch: PublishedBatch) -> dict[str, Tensor]:
        """Return the mean squared error of the velocity."""
        frame = torch.arange(batch.mel.shape[-1], device=batch.mel.device)
        given = torch.where(frame < batch.num_given[:, None, None], batch.mel, 0.0)
        conditions = self.conditions(batch.codes, given) * (~batch.dropped)[:, None, None]
        time, rest = schedule(batch.time), 1 - self.config.sigma_min
        t = time[:, None, None]
        x = (1 - rest * t) * batch.noise + t * batch.mel
        velocity = batch.mel - rest * batch.noise
        return {"loss": F.mse_loss(self.estimator(x, time, conditions).float(), velocity)}

    @torch.no_grad()
    def sample(self, codes: Tensor, noise: Tensor, prompt: Tensor | None = None) -> Tensor:
        """Return the mel (B, M, T) of codes (B, N) from normal noise (B, M, T), the first frames given by `prompt`."""
        given, x = torch.zeros_like(noise), noise
        if prompt is not None:
            given[..., : prompt.shape[-1]] = prompt
        conditions = self.conditions(codes, given)
        guidance, steps = self.config.guidance, self.config.euler_steps
        both = torch.cat([conditions, torch.zeros_like(conditions)])
        for t, next_t in pairwise(schedule(torch.linspace(0, 1, steps + 1)).tolist()):
            time = x.new_full((2 * len(x),), t)
            conditional, unconditional = self.estimator(x.repeat(2, 1, 1), time, both).chunk(2)
            x = x + (next_t - t) * ((1 + guidance) * conditional - guidance * unconditional)
        return x
