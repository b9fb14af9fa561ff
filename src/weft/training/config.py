"""Settings of a training run, shared by all models."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from weft.config import NOT_IN_PLAN, Decay, Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from weft.device import Precision
from weft.training.trackers import Tracker


@dataclass(frozen=True)
class TrainConfig:
    """Training settings."""

    steps: PositiveInt
    """Number of optimizer steps."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """Optimizer. Muon updates the weight matrices of the layers and AdamW everything else; from random weights it needs
    about half as many steps as AdamW alone."""
    lr: PositiveFloat = 1e-3
    """Peak learning rate, reached at the end of the warm-up."""
    muon_lr_ratio: PositiveFloat = 1.0
    """Muon's learning rate as a multiple of `lr`. At 1, its updates are about as large as AdamW's."""
    min_lr_ratio: Fraction = 0.05
    """Final learning rate as a fraction of the peak."""
    warmup_steps: NonNegativeInt = 100
    """Steps of linear warm-up."""
    schedule: Literal["linear", "cosine"] = "cosine"
    """Learning-rate decay after the warm-up."""
    beta2: Decay = 0.98
    """AdamW's second-moment decay (the first is 0.9)."""
    weight_decay: NonNegativeFloat = 0.01
    """Weight decay, applied to matrices only."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are scaled down to this norm."""
    spike_factor: PositiveFloat | None = None
    """Skip a step whose gradient norm exceeds this multiple of the median of the last 128 steps; not set: never."""
    max_skipped_steps: Annotated[NonNegativeInt, NOT_IN_PLAN] = 5
    """Stop the run after more skipped steps in a row. A step with a loss or gradient that is not finite is skipped."""
    precision: Precision = "auto"
    """Precision of matrix products; auto is bf16 where the hardware supports it natively, else fp32."""
    seed: NonNegativeInt = 0
    """Seed of initialization, data order, dropout and augmentation."""
    grad_accum_steps: Annotated[PositiveInt, NOT_IN_PLAN] = 1
    """Micro-batches per step, to fit less memory."""
    checkpoint_every_steps: Annotated[PositiveInt, NOT_IN_PLAN] = 500
    """Steps between checkpoints; the last step is followed by one, too."""
    keep_checkpoints: Annotated[PositiveInt, NOT_IN_PLAN] = 2
    """Number of checkpoints kept; the previous one is used if the last is damaged."""
    log_every_steps: Annotated[PositiveInt, NOT_IN_PLAN] = 20
    """Steps between lines of metrics.jsonl."""
    trackers: Annotated[tuple[Tracker, ...], NOT_IN_PLAN] = ()
    """Experiment trackers that also receive the metrics: wandb, trackio."""
    step_timeout_minutes: Annotated[PositiveFloat, NOT_IN_PLAN] = 30.0
    """With several processes: end the run when one waits this long for another in a step. The first step of a start,
    checkpoints, evaluation and saving may take up to 12 hours."""

    def is_logged(self, step: int) -> bool:
        """Whether metrics of `step` are logged."""
        return step % self.log_every_steps == 0 or step == self.steps - 1

    def is_checkpointed(self, step: int) -> bool:
        """Whether a checkpoint is due after `step`: at regular intervals, and after the last."""
        return (step + 1) % self.checkpoint_every_steps == 0 or step + 1 == self.steps

    def lr_at(self, step: int) -> float:
        """Return the learning rate of `step`, counted from 0."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        decay = 0.5 * (1 + math.cos(math.pi * progress)) if self.schedule == "cosine" else 1 - progress
        return self.lr * (self.min_lr_ratio + (1 - self.min_lr_ratio) * decay)
