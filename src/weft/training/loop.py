"""The one training loop, for every model of the road.

    fit(model, batch_at=lambda step, part: collate(items_of(step)[part]), loss_of=lambda model, batch: {"loss": ...},
        config=TrainConfig(steps=1000), folder=draft.folder, title="tokenizer")

The batch of a step is a pure function of the step, so that the whole state of a run is its step number, the model,
the optimizer and what gradients were like (`weft.training.guard`): a run that was killed and continued gives the same
weights, to the bit on a CPU, as one that was not. A step's items are the recipe's, however many processes share them
(`weft.training.distributed`) and however many micro-batches each takes them in: a part of them is asked for as a slice,
and counts by its length.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence, Sized
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from weft import progress
from weft.config import Count, Decay, Natural, NonNegative, Positive, Share
from weft.training import checkpoint, distributed
from weft.training.guard import Guard
from weft.training.metrics import MetricLog
from weft.training.optimizers import Optimizers

Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained."""

    steps: Count
    """Optimizer steps."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """Muon is for the matrices of the layers, with AdamW for all else: from nothing it needs about half the steps."""
    lr: Positive = 1e-3
    """Peak learning rate, reached after the warm-up."""
    muon_lr_ratio: Positive = 1.0
    """Muon's learning rate as a multiple of `lr`; at 1 its steps are of the size of AdamW's."""
    min_lr_ratio: Share = 0.05
    """Learning rate at the end, as a share of the peak."""
    warmup_steps: Natural = 100
    """Steps of linear warm-up."""
    schedule: Literal["linear", "cosine"] = "cosine"
    """How the learning rate falls after the warm-up."""
    beta2: Decay = 0.98
    """AdamW's second-moment decay (the first is 0.9)."""
    weight_decay: NonNegative = 0.01
    """Weight decay, on matrices only."""
    clip_norm: Positive = 1.0
    """Gradient norm above which gradients are scaled down."""
    spike_factor: Positive | None = None
    """A step whose gradient norm is over this many times the median of the last 128 is skipped; without, none is."""
    max_skipped_steps: Natural = 5
    """Steps in a row that may be skipped, as all are whose loss or gradient is not finite; one more ends the run."""
    precision: Precision = "auto"
    """Arithmetic of the forward and backward pass; auto takes bf16 where the processor multiplies it natively."""
    seed: Natural = 0
    """Seed of initialisation, order, dropout and augmentation."""
    accumulate: Count = 1
    """Micro-batches that a step is cut into, one after another, to fit less memory."""
    checkpoint_every_steps: Count = 500
    """Steps between checkpoints."""
    keep_checkpoints: Count = 2
    """Newest checkpoints that are kept: the one before is there where the last is damaged."""
    log_every_steps: Count = 20
    """Steps between lines of metrics.jsonl."""


HOUSEKEEPING = ("accumulate", "checkpoint_every_steps", "keep_checkpoints", "log_every_steps", "max_skipped_steps")
"""Settings of `TrainConfig` that change what a run needs and tells, and not, but for rounding, what it trains."""

BatchAt = Callable[[int, slice], Sized | None]
LossOf = Callable[[nn.Module, Any], dict[str, Tensor]]
AfterStep = Callable[[int], Mapping[str, float]]


def learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate of `step` (0-based)."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    share = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    fall = 0.5 * (1 + math.cos(math.pi * share)) if config.schedule == "cosine" else 1 - share
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * fall)


def is_logged(config: TrainConfig, step: int) -> bool:
    """Whether metrics of `step` are logged: every so often, and of the last."""
    return step % config.log_every_steps == 0 or step == config.steps - 1


def is_checkpointed(config: TrainConfig, step: int) -> bool:
    """Whether a checkpoint is due after `step`."""
    return (step + 1) % config.checkpoint_every_steps == 0 and step + 1 < config.steps


def fit(
    model: nn.Module,
    batch_at: BatchAt,
    loss_of: LossOf,
    config: TrainConfig,
    folder: Path,
    title: str,
    after_step: AfterStep = lambda step: {},
) -> float:
    """Train `model` in place and return the seconds it took here.

    `batch_at(step, part)` gives the data of a slice of a step's items, or None where there are none in it;
    `loss_of(model, batch)` gives scalars, of which "loss" is minimised and all are logged under `folder/log`. They
    should be means over `len(batch)` of something: by that the parts of a step are weighed, which makes them equal to
    the whole (of a mean over anything else, the log has the parts' mean by that weight). `after_step(step)` is called
    once a step in every process and may have more to log. Checkpoints live in `folder/checkpoints` until the end; a run
    that finds one continues from it.

    A step whose loss or gradient is not finite changes nothing, nor does a spike (`config.spike_factor`): they are told
    on stderr and logged, with `skipped_steps` so far. No checkpoint is made while they last, so that the newest is from
    before. Raises UserError where more than `config.max_skipped_steps` follow one another.
    """
    begun_sec = time.monotonic()
    distributed.begin()
    optimizer, guard = Optimizers.of(model, config), Guard(config)
    first_step = checkpoint.restore(folder / "checkpoints", model, optimizer, guard)
    objective = distributed.data_parallel(_Objective(model, loss_of))
    model.train()
    with (
        torch.random.fork_rng(),
        MetricLog(folder / "log", first_step) if distributed.is_first() else nullcontext() as log,
        progress.bar(title, config.steps, first_step) as advance,
    ):
        for step in range(first_step, config.steps):
            # dropout: a function of the step, as the batch is, and other for other items
            torch.manual_seed(hash((config.seed, step)) + distributed.rank())
            lr = learning_rate(config, step)
            optimizer.set_lr(lr)
            objective.zero_grad(set_to_none=True)
            losses = _backward(objective, batch_at, config, step)
            norm = float(distributed.clip_gradients(model, config.clip_norm))
            if guard.takes(step, norm, title):
                optimizer.step()
            more = after_step(step)
            note = ""
            if is_logged(config, step) or not guard.is_at_ease:
                values = _mean(losses)
                if log is not None:
                    skipped = {"skipped_steps": guard.skipped_steps} if guard.skipped_steps else {}
                    log.write(step, {**values, **more, "lr": lr, "grad_norm": norm, **skipped})
                note = f"loss {values['loss']:.3f}" if values else ""  # a step may find nothing to train on
            advance(1, note)
            if is_checkpointed(config, step) and guard.is_at_ease:
                checkpoint.save(folder / "checkpoints", step + 1, model, optimizer, guard, keep=config.keep_checkpoints)
    model.eval()
    return time.monotonic() - begun_sec


class _Objective(nn.Module):
    """A model's losses as what DistributedDataParallel wraps, the forward pass of one module: losses may call any parts
    of the model.

    Without a batch the loss is a zero that is no parameter's of the model. By its backward pass a process that has
    nothing of a step takes part in summing the gradients, and neither trains on anything nor needs anything to read.
    """

    def __init__(self, model: nn.Module, loss_of: LossOf) -> None:
        super().__init__()
        self.model, self.loss_of = model, loss_of
        self.nothing = nn.Parameter(torch.zeros((), device=next(model.parameters()).device))

    def forward(self, batch: Sized | None) -> dict[str, Tensor]:
        """The losses of a batch; only "loss" leads back to parameters, and those of the others alone are unused."""
        losses = {"loss": 0 * self.nothing} if batch is None else self.loss_of(self.model, batch)
        return {name: value if name == "loss" else value.detach() for name, value in losses.items()}


_Losses = Sequence[tuple[float, dict[str, Tensor]]]  # of each micro-batch, with its share of the step


def _backward(objective: nn.Module, batch_at: BatchAt, config: TrainConfig, step: int) -> _Losses:
    """Give the parameters the gradients of a step, all processes' together; return the losses of this one's part.

    Every process ends with one backward pass that sums them, whatever it has of the step; before, each is on its own.
    With a sharded model they go through each pass together: who has fewer takes a batch again, with no weight.
    """
    device_type = next(objective.parameters()).device.type
    half = takes_bf16(config.precision, device_type)
    parts = (batch_at(step, distributed.share(i, config.accumulate)) for i in range(config.accumulate))
    batches = [part for part in parts if part is not None]
    total = max(1, distributed.total(sum(map(len, batches))))
    passes: list[tuple[float, Sized | None]] = [(len(batch) / total, batch) for batch in batches]
    if distributed.is_sharded(objective):
        lacking = max(distributed.gather(len(batches))) - len(batches)
        passes += [(0.0, batches[-1] if batches else batch_at(step, distributed.ANY))] * lacking
    else:
        passes = passes or [(0.0, None)]
    told = []
    for i, (share, batch) in enumerate(passes, 1):
        with nullcontext() if i == len(passes) else distributed.no_sync(objective):
            with torch.autocast(device_type, torch.bfloat16, enabled=half), distributed.peers(computing=True):
                losses = objective(batch)
            # By its last factor, 1 of any finite loss, the gradient of a loss that is not finite is not finite either:
            # all processes learn of it by the gradient, and wait for no word of the loss.
            distributed.backward(share * losses["loss"] * (1 + 0 * losses["loss"].detach()))
        if i <= len(batches):
            told.append((share, {**losses, "loss": losses["loss"].detach()}))
    return told


def _mean(losses: _Losses) -> dict[str, float]:
    """The means of losses over the parts of a step, in all processes, that have them."""
    here = [(share, {name: float(value) for name, value in values.items()}) for share, values in losses]
    everywhere = [part for parts in distributed.gather(here) for part in parts]
    names = {name: None for _, values in everywhere for name in values}  # in order
    means = {}
    for name in names:
        having = [(share, values[name]) for share, values in everywhere if name in values]
        means[name] = sum(share * value for share, value in having) / (sum(share for share, _ in having) or 1.0)
    return means


def takes_bf16(precision: Precision, device_type: str) -> bool:
    """Whether `precision` means bf16 there: auto does where it is multiplied natively."""
    return precision == "bf16" or (precision == "auto" and multiplies_bf16(device_type))


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
