"""Metrics of a pre-training run: losses by modality and source, speed, and a plot of them.

    monitor = TrainingMonitor(units, mixture, model, config.train, draft.folder)
    micro_batch = monitor.micro_batch(step, samples, pack(...))              # the batch for `fit`
    monitor.add(micro_batch, token_losses(model, micro_batch.batch))
    fit(..., after_step=monitor.after_step)

Losses are recorded only in steps that are logged, by one addition on the device without synchronization.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from weft.device import uses_bf16
from weft.lm.loss_meter import LossMeter, Units
from weft.lm.mixture import Mixture
from weft.lm.packing import Batch
from weft.lm.plot import plot
from weft.training import distributed
from weft.training.config import TrainConfig
from weft.training.estimate import ModelFlops, peak_flops

_MIN_PLOT_SEC = 60.0  # between plots, each of which takes about a second


@dataclass
class MicroBatch:
    """A slice of a step, and in logged steps the index of the source of each of its N targets."""

    batch: Batch
    sources: np.ndarray | None

    def __len__(self) -> int:
        """Number of trained ids, over which the losses are means."""
        return len(self.batch)


class TrainingMonitor:
    """The metrics of a run on this rank. The logged values cover all ranks."""

    def __init__(
        self, units: Units, mixture: Mixture, model: PreTrainedModel, config: TrainConfig, folder: Path
    ) -> None:
        self._units, self._mixture, self._config, self._folder = units, mixture, config, folder
        self._model_flops = ModelFlops.of(model)
        peak = torch.tensor(peak_flops(model.device, uses_bf16(config.precision, model.device.type)))
        distributed.all_reduce(peak)  # measured on all ranks at the same time, as they may share a processor
        self._peak = float(peak)
        self._meter = LossMeter(units, mixture.names)
        self._tokens = self._flops = 0  # since the last logged step
        self._last_log_sec = self._last_plot_sec = time.monotonic()
        self.num_tokens = 0
        """Tokens that this rank has read."""

    def micro_batch(self, step: int, samples: Sequence[int], batch: Batch) -> MicroBatch:
        """Return a slice of a step, packed from samples of the mixture."""
        self.num_tokens += batch.num_tokens
        self._tokens += batch.num_tokens
        self._flops += self._model_flops.of_batch(batch.num_tokens, len(batch), batch.num_pairs)
        if not self._config.is_logged(step):
            return MicroBatch(batch, None)
        return MicroBatch(batch, np.array([self._mixture.source_of(j) for j in samples])[batch.documents.numpy()])

    def add(self, micro_batch: MicroBatch, losses: Tensor) -> None:
        """Add the losses (N,) of a micro-batch."""
        if micro_batch.sources is not None:
            self._meter.add(losses, micro_batch.batch.targets, micro_batch.sources)
            micro_batch.sources = None  # a sharded model may repeat a slice with weight 0

    def after_step(self, step: int, updated: bool) -> dict[str, float]:
        """Return the metrics to log after a step."""
        is_due = self._config.is_checkpointed(step) and step + 1 < self._config.steps  # the run draws the last plot
        if is_due and time.monotonic() - self._last_plot_sec > _MIN_PLOT_SEC:
            self.plot()
        if not self._config.is_logged(step):
            return {}
        meter, self._meter = self._meter.all_reduced(), LossMeter(self._units, self._mixture.names)
        metrics = {name.replace(".", "_"): value for name, value in meter.metrics().items() if name != "loss"}
        for source in self._mixture.names:
            losses = {name: value for name, value in meter.of(source).items() if name.startswith("loss")}
            metrics |= {f"{name.replace('.', '_')}/{source}": value for name, value in losses.items()}
        return metrics | self._speed()

    def _speed(self) -> dict[str, float]:
        """Return tokens per second since the last logged step, and the MFU."""
        now_sec = time.monotonic()
        seconds, self._last_log_sec = now_sec - self._last_log_sec, now_sec
        done = torch.tensor([self._tokens, self._flops], dtype=torch.float64)
        distributed.all_reduce(done)
        self._tokens = self._flops = 0
        return {"tokens_per_sec": float(done[0]) / seconds, "mfu": float(done[1]) / seconds / self._peak}

    def plot(self) -> None:
        """Draw everything logged so far as `log/training.png`."""
        if distributed.is_main_process():
            plot(self._folder / "log")
            self._last_plot_sec = time.monotonic()
