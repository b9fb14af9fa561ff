"""The flow model of the paper's speech decoder: codes to mel frames.

    flow = PublishedFlow(PublishedConfig())
    mel = flow.sample(codes, noise)                         # (B, N) -> (B, M, T)
    mel = flow.sample(codes, noise, prompt)                 # T frames that start with those of `prompt` (B, M, P)

A mel frame has 256 samples at 22,050 Hz, so a code has 6.89 frames. Frames of codes come from the nearest position.

Shapes: B batch, N codes, T mel frames, M mel bands, P frames of the prompt, D width.

Sources: the released GLM-4-Voice decoder, after CosyVoice (arXiv 2407.05407).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.config import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt
from weft.decoder.flow import schedule
from weft.decoder.published.conformer import BlockEncoder, EncoderShape
from weft.decoder.published.unet import UNet, UNetShape


@dataclass(frozen=True)
class PublishedConfig:
    """Shape and sampling. The defaults are published."""

    num_codes: PositiveInt = 16_384
    """Size of the codebook."""
    code_rate_hz: PositiveFloat = 12.5
    """Codes per second."""
    sample_rate_hz: PositiveInt = 22_050
    """Sample rate."""
    hop_samples: PositiveInt = 256
    """Samples per mel frame."""
    num_mels: PositiveInt = 80
    """Mel bands."""
    speaker_width: PositiveInt = 192
    """Width of a speaker embedding."""
    encoder: EncoderShape = field(default_factory=EncoderShape)
    estimator: UNetShape = field(default_factory=UNetShape)
    sigma_min: Fraction = 1e-6
    """Noise level at the end of the path."""
    guidance: NonNegativeFloat = 0.7
    """Strength of classifier-free guidance."""
    euler_steps: PositiveInt = 10
    """Euler steps from noise to mel."""

    @property
    def samples_per_code(self) -> int:
        """Samples per code: 1764 at 12.5 codes per second."""
        return round(self.sample_rate_hz / self.code_rate_hz)

    def num_frames(self, num_codes: int) -> int:
        """Return the mel frames of some codes, rounded down."""
        return num_codes * self.samples_per_code // self.hop_samples


class PublishedFlow(nn.Module):
    """Encoder, up-sampling to mel frames, and estimator."""

    def __init__(self, config: PublishedConfig) -> None:
        super().__init__()
        self.config = config
        width, mels = config.encoder.width, config.num_mels
        self.embed = nn.Embedding(config.num_codes, width)
        self.encoder = BlockEncoder(config.encoder)
        self.to_mel = nn.Linear(width, mels)
        self.convs = nn.ModuleList(nn.Conv1d(mels, mels, 3, padding=1) for _ in range(4))
        self.conv_norms = nn.ModuleList(nn.GroupNorm(1, mels) for _ in range(4))
        self.conv_out = nn.Conv1d(mels, mels, 1)
        self.speaker = nn.Linear(config.speaker_width, mels)
        self.estimator = UNet(config.estimator, mels)

    def prior(self, codes: Tensor, num_frames: int) -> Tensor:
        """Return the condition (B, M, T) of codes (B, N) for so many frames."""
        hidden = self.to_mel(self.encoder(self.embed(codes))).transpose(1, 2)
        x = F.interpolate(hidden, size=num_frames, mode="nearest")
        for conv, norm in zip(self.convs, self.conv_norms, strict=True):
            x = F.mish(norm(conv(x)))
        return self.conv_out(x)

    @torch.no_grad()
    def sample(self, codes: Tensor, noise: Tensor, prompt: Tensor | None = None) -> Tensor:
        """Return the mel (B, M, T) of codes (B, N) from normal noise (B, M, T), the first frames given by `prompt`.

        The speaker is that of the release, whose speaker embedding is always 0.
        """
        prior = self.prior(codes, noise.shape[-1])
        speaker = self.speaker.bias[:, None].expand_as(prior)
        given = torch.zeros_like(prior)
        if prompt is not None:
            given[..., : prompt.shape[-1]] = prompt
        conditions, x = torch.cat([prior, speaker, given], dim=1), noise
        guidance, steps = self.config.guidance, self.config.euler_steps
        both = torch.cat([conditions, torch.zeros_like(conditions)])
        for t, next_t in pairwise(schedule(torch.linspace(0, 1, steps + 1)).tolist()):
            time = x.new_full((2 * len(x),), t)
            conditional, unconditional = self.estimator(x.repeat(2, 1, 1), time, both).chunk(2)
            x = x + (next_t - t) * ((1 + guidance) * conditional - guidance * unconditional)
        return x
