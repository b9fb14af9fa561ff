"""What a run of pre-training tells of itself: losses by modality and source, its speed, and a plot of them.

    watch = Watch(units, mixture, model, config.train, draft.folder)
    part = watch.part(step, samples, pack(...))            # of `fit`, its batch
    watch.see(part, token_losses(model, part.batch))       # its losses
    fit(..., after_step=watch.after)

On the steps that are logged anyway, and on no other, losses are told apart: one addition on the device, and no waiting.
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

from weft.lm.flops import ModelFlops, peak_flops
from weft.lm.losses import Tally, Units
from weft.lm.mixture import Mixture
from weft.lm.packing import Batch
from weft.lm.plot import plot
from weft.training import distributed
from weft.training.loop import TrainConfig, is_checkpointed, is_logged, takes_bf16

_PLOT_EVERY_SEC = 60.0  # at most, as it takes about one


@dataclass
class Part:
    """A part of a step, and of which source each of its N targets is, by number, where that is to be told."""

    batch: Batch
    sources: np.ndarray | None

    def __len__(self) -> int:
        """Trained ids, over which the losses are means."""
        return len(self.batch)


class Watch:
    """Watches a run in one process; what it tells on log steps is of all of them."""

    def __init__(
        self, units: Units, mixture: Mixture, model: PreTrainedModel, config: TrainConfig, folder: Path
    ) -> None:
        self._units, self._mixture, self._config, self._folder = units, mixture, config, folder
        self._flops_of = ModelFlops.of(model)
        peak = torch.tensor(peak_flops(model.device, takes_bf16(config.precision, model.device.type)))
        distributed.all_reduce(peak)  # measured by all at once, as processes may share a processor
        self._peak = float(peak)
        self._tally = Tally(units, mixture.names)
        self._tokens = self._flops = 0  # since the last line of the log, like the seconds
        self._since_sec = self._plotted_sec = time.monotonic()
        self.num_tokens = 0
        """Tokens that this process has read, without padding."""

    def part(self, step: int, samples: Sequence[int], batch: Batch) -> Part:
        """A part of a step, packed of some samples of the mixture."""
        self.num_tokens += batch.num_tokens
        self._tokens += batch.num_tokens
        self._flops += self._flops_of.of_batch(batch)
        if not is_logged(self._config, step):
            return Part(batch, None)
        return Part(batch, np.array([self._mixture.source_of(j) for j in samples])[batch.documents.numpy()])

    def see(self, part: Part, losses: Tensor) -> None:
        """Count the losses (N,) of a part."""
        if part.sources is not None:
            self._tally.add(losses, part.batch.targets, part.sources)
            part.sources = None  # a sharded model may be given a part again, which counts for nothing

    def after(self, step: int) -> dict[str, float]:
        """What there is to log after a step."""
        if is_checkpointed(self._config, step) and time.monotonic() - self._plotted_sec > _PLOT_EVERY_SEC:
            self.plot()
        if not is_logged(self._config, step):
            return {}
        tally, self._tally = self._tally.everywhere(), Tally(self._units, self._mixture.names)
        figures = {name.replace(".", "_"): value for name, value in tally.figures().items() if name != "loss"}
        for source in self._mixture.names:
            losses = {name: value for name, value in tally.of(source).items() if name.startswith("loss")}
            figures |= {f"{name.replace('.', '_')}/{source}": value for name, value in losses.items()}
        return figures | self._speed()

    def _speed(self) -> dict[str, float]:
        """Tokens a second since the last line of the log, and the share of what the devices could have computed."""
        now_sec = time.monotonic()
        seconds, self._since_sec = now_sec - self._since_sec, now_sec
        done = torch.tensor([self._tokens, self._flops], dtype=torch.float64)
        distributed.all_reduce(done)
        self._tokens = self._flops = 0
        return {"tokens_per_sec": float(done[0]) / seconds, "mfu": float(done[1]) / seconds / self._peak}

    def plot(self) -> None:
        """Draw what was logged until now as `log/training.png`."""
        if distributed.is_first():
            plot(self._folder / "log")
            self._plotted_sec = time.monotonic()
