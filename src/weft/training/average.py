"""Moving averages of the weights of a model during training, which are often better than the last weights.

    average = Average(model)                    # a part of what is trained, so that checkpoints contain it
    average.update(model, decay=0.999)          # after a step
    average.model                               # the result

    averaged = Averaged(model)                  # both, to be trained as one module
    averaged.update(decay=0.999)

Source: Polyak and Juditsky 1992 (Acceleration of stochastic approximation by averaging).
"""

from __future__ import annotations

from copy import deepcopy
from typing import Generic, TypeVar

import torch
from torch import nn

_Model = TypeVar("_Model", bound=nn.Module)


class Average(nn.Module, Generic[_Model]):
    """The exponential moving average of a model's parameters; its buffers are those of the model."""

    model: _Model

    def __init__(self, model: _Model) -> None:
        super().__init__()
        self.model = deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def update(self, model: _Model, decay: float) -> None:
        """Move the average towards the parameters of the model."""
        for average, parameter in zip(self.model.parameters(), model.parameters(), strict=True):
            average.lerp_(parameter, 1 - decay)
        for kept, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            kept.copy_(buffer)


class Averaged(nn.Module):
    """A model and its average, so that checkpoints of a training have both."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.average = model, Average(model)

    def update(self, decay: float) -> None:
        """Move the average towards the parameters of the model."""
        self.average.update(self.model, decay)
