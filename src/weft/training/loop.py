"""The one training loop, for every model of the road.

    fit(model, batch_at=lambda step: ..., loss_of=lambda model, batch: {"loss": ...}, config=TrainConfig(steps=1000),
        folder=draft.folder, title="tokenizer")

The batch of a step is a pure function of the step, so that the whole state of a run is its step number, the model
and the optimizer: a run that was killed and continued gives the same weights, to the bit on a CPU, as one that was
not.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from weft import progress
from weft.config import Count, Decay, Natural, NonNegative, Positive, Share
from weft.errors import UserError
from weft.training import checkpoint
from weft.training.metrics import MetricLog


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained."""

    steps: Count
    """Optimizer steps."""
    lr: Positive = 1e-3
    """Peak learning rate, reached after the warm-up."""
    min_lr_ratio: Share = 0.05
    """Learning rate at the end, as a share of the peak."""
    warmup_steps: Natural = 100
    """Steps of linear warm-up."""
    schedule: Literal["linear", "cosine"] = "cosine"
    """How the learning rate falls after the warm-up."""
    beta2: Decay = 0.98
    """AdamW's second-moment decay (the first is 0.9)."""
    weight_decay: NonNegative = 0.01
    """AdamW's weight decay, on matrices only."""
    clip_norm: Positive = 1.0
    """Gradient norm above which gradients are scaled down."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the forward and backward pass; auto takes bf16 where the processor multiplies it natively."""
    seed: Natural = 0
    """Seed of initialisation, order, dropout and augmentation."""
    checkpoint_every_steps: Count = 500
    """Steps between checkpoints."""
    log_every_steps: Count = 20
    """Steps between lines of metrics.jsonl."""


BatchAt = Callable[[int], Any]
LossOf = Callable[[nn.Module, Any], dict[str, Tensor]]


def learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate of `step` (0-based)."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    share = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    fall = 0.5 * (1 + math.cos(math.pi * share)) if config.schedule == "cosine" else 1 - share
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * fall)


def fit(
    model: nn.Module,
    batch_at: BatchAt,
    loss_of: LossOf,
    config: TrainConfig,
    folder: Path,
    title: str,
) -> float:
    """Train `model` in place and return the seconds it took here.

    `batch_at(step)` gives the data of a step; `loss_of(model, batch)` gives scalars, of which "loss" is minimised and
    all are logged under `folder/log`. Checkpoints live in `folder/checkpoints` until the end; a run that finds one
    continues from it. Raises UserError when the loss stops being finite.
    """
    begun_sec = time.monotonic()
    optimizer = _optimizer(model, config)
    first_step = _restore(folder, model, optimizer)
    device_type = next(model.parameters()).device.type
    half = config.precision == "bf16" or (config.precision == "auto" and multiplies_bf16(device_type))
    model.train()
    with (
        torch.random.fork_rng(),
        MetricLog(folder / "log", first_step) as log,
        progress.bar(title, config.steps, first_step) as advance,
    ):
        for step in range(first_step, config.steps):
            torch.manual_seed(hash((config.seed, step)))  # dropout: a function of the step, as the batch is
            lr = learning_rate(config, step)
            for group in optimizer.param_groups:
                group["lr"] = lr
            with torch.autocast(device_type, torch.bfloat16, enabled=half):
                losses = loss_of(model, batch_at(step))
            optimizer.zero_grad(set_to_none=True)
            losses["loss"].backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            if not torch.isfinite(norm):
                raise UserError(f"{title}: the loss or its gradient is not finite at step {step}: lower train.lr")
            optimizer.step()
            note = ""
            if step % config.log_every_steps == 0 or step == config.steps - 1:
                values = {name: float(v.detach()) for name, v in losses.items()}
                log.write(step, {**values, "lr": lr, "grad_norm": float(norm)})
                note = f"loss {values['loss']:.3f}"
            advance(1, note)
            if (step + 1) % config.checkpoint_every_steps == 0 and step + 1 < config.steps:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                checkpoint.save(folder / "checkpoints", step + 1, state)
    model.eval()
    return time.monotonic() - begun_sec


def multiplies_bf16(device_type: str) -> bool:
    """Whether products of bf16 matrices run in hardware, many times faster than fp32's; emulated they are slower."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device_type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def quickest_attention() -> str:
    """transformers' attention for short sequences: its fused kernel on a GPU, plain products on a CPU, where they are
    a quarter to a third quicker in bf16 than the fused kernel with a mask."""
    return "sdpa" if torch.cuda.is_available() else "eager"


def discard_checkpoints(folder: Path) -> None:
    """Remove a finished run's checkpoints, once its weights are saved."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def _optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, config.beta2), fused=True)


def _restore(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    found = checkpoint.latest(folder / "checkpoints")
    if found is None:
        return 0
    step, state = found
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return step
