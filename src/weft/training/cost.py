"""What a training step costs, found without making one: how fast this machine is, and what a backward pass keeps.

with FakeTensorMode(), kept_for_backward(model) as kept: loss_of(model, batch)
kept.bytes, product_speed("cpu", torch.float32)
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from weft.training.optimizers import layer_matrices

ACHIEVED_SHARE = 0.4  # of the speed of a product of large matrices, by a whole training step


@dataclass
class Kept:
    """Tensors that autograd has kept so far, by their storages; a model's own weights are left out."""

    weights: set[int]
    tensors: dict[int, Tensor] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Bytes of them all."""
        return sum(tensor.untyped_storage().nbytes() for tensor in self.tensors.values())


@contextmanager
def kept_for_backward(model: nn.Module) -> Iterator[Kept]:
    """What the forward passes within keep for their backward passes."""
    kept = Kept({p.untyped_storage()._cdata for p in model.parameters()})

    def keep(tensor: Tensor) -> Tensor:
        if (storage := tensor.untyped_storage()._cdata) not in kept.weights:
            kept.tensors[storage] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of `model` that have gradients."""
    return [p for p in model.parameters() if p.requires_grad]


def moment_bytes(model: nn.Module, optimizer: str) -> int:
    """Bytes of the optimizer's moments of the trained parameters: AdamW has two, Muon one of the layers' matrices."""
    trained = sum(p.numel() for p in trained_parameters(model))
    in_matrices = sum(p.numel() for p in layer_matrices(model)) if optimizer == "muon" else 0
    return 8 * trained - 4 * in_matrices


def product_speed(device: str, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a product of large matrices here: the best of a few."""
    size = 8192 if device == "cuda" else 1024
    a = torch.ones(size, size, device=device, dtype=dtype)
    best_sec = float("inf")
    for _ in range(8):
        begun_sec = time.perf_counter()
        float((a @ a)[0, 0])  # waits for the device
        best_sec = min(best_sec, time.perf_counter() - begun_sec)
    return 2 * size**3 / best_sec
