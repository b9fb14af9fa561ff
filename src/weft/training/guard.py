"""Which steps of a training run are taken: those whose gradient is finite and, where asked for, no spike.

    guard = Guard(config)
    if guard.takes(step, norm, "language model"): optimizer.step()

A step that is not taken changes neither weights nor optimizer, and the next one has other data. What is decided depends
on the norms alone, which all processes have alike, and `state` is all that is remembered of them.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from weft.errors import UserError
from weft.training import distributed

if TYPE_CHECKING:
    from weft.training.loop import TrainConfig

_WINDOW_STEPS = 128  # whose median is the usual norm, as in OLMo-core's SkipStepOptimizer
_LEAST_STEPS = _WINDOW_STEPS // 2  # before which none is a spike


class Guard:
    """Refuses the steps of a run that would harm it; `skipped_steps` is how many it has refused since the run began."""

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._norms: deque[float] = deque(maxlen=_WINDOW_STEPS)  # of the steps taken last
        self._in_a_row = 0
        self.skipped_steps = 0

    @property
    def is_at_ease(self) -> bool:
        """Whether the last step was taken: what is wrong with one that was not may lie in the weights themselves."""
        return self._in_a_row == 0

    def takes(self, step: int, norm: float, title: str) -> bool:
        """Whether `step` is to update the weights by gradients of this `norm`; one that is not is told on stderr.

        Raises UserError where `max_skipped_steps` in a row were refused before it, or would be all of the run.
        """
        why = self._why_not(norm)
        if why is None:
            self._in_a_row = 0
            if norm:  # a step may find nothing to train on
                self._norms.append(norm)
            return True
        self._in_a_row += 1
        self.skipped_steps += 1
        if self._in_a_row > min(self._config.max_skipped_steps, self._config.steps - 1):
            since = f"step {step}" if self._in_a_row == 1 else f"each step from step {step + 1 - self._in_a_row} on"
            raise UserError(
                f"{title}: {why} at {since}: begin again with a lower train.lr and another --out; after a fault of "
                "the machine the same command goes on from its last checkpoint"
            )
        if distributed.is_first():
            print(f"weft: step {step} is skipped: {why}", file=sys.stderr, flush=True)
        return False

    def _why_not(self, norm: float) -> str | None:
        if not math.isfinite(norm):
            return "the loss or its gradient is not finite"
        factor = self._config.spike_factor
        if factor is not None and len(self._norms) >= _LEAST_STEPS and norm > factor * (usual := median(self._norms)):
            return f"its gradient norm is {norm:.3g}, over {factor:g} times the usual {usual:.3g}"
        return None

    def state(self) -> dict[str, Tensor]:
        """What is to be remembered at a checkpoint, which follows a step that was taken."""
        norms = torch.tensor([*self._norms], dtype=torch.float64)
        return {"norms": norms, "skipped_steps": torch.tensor(self.skipped_steps)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` gave."""
        self._norms.extend(state["norms"].tolist())
        self.skipped_steps = int(state["skipped_steps"])
