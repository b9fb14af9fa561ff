"""Optimizers: AdamW, or Muon for the weight matrices of the layers and AdamW for everything else.

    optimizer = Optimizers.of(model, config)
    optimizer.set_lr(1e-3)
    optimizer.step()

Muon's updates are scaled to the RMS of AdamW's, so that both use one learning-rate schedule. Sources: AdamW,
arXiv 1711.05101; Muon, https://kellerjordan.github.io/posts/muon, with the scale of arXiv 2502.16982.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from weft.training.config import TrainConfig

LrRatio = Callable[[str], float]


@dataclass(frozen=True)
class Optimizers:
    """Optimizers that step together, each with a multiple of the schedule's learning rate."""

    parts: tuple[tuple[torch.optim.Optimizer, float], ...]

    @classmethod
    def of(cls, model: nn.Module, config: TrainConfig, lr_ratio: LrRatio | None = None) -> Optimizers:
        """Create the optimizers of a model's trainable parameters.

        `lr_ratio` returns the learning rate of a parameter, given by name, as a multiple of the schedule's.
        """
        matrices = set(layer_matrices(model) if config.optimizer == "muon" else [])
        parameters = [
            (lr_ratio(name) if lr_ratio else 1.0, p) for name, p in model.named_parameters() if p.requires_grad
        ]
        parts: list[tuple[torch.optim.Optimizer, float]] = []
        for ratio in dict.fromkeys(ratio for ratio, _ in parameters):
            here = [p for r, p in parameters if r == ratio]
            if others := [p for p in here if p not in matrices]:
                parts.append((_adamw(others, config), ratio))
            if here_matrices := [p for p in here if p in matrices]:
                muon = torch.optim.Muon(
                    here_matrices, lr=config.lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
                )
                parts.append((muon, ratio * config.muon_lr_ratio))
        return cls(tuple(parts))

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the next step."""
        for optimizer, ratio in self.parts:
            for group in optimizer.param_groups:
                group["lr"] = ratio * lr

    def step(self) -> None:
        """Update all parameters."""
        for optimizer, _ in self.parts:
            optimizer.step()

    def state_dict(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the moments and step counts of all updated parameters, under "parameter name.moment name"."""
        names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
        return {
            f"{names[parameter]}.{moment}": value
            for optimizer, _ in self.parts
            for parameter, values in optimizer.state.items()
            for moment, value in values.items()
        }

    def load_state_dict(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned for the same model and settings."""
        part_of = {p: o for o, _ in self.parts for group in o.param_groups for p in group["params"]}
        for optimizer, _ in self.parts:
            optimizer.state.clear()
        for name, value in state.items():
            owner, _, moment = name.rpartition(".")
            parameter = model.get_parameter(owner)
            part_of[parameter].state[parameter][moment] = value


def layer_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights of the linear layers inside a model's module lists: no embeddings, heads or convolutions."""
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
