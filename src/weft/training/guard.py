"""The decision whether a training step updates the weights.

    guard = StepGuard(config)
    if guard.should_step(step, norm, "language model"): optimizer.step()

A step is skipped when its gradient is not finite or, if configured, when its norm is a spike. A skipped step changes
neither weights nor optimizer. The decision depends only on gradient norms, which are equal on all ranks.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from statistics import median

import torch
from torch import Tensor

from weft import progress
from weft.errors import UserError
from weft.training.config import TrainConfig

_WINDOW_STEPS = 128  # of the median, as in OLMo-core's SkipStepOptimizer
_MIN_STEPS = _WINDOW_STEPS // 2  # before any step counts as a spike


class StepGuard:
    """Skips harmful steps. `skipped_steps` counts them since the run began."""

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._norms: deque[float] = deque(maxlen=_WINDOW_STEPS)  # of steps that were not skipped
        self._skipped_in_a_row = 0
        self.skipped_steps = 0

    @property
    def last_step_ok(self) -> bool:
        """Whether the last step was not skipped. If it was, the weights themselves may be the reason."""
        return self._skipped_in_a_row == 0

    @property
    def metrics(self) -> dict[str, float]:
        """The number of skipped steps, if there are any."""
        return {"skipped_steps": self.skipped_steps} if self.skipped_steps else {}

    def should_step(self, step: int, norm: float, title: str) -> bool:
        """Return whether `step` updates the weights with gradients of this norm; report a skipped step on stderr.

        Raises UserError when more than `max_skipped_steps` in a row, or all steps of the run, are skipped.
        """
        reason = self._reason_to_skip(norm)
        if reason is None:
            self._skipped_in_a_row = 0
            if norm:  # 0 if a step has nothing to train on
                self._norms.append(norm)
            return True
        self._skipped_in_a_row += 1
        self.skipped_steps += 1
        if self._skipped_in_a_row > min(self._config.max_skipped_steps, self._config.steps - 1):
            first = step + 1 - self._skipped_in_a_row
            where = f"at step {step}" if first == step else f"at all steps from {first} to {step}"
            raise UserError(
                f"{title}: {reason} {where}: start again with a lower train.lr and another --out; after a hardware "
                "fault, run the same command again to resume from the last checkpoint"
            )
        progress.note(f"weft: step {step} is skipped: {reason}")
        return False

    def _reason_to_skip(self, norm: float) -> str | None:
        if not math.isfinite(norm):
            return "the loss or its gradient is not finite"
        factor = self._config.spike_factor
        if factor is not None and len(self._norms) >= _MIN_STEPS and norm > factor * (usual := median(self._norms)):
            return f"the gradient norm {norm:.3g} is more than {factor:g} times its median {usual:.3g}"
        return None

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state for a checkpoint, which always follows a step that was not skipped."""
        norms = torch.tensor([*self._norms], dtype=torch.float64)
        return {"norms": norms, "skipped_steps": torch.tensor(self.skipped_steps)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        self._norms.extend(state["norms"].tolist())
        self.skipped_steps = int(state["skipped_steps"])
