"""Small models, their data and losses, for training in one or several processes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from weft.training import distributed, parallel
from weft.training.config import TrainConfig
from weft.training.loop import BatchAt, fit

CONFIG = TrainConfig(steps=9, lr=0.05, warmup_steps=2, checkpoint_every_steps=3, log_every_steps=1, precision="fp32")
Parallel = Literal["ddp", "fsdp"]


def data(step: int, part: slice = slice(None)) -> Tensor:
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(step))[part]


def first_items(num: int) -> BatchAt:
    """The data of steps with `num` items; parts may be empty."""

    def batch_at(step: int, part: slice) -> Tensor | None:
        found = data(step)[:num][part]
        return found if len(found) else None

    return batch_at


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))


def loss(m: nn.Module, x: Tensor) -> dict[str, Tensor]:
    error = (m(x)[:, 0] - x.sum(1)).square().mean()
    return {"loss": error, "error": error}


class Layered(nn.Module):
    """A model with a list of layers, whose matrices Muon updates."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(model())

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Harmful:
    """Data and loss of a run with some losses that are not finite, and some gradients a million times too large.

    In step 2, only the loss is not finite: a constant has no gradient.
    """

    def __init__(self, *bad: int, spikes: tuple[int, ...] = (), killed_before: int = -1) -> None:
        self.bad, self.spikes, self.killed_before = bad, spikes, killed_before

    def data(self, step: int, part: slice = slice(None)) -> Tensor:
        if step == self.killed_before:
            raise KeyboardInterrupt
        self.step = step
        return data(step, part)

    def loss(self, m: nn.Module, x: Tensor) -> dict[str, Tensor]:
        found = loss(m, x)["loss"] * (1e6 if self.step in self.spikes else 1)
        if self.step in self.bad:
            found = found + math.nan if self.step == 2 else found * math.inf
        return {"loss": found}


class Half(nn.Module):
    """A model with a part that only some items use, and a part that none uses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body, self.sometimes, self.never = nn.Linear(4, 3), nn.Linear(3, 1), nn.Linear(3, 1)


def half_loss(m: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Means over items, some of which use another part of the model."""
    assert isinstance(m, Half)
    h, rare = m.body(x), x[:, 0] > 0.8
    losses = {"common": h.square().mean()}
    total = h.square().mean(1).sum()
    if rare.any():
        losses["rare"] = m.sometimes(h[rare]).square().mean()
        total = total + m.sometimes(h[rare]).square().sum()
    return {"loss": total / len(x), **losses}


class Tower(nn.Module):
    """A model with layers of odd sizes, tied ends and a frozen part."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(distributed.rank())
        self.first, self.last = nn.Linear(4, 5, bias=False), nn.Linear(5, 4, bias=False)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 5)) for _ in range(3))
        self.tied = self.last.weight
        self.layers[1][2].bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x) + x @ self.tied
        for layer in self.layers:
            h = h + layer(h)
        return self.last(h)


def tower_loss(m: nn.Module, x: Tensor) -> dict[str, Tensor]:
    return {"loss": (m(x) - x.flip(1)).square().mean()}


@dataclass
class Trained:
    """Weights after training, and gradients of every step."""

    weights: list[Tensor]
    gradients: list[list[Tensor | None]]
    num_here: int
    """Number of parameter elements that this process holds."""


def train_tower(
    folder: Path,
    kind: Parallel,
    num_items: int = 8,
    changes: Mapping[str, Any] = MappingProxyType({}),
    batch_at: BatchAt | None = None,
) -> Trained:
    m, gradients = Tower(), []
    if kind == "fsdp":
        distributed.init()
        assert parallel.shard_model(m, "cpu", bf16=False) is m
        assert parallel.is_sharded(m) == (distributed.world_size() > 1)

    def after_step(step: int, updated: bool) -> dict[str, float]:
        gradients.append([None if p.grad is None else full(p.grad) for p in m.parameters()])
        return {}

    config = replace(CONFIG, lr=1e-3, **changes)
    fit(m, batch_at or first_items(num_items), tower_loss, config, folder, "test", after_step)
    num_here = sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in m.parameters())
    return Trained(weights_of(m), gradients, num_here)


def weights_of(m: nn.Module) -> list[Tensor]:
    return [full(p) for p in m.parameters()]


def full(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def all_equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))
