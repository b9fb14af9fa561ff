import pytest
import torch
from torch import nn

from weft.training.cost import kept_for_backward, moment_bytes, product_speed


def test_what_is_kept_for_a_backward_pass_is_counted_once_and_without_weights():
    layer, x = nn.Linear(8, 8, bias=False), torch.ones(4, 8)
    with kept_for_backward(layer) as kept:
        assert kept.bytes == 0
        layer(x)
        assert kept.bytes == x.nbytes  # for the weight's gradient; x itself needs none
        layer(x)
        assert kept.bytes == x.nbytes
        layer(x.clone()).exp()  # keeps its output
        assert kept.bytes == 3 * x.nbytes


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_moments_are_those_that_the_optimizer_makes(optimizer):
    from weft.training.loop import TrainConfig
    from weft.training.optimizers import Optimizers

    model = nn.Sequential(nn.Embedding(10, 4), nn.ModuleList([nn.Linear(4, 4)]), nn.Linear(4, 2))
    model[2].weight.requires_grad_(False)
    made = Optimizers.of(model, TrainConfig(steps=1, optimizer=optimizer))
    for p in model.parameters():
        p.grad = torch.ones_like(p) if p.requires_grad else None
    made.step()
    states = [state for part, _ in made.parts for state in part.state.values()]
    tensors = [value for state in states for value in state.values() if value.ndim]
    assert moment_bytes(model, optimizer) == sum(tensor.nbytes for tensor in tensors)


def test_this_machine_multiplies():
    assert 1e8 < product_speed("cpu", torch.float32) < 1e15
