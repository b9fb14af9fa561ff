import torch
from torch import nn

from weft.training.average import Average


def test_the_average_follows_the_parameters_and_has_the_buffers() -> None:
    model = nn.BatchNorm1d(3)
    average = Average(model)
    with torch.no_grad():
        model.weight += 1.0
        model.running_mean += 2.0
    average.update(model, decay=0.75)
    assert torch.allclose(average.model.weight, torch.full((3,), 1.25))
    assert torch.equal(average.model.running_mean, model.running_mean)
    assert not any(p.requires_grad for p in average.parameters())
    assert all(p.requires_grad for p in model.parameters())


def test_a_constant_model_is_its_own_average() -> None:
    model = nn.Linear(3, 2)
    average = Average(model)
    for _ in range(10):
        average.update(model, decay=0.9)
    assert all(torch.allclose(a, b) for a, b in zip(average.parameters(), model.parameters(), strict=True))
