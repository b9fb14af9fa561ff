"""Estimates of training: parameters, memory, FLOPs and time, before a run (--dry-run) and during it (MFU).

    with FakeTensorMode():                          # tensors without contents: the model needs no memory
        memory = Memory.of(model, forward, config)
    estimate = Estimate(model.num_parameters(), memory, flops=1e18, ...)
    print("\\n".join(estimate.lines({})))

    flops = ModelFlops.of(lm).of_batch(num_tokens, num_targets, num_pairs)
    mfu = flops / seconds / peak_flops(device, bf16=True)

Model FLOPs are counted as in appendix B of PaLM (arXiv 2204.02311): 6 per parameter and token for forward and backward
pass, and 12 per layer, attention dimension and pair of tokens. Recomputation and padding are not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from weft import launch
from weft.device import autocast, default_device, uses_bf16
from weft.training.config import TrainConfig
from weft.training.optimizers import layer_matrices

ACHIEVED_FRACTION = 0.4  # of the speed of large matrix products, by a whole training step
_NUM_GPUS = (1, 8, 64, 512)
# Dense bf16 products with fp32 sums by torch's device name, from NVIDIA's data sheets (whose figures with sparsity are
# twice as high), and for the RTX 4090 from the white paper of its architecture.
_BF16_FLOPS_PER_SEC = {
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA GeForce RTX 4090": 165e12,
}
_H100_FLOPS_PER_SEC = _BF16_FLOPS_PER_SEC["NVIDIA H100 80GB HBM3"]


@dataclass(frozen=True)
class Memory:
    """Bytes on each device, without communication buffers.

    `weights`, `gradients` and `optimizer` are those of the whole model, which FSDP divides by the number of devices.
    """

    weights: int
    gradients: int
    optimizer: int
    copies: float
    """bf16 copies of the weights, which the backward pass needs."""
    gathered: int
    """With FSDP, what a device gathers of weights and gradients: all outside of the layers, and two layers."""
    item: float
    """Activations of one item of a batch."""
    checkpointed_item: float
    """The same with activation checkpointing: the inputs of all layers, and all of the largest layer."""
    loss: Callable[[float], float] = lambda items: 0.0
    """Bytes of a loss that the measured forward pass leaves out, by items."""

    @classmethod
    def of(
        cls,
        model: nn.Module,
        forward: Callable[[int], object],
        config: TrainConfig,
        adapters: int = 0,
        head: int = 0,
        loss: Callable[[float], float] = lambda items: 0.0,
    ) -> Memory:
        """Measure the memory of a model, usually of fake tensors, with bf16 products unless `config` demands fp32.

        Args:
            forward: runs the forward pass over this number of items of the largest size.
            adapters: parameters trained instead of the model's own, which are then in the dtype of the products.
            head: parameters of an output layer that `forward` and `loss` leave out.
            loss: bytes of a loss that `forward` leaves out, by items.
        """
        bf16 = config.precision != "fp32"
        one, two = (_saved(model, forward, items, bf16) for items in (1, 2))
        inputs, largest, layers, outside = (b - a for a, b in zip(one, two, strict=True))
        total = _size(model.parameters())
        trained = adapters or _size(p for p in model.parameters() if p.requires_grad)
        sizes = [_size(layer.parameters()) for layer in _layers(model)]
        frozen_in_bf16 = bool(adapters) and bf16
        return cls(
            weights=(2 * total + 4 * trained if frozen_in_bf16 else 4 * total) + sum(b.nbytes for b in model.buffers()),
            gradients=4 * trained,
            optimizer=8 * trained if adapters else optimizer_bytes(model, config.optimizer),
            copies=one[2] + one[3] - layers - outside + 2 * head if bf16 and not frozen_in_bf16 else 0,
            gathered=8 * (total - sum(sizes)) + (4 if bf16 else 8) * 2 * max(sizes, default=0) + 2 * head * bf16,
            item=layers + outside,
            checkpointed_item=inputs + largest + outside,
            loss=loss,
        )

    def on_device(self, items: float, devices: int = 1, checkpointing: bool = False) -> float:
        """Return the bytes on each of `devices` that share a model by FSDP, for a micro-batch of `items`."""
        state = (self.weights + self.gradients + self.optimizer) / devices
        copies = self.copies if devices == 1 else self.gathered
        return state + copies + self.loss(items) + items * (self.checkpointed_item if checkpointing else self.item)


@dataclass(frozen=True)
class Estimate:
    """Size, memory and operations of a training run."""

    parameters: int
    memory: Memory
    flops: float
    """Floating-point operations of the whole run."""
    config: TrainConfig
    items: float
    """Items of the largest size per step, in all processes."""
    item: str
    """Description of an item, such as "utterance of 30 s"."""
    can_shard: bool = False
    """Whether the trainer supports FSDP and activation checkpointing."""
    largest_step: float = 0.0
    """Items of the largest step, where steps vary. One process divides it only with `grad_accum_steps`."""

    @property
    def step_flops(self) -> float:
        return self.flops / self.config.steps

    @property
    def checkpoint_bytes(self) -> int:
        """All weights and the optimizer state."""
        return 4 * self.parameters + self.memory.optimizer

    def items_on_device(self, devices: int) -> float:
        """Return the items of the largest micro-batch on each of `devices`, at least 1."""
        num = devices * self.config.grad_accum_steps
        return max(1.0, self.items / num, self.largest_step if num == 1 else 0.0)

    def days(self, gpus: int) -> float:
        """Return the days on `gpus` H100s."""
        return self.flops / (gpus * ACHIEVED_FRACTION * _H100_FLOPS_PER_SEC) / 86400

    def hours_here(self) -> tuple[float, str]:
        """Return the hours on the processes of this run and the basis of this estimate. Takes a second."""
        device = default_device()
        bf16 = uses_bf16(self.config.precision, device)
        per_sec = matmul_flops_per_sec(device, torch.bfloat16 if bf16 else torch.float32)
        hours = self.flops / (ACHIEVED_FRACTION * per_sec * launch.world_size()) / 3600
        speed = f"{per_sec / 1e12:.3g} TFLOP/s of {'bf16' if bf16 else 'fp32'} matrix products on this {device}"
        return hours, f"at {ACHIEVED_FRACTION:.0%} of the {speed}"

    def lines(self, details: Mapping[str, str]) -> list[str]:
        """Return the estimate as text: `details` and figures one per line, then a table by the number of GPUs."""
        memory, (hours, basis) = self.memory, self.hours_here()
        checkpointed = f", {_gb(memory.checkpointed_item)} with activation_checkpointing" if self.can_shard else ""
        values = {
            "parameters": f"{self.parameters:,}",
            **details,
            "step_flops": f"{self.step_flops:.3g}",
            "training_flops": f"{self.flops:.3g} in {self.config.steps:,} steps",
            "weights_gb": _gb(memory.weights),
            "gradients_gb": _gb(memory.gradients),
            "optimizer_gb": _gb(memory.optimizer),
            "copies_gb": f"{_gb(memory.copies)} (bf16 weights for matrix products)",
            "activations_gb": f"{_gb(memory.item)} per {self.item}{checkpointed}",
            **({"loss_gb": f"{_gb(memory.loss(1))} per {self.item}"} if memory.loss(1) else {}),
            "checkpoint_gb": f"{_gb(self.checkpoint_bytes)} (the finished model: {_gb(4 * self.parameters)})",
            "training_hours": f"{hours:.3g} ({basis})",
        }
        return [*(f"{name:<24}{value}" for name, value in values.items()), "", *self._table()]

    def _table(self) -> list[str]:
        ways = [(False, False), (False, True), (True, False), (True, True)] if self.can_shard else [(False, False)]
        names = ["GB", "GB checkpointing", "GB fsdp", "GB fsdp+checkpointing"][: len(ways)]
        rows = [["gpus", "items per gpu", *names, "days"]]
        for gpus in _NUM_GPUS:
            items = self.items_on_device(gpus)
            sizes = [_gb(self.memory.on_device(items, gpus if fsdp else 1, checkpoint)) for fsdp, checkpoint in ways]
            rows.append([f"{gpus}", f"{items:.3g}", *sizes, f"{self.days(gpus):.3g}"])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["   ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        speed = f"{ACHIEVED_FRACTION:.0%} of an H100's {_H100_FLOPS_PER_SEC / 1e12:.0f} TFLOP/s of dense bf16"
        precision = "fp32" if self.config.precision == "fp32" else "bf16 products"
        return [*lines, "", f"Memory is that of {precision}. An item is one {self.item}. Days assume {speed}."]


@dataclass(frozen=True)
class ModelFlops:
    """Operations of forward and backward pass of a dense causal LM. All experts of a mixture are counted."""

    body: int
    """Per token: all parameters except the head, and except embeddings, which are only looked up."""
    head: int
    """Per predicted token."""
    attention: int
    """Per pair of tokens of one document."""

    @classmethod
    def of(cls, model: Any) -> ModelFlops:
        """Count a transformers model. Frozen weights need no weight gradient, a third of their operations."""
        head = list(model.get_output_embeddings().parameters())
        looked_up = [model.get_input_embeddings(), *(m for m in model.modules() if isinstance(m, nn.Embedding))]
        not_body = {id(p) for p in head} | {id(p) for m in looked_up for p in m.parameters()}
        body = (p for p in model.parameters() if id(p) not in not_body)
        config = model.config.get_text_config()
        head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            body=_flops(body),
            head=_flops(head),
            attention=12 * config.num_hidden_layers * config.num_attention_heads * head_size,
        )

    def of_batch(self, num_tokens: int, num_targets: int, num_pairs: int) -> int:
        """Return the operations for a batch with these numbers of tokens, predicted tokens, and pairs of tokens."""
        return self.body * num_tokens + self.head * num_targets + self.attention * num_pairs


def _flops(parameters: Iterable[Tensor]) -> int:
    return sum((6 if p.requires_grad else 4) * p.numel() for p in parameters)


def peak_flops(device: torch.device, bf16: bool) -> float:
    """Return the peak operations per second of a device: the data-sheet value if it is known, else a measurement."""
    if bf16 and device.type == "cuda" and (known := _BF16_FLOPS_PER_SEC.get(torch.cuda.get_device_name(device))):
        return known
    return matmul_flops_per_sec(device.type, torch.bfloat16 if bf16 else torch.float32)


def matmul_flops_per_sec(device: str, dtype: torch.dtype) -> float:
    """Measure the operations per second of a large matrix product, the best of eight."""
    size = 8192 if device == "cuda" else 1024
    a = torch.ones(size, size, device=device, dtype=dtype)
    best_sec = float("inf")
    for _ in range(8):
        start_sec = time.perf_counter()
        float((a @ a)[0, 0])  # waits for the device
        best_sec = min(best_sec, time.perf_counter() - start_sec)
    return 2 * size**3 / best_sec


def optimizer_bytes(model: nn.Module, optimizer: str) -> int:
    """Return the bytes of the optimizer state: two moments for AdamW, and one for the matrices that Muon updates."""
    trained = _size(p for p in model.parameters() if p.requires_grad)
    return 8 * trained - (4 * _size(layer_matrices(model)) if optimizer == "muon" else 0)


def _size(parameters: Iterable[Tensor]) -> int:
    return sum(p.numel() for p in parameters)


@contextmanager
def saved_bytes(model: nn.Module) -> Iterator[Callable[[], int]]:
    """Yield a function that returns the bytes that forward passes in the block have saved for their backward passes.

    Each storage is counted once, and the model's weights are not counted.
    """
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if (storage := tensor.untyped_storage()._cdata) not in weights:
            saved[storage] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield lambda: sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


def _layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers that transformers can recompute in the backward pass."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def _saved(model: nn.Module, forward: Callable[[int], object], items: int, bf16: bool) -> tuple[int, int, int, int]:
    """Return the bytes that a forward pass saves: inputs of layers, in the largest layer, in all, and elsewhere."""
    inputs: list[int] = []
    in_layers: list[int] = []
    device = next(model.parameters()).device
    with autocast(device, "bf16" if bf16 else "fp32"), saved_bytes(model) as saved:

        def before(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            inputs.append(arguments[0].nbytes if arguments else 0)
            in_layers.append(-saved())

        def after(*_: Any) -> None:
            in_layers[-1] += saved()

        hooks = [m.register_forward_pre_hook(before) for m in _layers(model)]
        hooks += [m.register_forward_hook(after) for m in _layers(model)]
        forward(items)
        for hook in hooks:
            hook.remove()
    return sum(inputs), max(in_layers, default=0), sum(in_layers), saved() - sum(in_layers)


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.3g}" if num_bytes < 1e12 else f"{num_bytes / 1e9:,.0f}"
