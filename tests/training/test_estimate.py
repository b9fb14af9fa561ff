from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers.modeling_layers import GradientCheckpointingLayer

from tests.lm.families import FAMILIES, text_lm
from weft.lm.lora import LoraConfig, adapt
from weft.lm.model import extend_lm
from weft.lm.packing import Batch, pack, token_losses
from weft.training import estimate
from weft.training.config import TrainConfig
from weft.training.estimate import (
    Estimate,
    Memory,
    ModelFlops,
    matmul_flops_per_sec,
    optimizer_bytes,
    peak_flops,
    saved_bytes,
)
from weft.training.optimizers import Optimizers
from weft.vocab import SpeechVocab

FP32, BF16 = TrainConfig(steps=10, precision="fp32"), TrainConfig(steps=10, precision="bf16")


class Layer(GradientCheckpointingLayer):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).tanh())


class Network(nn.Module):
    """Three layers of 280 parameters between an input of 40 and a head of 18, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)
        self.layers = nn.ModuleList(Layer() for _ in range(3))
        self.register_buffer("scale", torch.ones(5))

    def forward(self, items: int) -> Tensor:
        x = self.first(torch.zeros(items, 4))
        for layer in self.layers:
            x = layer(x)
        return self.last(x)


def memory_of(config: TrainConfig, fake: bool = False, **options: Any) -> Memory:
    if fake:
        with FakeTensorMode():
            network = Network()
            return Memory.of(network, network, config, **options)
    network = Network()
    return Memory.of(network, network, config, **options)


def test_tensors_saved_for_the_backward_pass_are_counted_once_and_without_weights() -> None:
    layer, x = nn.Linear(8, 8, bias=False), torch.ones(4, 8)
    with saved_bytes(layer) as saved:
        assert saved() == 0
        layer(x)
        assert saved() == x.nbytes  # for the gradient of the weight
        layer(x)
        assert saved() == x.nbytes
        layer(x.clone()).exp()  # saves its output
        assert saved() == 3 * x.nbytes


def test_memory_is_that_of_weights_gradients_moments_and_saved_activations() -> None:
    memory = memory_of(FP32)
    parameters = 40 + 3 * 280 + 18
    assert memory.weights == 4 * parameters + 4 * 5
    assert memory.gradients == 4 * parameters
    assert memory.optimizer == 8 * parameters
    assert memory.copies == 0
    # A layer saves its input of 8 and the output of tanh of 16.
    assert memory.item == 4 * (3 * (8 + 16) + 4 + 8)
    assert memory.checkpointed_item == 4 * (3 * 8 + (8 + 16) + 4 + 8)
    assert memory.gathered == 8 * (40 + 18) + 8 * 2 * 280


def test_bf16_products_need_copies_of_weights() -> None:
    memory = memory_of(BF16)
    matrices = 3 * 2 * 8 * 16 + 8 * 2  # of the first linear layer, no input gradient is needed
    assert memory.copies == 2 * matrices
    assert memory.gathered == 8 * (40 + 18) + 4 * 2 * 280
    assert memory.weights == memory_of(FP32).weights
    with_head = memory_of(BF16, head=100)
    assert (with_head.copies, with_head.gathered) == (memory.copies + 200, memory.gathered + 200)


def test_adapters_are_trained_instead_of_the_weights() -> None:
    memory, parameters = memory_of(BF16, adapters=10), 40 + 3 * 280 + 18
    assert (memory.weights, memory.gradients, memory.optimizer) == (2 * parameters + 40 + 20, 40, 80)
    assert memory.copies == 0
    assert memory_of(FP32, adapters=10).weights == 4 * parameters + 20


@pytest.mark.parametrize("config", [FP32, BF16])
def test_fake_tensors_give_the_memory_of_real_ones(config: TrainConfig) -> None:
    assert memory_of(config, fake=True) == memory_of(config)


def test_sharding_divides_the_state_and_checkpointing_reduces_the_activations() -> None:
    memory = memory_of(BF16, loss=lambda items: 7 * items)
    state = memory.weights + memory.gradients + memory.optimizer
    assert memory.on_device(3) == state + memory.copies + 21 + 3 * memory.item
    assert memory.on_device(3, devices=4) == state / 4 + memory.gathered + 21 + 3 * memory.item
    assert memory.on_device(3, checkpointing=True) == state + memory.copies + 21 + 3 * memory.checkpointed_item


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_optimizer_state_is_that_of_the_optimizer(optimizer: Any) -> None:
    model = nn.Sequential(nn.Embedding(10, 4), nn.ModuleList([nn.Linear(4, 4)]), nn.Linear(4, 2))
    model[2].weight.requires_grad_(False)
    optimizers = Optimizers.of(model, TrainConfig(steps=1, optimizer=optimizer))
    for p in model.parameters():
        p.grad = torch.ones_like(p) if p.requires_grad else None
    optimizers.step()
    states = [state for part, _ in optimizers.parts for state in part.state.values()]
    tensors = [value for state in states for value in state.values() if value.ndim]
    assert optimizer_bytes(model, optimizer) == sum(tensor.nbytes for tensor in tensors)


def estimate_of(can_shard: bool = False, config: TrainConfig = FP32, **options: Any) -> Estimate:
    memory = memory_of(config, **options)
    return Estimate(898, memory, flops=1e18, config=config, items=16, item="thing", can_shard=can_shard)


def test_an_estimate_divides_the_work_of_a_run() -> None:
    found = estimate_of()
    assert found.step_flops == 1e17
    assert [found.items_on_device(gpus) for gpus in (1, 8, 64)] == [16, 2, 1]
    assert found.days(8) == found.days(1) / 8 == pytest.approx(1e18 / (8 * 0.4 * 989e12) / 86400)
    assert found.checkpoint_bytes == 4 * 898 + 8 * 898


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_hours_follow_from_the_measured_speed_of_matrix_products(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds = {torch.float32: 1e12, torch.bfloat16: 4e12}
    monkeypatch.setattr(estimate, "matmul_flops_per_sec", lambda device, dtype: speeds[dtype])
    monkeypatch.setattr(estimate, "default_device", lambda: "cpu")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    hours, basis = estimate_of(config=TrainConfig(steps=10, precision=precision)).hours_here()  # type: ignore[arg-type]
    speed = {"fp32": 1e12, "bf16": 4e12}[precision]
    assert hours == pytest.approx(1e18 / (0.4 * 2 * speed) / 3600)
    assert basis == f"at 40% of the {speed / 1e12:.0f} TFLOP/s of {precision} matrix products on this cpu"


def test_the_text_of_an_estimate_has_a_table_by_the_number_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "matmul_flops_per_sec", lambda device, dtype: 1e12)
    lines = estimate_of().lines({"speech_hours": "12"})
    metrics, table = lines[: lines.index("")], lines[lines.index("") + 1 :]
    values = dict(line.split(maxsplit=1) for line in metrics)
    assert list(values)[:3] == ["parameters", "speech_hours", "step_flops"]
    assert values["training_flops"] == "1e+18 in 10 steps"
    assert "loss_gb" not in values
    assert table[0].split() == ["gpus", "items", "per", "gpu", "GB", "days"]
    assert [row.split()[:2] for row in table[1:5]] == [["1", "16"], ["8", "2"], ["64", "1"], ["512", "1"]]
    assert "Memory is that of fp32. An item is one thing." in table[-1]


def test_the_table_of_a_trainer_that_can_shard_has_four_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "matmul_flops_per_sec", lambda device, dtype: 1e12)
    found = estimate_of(can_shard=True, config=BF16, loss=lambda items: 5e9 * items)
    lines = found.lines({})
    assert any(line.split() == ["loss_gb", "5", "per", "thing"] for line in lines)
    assert any(line.startswith("activations_gb") and "with activation_checkpointing" in line for line in lines)
    (header,) = (line for line in lines if line.lstrip().startswith("gpus"))
    assert header.split()[4:] == ["GB", "GB", "checkpointing", "GB", "fsdp", "GB", "fsdp+checkpointing", "days"]
    (row,) = (line.split() for line in lines if line.split()[:1] == ["8"])
    sizes = [found.memory.on_device(2, gpus, checkpointing) for gpus in (1, 8) for checkpointing in (False, True)]
    assert row[2:6] == [f"{size / 1e9:.3g}" for size in sizes]
    assert "Memory is that of bf16 products" in lines[-1]


def document(length: int, num_targets: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(1, length + 1) % 50, np.arange(length) >= length - (num_targets or length)


def flops_of(flops: ModelFlops, batch: Batch) -> int:
    return flops.of_batch(batch.num_tokens, len(batch), batch.num_pairs)


@pytest.mark.parametrize("num_targets", [64, 10])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama3", "qwen2", "gpt2", "gemma"])
def test_model_flops_are_the_products_that_are_computed(family: str, tied: bool, num_targets: int) -> None:
    """Those that torch counts for full rows: forward and backward pass, with the head only at predicted tokens."""
    model, _ = text_lm(family, tied)
    batch = pack([document(64, num_targets)] * 2)
    token_losses(model, batch)  # the first call has other products
    with FlopCounterMode(display=False) as counter:
        token_losses(model, batch).sum().backward()
    assert flops_of(ModelFlops.of(model), batch) == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_attention_is_counted_within_documents() -> None:
    model, _ = text_lm("llama3", True)
    flops = ModelFlops.of(model)
    short, long = pack([document(8)] * 8), pack([document(64)])
    assert short.num_tokens == long.num_tokens == 64
    head = flops.head * (len(long) - len(short))
    assert flops_of(flops, long) - flops_of(flops, short) - head == flops.attention * (64**2 - 8 * 8**2)


def test_frozen_weights_have_no_gradient() -> None:
    pytest.importorskip("peft")
    model, tokenizer = text_lm("llama3", False)
    vocab = SpeechVocab.of(extend_lm(model, tokenizer, 16, seed=0))
    full = ModelFlops.of(model)
    adapted = ModelFlops.of(adapt(model, vocab, LoraConfig(rank=1), seed=0))
    rows = 16 + 2 + 3  # of the head, which are trained
    assert adapted.head == pytest.approx(full.head * 4 / 6 + 6 * rows * model.config.hidden_size)
    assert full.body * 4 / 6 < adapted.body < full.body * 4 / 6 * 1.5
    assert adapted.attention == full.attention


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_counted(family: str) -> None:
    assert ModelFlops.of(text_lm(family, True)[0]).body > 0


def test_the_speed_of_this_machine_is_plausible() -> None:
    assert 1e8 < matmul_flops_per_sec("cpu", torch.float32) < 1e15
    assert 1e8 < peak_flops(torch.device("cpu"), bf16=False) < 1e14
