"""What updates the weights: AdamW, or Muon for the matrices of the layers with AdamW for all else.

    optimizer = Optimizers.of(model, config)      # as torch's own: param_groups, step, state_dict, load_state_dict
    optimizer.set_lr(1e-3)

Muon's updates have orthogonal directions of equal size, scaled to the size of AdamW's, so that both take the learning
rate of one schedule. Sources: AdamW, arXiv 1711.05101; Muon, https://kellerjordan.github.io/posts/muon, with the scale
of arXiv 2502.16982.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from weft.training.loop import TrainConfig


@dataclass(frozen=True)
class Optimizers:
    """Optimizers of a model's parts that step as one; each has its learning rate as a multiple of the schedule's."""

    parts: tuple[tuple[torch.optim.Optimizer, float], ...]

    @classmethod
    def of(cls, model: nn.Module, config: TrainConfig) -> Optimizers:
        """The optimizers of a model's trained parameters."""
        matrices = layer_matrices(model) if config.optimizer == "muon" else []
        taken = set(map(id, matrices))
        others = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]
        parts: list[tuple[torch.optim.Optimizer, float]] = [(_adamw(others, config), 1.0)]
        if matrices:
            muon = torch.optim.Muon(
                matrices, lr=config.lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
            )
            parts.append((muon, config.muon_lr_ratio))
        return cls(tuple(parts))

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the next step."""
        for optimizer, ratio in self.parts:
            for group in optimizer.param_groups:
                group["lr"] = ratio * lr

    def step(self) -> None:
        """Update every parameter by its gradient."""
        for optimizer, _ in self.parts:
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """The state of every part, under its name."""
        return {type(optimizer).__name__: optimizer.state_dict() for optimizer, _ in self.parts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        for optimizer, _ in self.parts:
            optimizer.load_state_dict(state[type(optimizer).__name__])


def layer_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The weights of the linear maps within a model's lists of layers: not its embeddings, heads or convolutions."""
    lists = (m for m in model.modules() if isinstance(m, nn.ModuleList))
    linears = {m: None for layers in lists for m in layers.modules() if isinstance(m, nn.Linear)}  # each once, in order
    return [m.get_parameter("weight") for m in linears if m.weight.requires_grad]


def _adamw(parameters: Iterable[Tensor], config: TrainConfig) -> torch.optim.AdamW:
    parameters = list(parameters)
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, config.beta2), fused=True)
