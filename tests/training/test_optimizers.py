import pytest
import torch
from torch import nn

from weft.training.config import TrainConfig
from weft.training.optimizers import Optimizers, layer_matrices

CONFIG = TrainConfig(steps=1, lr=0.1, weight_decay=0.0, optimizer="muon", muon_lr_ratio=2.0)


class Small(nn.Module):
    """An embedding tied to the head, a convolution, and a list of two layers, one of them frozen."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(10, 8)
        self.conv = nn.Conv1d(8, 8, 3)
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)), nn.Linear(8, 4)])
        self.layers[1].requires_grad_(False)
        self.head = nn.Linear(8, 10)
        self.head.weight = self.embedding.weight


def updates(model: nn.Module, config: TrainConfig, lr: float) -> dict[str, torch.Tensor]:
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = Optimizers.of(model, config)
    optimizer.set_lr(lr)
    for p in model.parameters():
        p.grad = torch.randn_like(p) if p.requires_grad else None
    optimizer.step()
    return {name: p.detach() - before[name] for name, p in model.named_parameters()}


def test_muon_updates_only_the_matrices_of_the_layers() -> None:
    model = Small()
    assert [id(p) for p in layer_matrices(model)] == [id(model.layers[0][0].weight)]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_exactly_the_trainable_parameters_are_updated(optimizer: str) -> None:
    config = TrainConfig(steps=1, weight_decay=0.0, optimizer=optimizer)  # type: ignore[arg-type]
    moved = {name for name, update in updates(Small(), config, 0.1).items() if update.any()}
    assert moved == {n for n, p in Small().named_parameters() if p.requires_grad}


def test_muon_updates_are_nearly_orthogonal_and_scaled_by_the_learning_rate() -> None:
    moved = updates(Small(), CONFIG, 0.1)
    singular = torch.linalg.svdvals(moved["layers.0.0.weight"]) / (0.1 * CONFIG.muon_lr_ratio * 0.2 * 8**0.5)
    assert 0.5 < float(singular.min()) <= float(singular.max()) < 1.5
    assert torch.allclose(moved["head.bias"].abs(), torch.full((10,), 0.1), rtol=1e-3)  # AdamW's first step
    assert not any(update.any() for update in updates(Small(), CONFIG, 0.0).values())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_restored_optimizer_makes_the_same_update(optimizer: str) -> None:
    config = TrainConfig(steps=1, lr=0.1, optimizer=optimizer)  # type: ignore[arg-type]
    models = Small(), Small()
    optimizers = [Optimizers.of(model, config) for model in models]

    def step(number: int) -> None:
        torch.manual_seed(number)
        for p in models[number].parameters():
            p.grad = torch.ones_like(p) * number if p.requires_grad else None
        optimizers[number].step()

    step(1)
    state = {name: value.clone() for name, value in optimizers[1].state_dict(models[1]).items()}
    models[0].load_state_dict(models[1].state_dict())
    optimizers[0].load_state_dict(models[0], state)
    for model in models:
        for p in model.parameters():
            p.grad = torch.ones_like(p) if p.requires_grad else None
    for o in optimizers:
        o.step()
    assert all(map(torch.equal, models[0].parameters(), models[1].parameters()))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_ratio_multiplies_the_updates_of_its_parameters(optimizer: str) -> None:
    config = TrainConfig(steps=1, lr=0.1, weight_decay=0.0, optimizer=optimizer)  # type: ignore[arg-type]

    def moved(ratio: float) -> dict[str, torch.Tensor]:
        model = Small()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizers = Optimizers.of(model, config, lambda name: 1.0 if name.startswith("conv") else ratio)
        optimizers.set_lr(0.1)
        torch.manual_seed(1)
        for p in model.parameters():
            p.grad = torch.randn_like(p) if p.requires_grad else None
        optimizers.step()
        return {name: p.detach() - before[name] for name, p in model.named_parameters()}

    whole, half = moved(1.0), moved(0.5)
    for name, update in whole.items():
        expected = update if name.startswith("conv") else 0.5 * update
        assert torch.allclose(half[name], expected, atol=1e-6), name
