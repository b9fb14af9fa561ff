"""Fundamental frequency of speech.

    f0 = f0_hz(samples, sample_rate_hz=24_000, hop_samples=240)     # (B, S) -> (B, T), 0 where it is not voiced

Source: normalized autocorrelation (Boersma 1993), without his path search.

Shapes: B batch, S samples, T frames, L lags.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_MIN_F0_HZ, _MAX_F0_HZ, _MIN_PERIODICITY = 60.0, 400.0, 0.5
_MIN_ENERGY = 1e-5  # of a frame, as a fraction of that of the loudest one: 50 dB below it
_OCTAVE_COST = 0.05  # per octave: multiples of the period have peaks as high


@torch.no_grad()
def f0_hz(samples: Tensor, sample_rate_hz: int, hop_samples: int) -> Tensor:
    """Return F0 (B, T) from 60 to 400 Hz, 0 where speech (B, S) is not periodic or 50 dB below its loudest frame.

    Frame t is centred on the middle of samples [t, t + 1) * hop.
    """
    longest, shortest = int(sample_rate_hz / _MIN_F0_HZ), int(sample_rate_hz / _MAX_F0_HZ)
    window = torch.hann_window(3 * longest, periodic=False, device=samples.device)
    margin = (len(window) - hop_samples) // 2
    padded = F.pad(samples.float(), (margin, margin + hop_samples))
    frames = padded.unfold(-1, len(window), hop_samples)[:, : -(-samples.shape[1] // hop_samples)]
    frames = (frames - frames.mean(-1, keepdim=True)) * window
    energy = frames.square().sum(-1)
    correlation = _autocorrelation(frames)[..., : longest + 2] / energy.clamp(min=1e-12)[..., None]
    correlation = correlation / (_autocorrelation(window)[: longest + 2] / window.square().sum())
    inner = correlation[..., shortest : longest + 1]
    is_peak = (inner >= correlation[..., shortest - 1 : longest]) & (inner > correlation[..., shortest + 1 :])
    lags = torch.arange(shortest, longest + 1, device=samples.device)
    score = torch.where(is_peak, inner - _OCTAVE_COST * torch.log2(lags / shortest), -torch.inf)
    best, lag = score.max(-1)
    around = correlation.gather(-1, lag[..., None] + torch.arange(shortest - 1, shortest + 2, device=samples.device))
    before, at, after = around.unbind(-1)
    shift = 0.5 * (before - after) / (before - 2 * at + after).clamp(max=-1e-6)
    loud = energy > _MIN_ENERGY * energy.amax(-1, keepdim=True)
    voiced = best.isfinite() & (at > _MIN_PERIODICITY) & loud
    return torch.where(voiced, sample_rate_hz / (lag + shortest + shift), 0.0)


def _autocorrelation(frames: Tensor) -> Tensor:
    """Return the sums of products of frames (..., L) with themselves at lags (..., L)."""
    size = 1 << (2 * frames.shape[-1] - 1).bit_length()
    return torch.fft.irfft(torch.fft.rfft(frames, size).abs().square())[..., : frames.shape[-1]]
