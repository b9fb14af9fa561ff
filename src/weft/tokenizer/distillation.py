"""Distillation: the encoder of the Whisper that training starts from, without the bottleneck, as a teacher.

    teacher = Teacher.of(Path("whisper-base"), model.config, weight=1.0, device="cpu")
    loss = teacher.loss(encoded, batch)

The output of the teacher's encoder, averaged over the frames of each code, is the target of the output after the codes.
Source: Hinton et al. 2015 (arXiv 1503.02531), for hidden states instead of probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from weft.asr.whisper import load_whisper
from weft.tokenizer.dataset import Batch
from weft.tokenizer.encoder import BottleneckConfig, BottleneckWhisper


@dataclass(frozen=True)
class Teacher:
    """An unchanged Whisper encoder (full attention, symmetric convolutions, no pooling) and the weight of its loss."""

    model: BottleneckWhisper
    weight: float

    @classmethod
    def of(cls, base: Path, config: BottleneckConfig, weight: float, device: str) -> Teacher:
        """Load the encoder of `base`. Raises UserError as `load_whisper` does."""
        whisper, _ = load_whisper(base)
        unchanged = replace(config, pooling=1, block_frames=0, causal_convolution=False, positions_after=False)
        model = BottleneckWhisper(unchanged, whisper)
        del whisper.model.decoder, whisper.proj_out
        return cls(model.to(device).eval().requires_grad_(False), weight)

    @torch.no_grad()
    def targets(self, batch: Batch) -> Tensor:
        """Return the mean of the encoder's output over the valid frames of each code, (B, N, D).

        The teacher gets the clean view of a batch, if there is one.
        """
        frames, features = batch.valid_frames, batch.features if batch.clean is None else batch.clean
        encoded = self.model.from_bottleneck(self.model.to_bottleneck(features, frames), frames).float()
        shape = (batch.valid.shape[1], -1)
        sums = (encoded * frames[..., None]).unflatten(1, shape).sum(2)
        return sums / frames.unflatten(1, shape).sum(2).clamp(min=1)[..., None]

    def loss(self, encoded: Tensor, batch: Batch) -> Tensor:
        """Return the squared distance of the output after the codes (B, N, D) to the targets.

        It is a mean over valid codes, relative to the mean square of the teacher's output as its layer norm scales it.
        """
        distance = (encoded.float() - self.targets(batch))[batch.valid].square().mean()
        return distance / self.model.whisper.model.encoder.layer_norm.weight.square().mean()
