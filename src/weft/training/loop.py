"""The training loop of all models.

    fit(model, batch_at=lambda step, part: collate(items_of(step)[part]), loss_of=lambda model, batch: {"loss": ...},
        config=TrainConfig(steps=1000), folder=draft.folder, title="tokenizer")

The batch of a step is a pure function of the step, so an interrupted and resumed run gives the same weights as a whole
one (the same bits on a CPU). The items of a step do not depend on the number of ranks or micro-batches: each takes its
part of them by a slice, and the parts are weighted by their length.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weft import progress
from weft.device import autocast
from weft.errors import UserError, reason_of
from weft.training import checkpoint, distributed, parallel
from weft.training.config import TrainConfig
from weft.training.guard import StepGuard
from weft.training.metrics import MetricLog
from weft.training.optimizers import LrRatio, Optimizers

BatchAt = Callable[[int, slice], Sized | None]
LossOf = Callable[[nn.Module, Any], dict[str, Tensor]]
BeforeStep = Callable[[int], None]
AfterStep = Callable[[int, bool], Mapping[str, float]]
PartsOf = Callable[[int], Sequence[slice]]

FIRST_ITEM = slice(1)
"""The slice of a step for a rank without items, with weight 0: all ranks must run the passes of a sharded model."""


def fit(
    model: nn.Module,
    batch_at: BatchAt,
    loss_of: LossOf,
    config: TrainConfig,
    folder: Path,
    title: str,
    after_step: AfterStep = lambda step, updated: {},
    before_step: BeforeStep = lambda step: None,
    parts_of: PartsOf | None = None,
    lr_ratio: LrRatio | None = None,
) -> float:
    """Train `model` in place and return the elapsed seconds of this call.

    Args:
        batch_at: `batch_at(step, part)` returns the data of a slice of the step's items, or None if it is empty.
        loss_of: `loss_of(model, batch)` returns scalars, means over `len(batch)` of something, because parts of a step
            are weighted by it. "loss" is minimized, and all are logged.
        folder: `log` in it receives the metrics. A run resumes from its `checkpoints`.
        after_step: `after_step(step, updated)` is called on every rank and may return more metrics. `updated` is false
            after a skipped step; what the forward passes have collected must then be discarded.
        before_step: `before_step(step)` is called on every rank. It may change the model, as a function of its state.
        parts_of: the micro-batches of this rank in a step, as slices of its items; by default `grad_accum_steps`.
        lr_ratio: the learning rate of a parameter, given by name, as a multiple of the schedule's.

    A step with a spike (`config.spike_factor`) or a loss or gradient that is not finite changes nothing. A checkpoint
    that is due then is written after the next other step or at the end. Raises UserError after more than
    `config.max_skipped_steps` such steps in a row.
    """
    start_sec = time.monotonic()
    distributed.init()
    parts_of = parts_of or (lambda step: distributed.rank_slices(config.grad_accum_steps))
    optimizer, guard = Optimizers.of(model, config, lr_ratio), StepGuard(config)
    first_step = checkpoint.restore(folder / "checkpoints", model, optimizer, guard)
    objective = parallel.wrap_ddp(_Objective(model.train(), loss_of))
    with (
        torch.random.fork_rng(),
        _log(folder, config, first_step) if distributed.is_main_process() else nullcontext() as log,
        progress.bar(title, config.steps, first_step) as advance,
        _memory_errors(title),
    ):
        is_due = False
        for step in range(first_step, config.steps):
            before_step(step)
            optimizer.set_lr(config.lr_at(step))
            # The first step may compile, read the first data and connect the devices.
            with nullcontext() if step == first_step else distributed.step_timeout(config.step_timeout_minutes):
                losses = _backward(objective, batch_at, parts_of(step), config, step)
                norm = float(parallel.clip_grad_norm(model, config.max_grad_norm))
            if guard.should_step(step, norm, title):
                optimizer.step()
            metrics = {**after_step(step, guard.last_step_ok), "lr": config.lr_at(step), "grad_norm": norm}
            is_logged = config.is_logged(step) or not guard.last_step_ok
            advance(1, _write(log, step, losses, {**metrics, **guard.metrics}) if is_logged else "")
            is_due = is_due or config.is_checkpointed(step)
            if is_due and (guard.last_step_ok or step + 1 == config.steps):
                checkpoint.save(folder / "checkpoints", step + 1, model, optimizer, guard, keep=config.keep_checkpoints)
                is_due = False
    model.eval()
    return time.monotonic() - start_sec


def discard_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a finished run, once its weights are saved."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def _log(folder: Path, config: TrainConfig, first_step: int) -> MetricLog:
    return MetricLog(folder / "log", first_step, config.trackers, asdict(config))


def _write(log: MetricLog | None, step: int, losses: _Losses, more: Mapping[str, float]) -> str:
    """Log the mean losses of all ranks, and `more`; return the loss for the progress bar."""
    values = _mean(losses)
    if log is not None:
        log.write(step, {**values, **more})
    return f"loss {values['loss']:.3f}" if values else ""  # empty if the step had no items


@contextmanager
def _memory_errors(title: str) -> Iterator[None]:
    """Convert an error of a GPU that is full into a UserError that says what to change."""
    try:
        yield
    except torch.OutOfMemoryError as e:
        reason = ". ".join(reason_of(e).split(". ")[:2])  # the rest describes the allocator
        raise UserError(
            f"{title}: the GPU is out of memory ({reason}): raise train.grad_accum_steps, reduce the size of a "
            "batch or max_seq_len, or set activation_checkpointing = true where the recipe has it"
        ) from e


class _Objective(nn.Module):
    """A loss as the forward pass of one module, which is what DDP wraps.

    Without a batch, the loss is a zero that depends on a parameter outside of the model. Its backward pass lets a rank
    without items take part in summing the gradients.
    """

    def __init__(self, model: nn.Module, loss_of: LossOf) -> None:
        super().__init__()
        self.model, self.loss_of = model, loss_of
        self.zero = nn.Parameter(torch.zeros((), device=next(model.parameters()).device))

    def forward(self, batch: Sized | None) -> dict[str, Tensor]:
        """Return the losses of a batch, all but "loss" detached."""
        losses = {"loss": 0 * self.zero} if batch is None else self.loss_of(self.model, batch)
        return {name: value if name == "loss" else value.detach() for name, value in losses.items()}


_Losses = Sequence[tuple[float, dict[str, Tensor]]]  # weight and losses of each micro-batch


def _backward(
    objective: nn.Module, batch_at: BatchAt, parts: Sequence[slice], config: TrainConfig, step: int
) -> _Losses:
    """Compute the gradients of a step over all ranks; return the losses of this rank's micro-batches.

    Each rank ends with one backward pass that sums the gradients, even if it has no items. A sharded model sums in
    every pass, so ranks with fewer micro-batches repeat one with weight 0.
    """
    # Dropout is a function of the step, as the batch is, and differs between items.
    torch.manual_seed(hash((config.seed, step)) + distributed.rank())
    objective.zero_grad(set_to_none=True)
    device = next(objective.parameters()).device
    batches = [batch for part in parts if (batch := batch_at(step, part)) is not None]
    total = max(1, distributed.all_reduce_sum(sum(map(len, batches))))
    passes: list[tuple[float, Sized | None]] = [(len(batch) / total, batch) for batch in batches]
    if parallel.is_sharded(objective):
        missing = max(distributed.all_gather_object(len(batches))) - len(batches)
        passes += [(0.0, batches[-1] if batches else batch_at(step, FIRST_ITEM))] * missing
    else:
        passes = passes or [(0.0, None)]
    results = []
    for i, (weight, batch) in enumerate(passes, 1):
        with nullcontext() if i == len(passes) else parallel.no_sync(objective):
            with autocast(device, config.precision), distributed.peer_errors(computing=True):
                losses = objective(batch)
            # The last factor is 1 for a finite loss. It makes the gradient of any other loss not finite, so that all
            # ranks learn of it from the gradient norm without another exchange.
            parallel.backward(weight * losses["loss"] * (1 + 0 * losses["loss"].detach()))
        if i <= len(batches):
            results.append((weight, {**losses, "loss": losses["loss"].detach()}))
    return results


def _mean(losses: _Losses) -> dict[str, float]:
    """Return the weighted means of losses over the micro-batches of all ranks that have them."""
    here = [(weight, {name: float(value) for name, value in values.items()}) for weight, values in losses]
    everywhere = [part for parts in distributed.all_gather_object(here) for part in parts]
    names = {name: None for _, values in everywhere for name in values}  # in order
    means = {}
    for name in names:
        found = [(weight, values[name]) for weight, values in everywhere if name in values]
        means[name] = sum(weight * value for weight, value in found) / (sum(weight for weight, _ in found) or 1.0)
    return means
