"""Weights load as they were saved, or are refused with the name of what is wrong."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from weft.errors import UserError
from weft.weights import load_weights


def model(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


@pytest.mark.parametrize("leave_out", [(), ("0.bias",)])
def test_saved_weights_load(tmp_path, leave_out):
    saved, loaded = model(0), model(1)
    save_file({k: v for k, v in saved.state_dict().items() if k not in leave_out}, tmp_path / "m.safetensors")
    before = {k: v.clone() for k, v in loaded.state_dict().items()}
    load_weights(loaded, tmp_path / "m.safetensors", leave_out)
    for name, weight in loaded.state_dict().items():
        assert torch.equal(weight, (before if name in leave_out else saved.state_dict())[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"0.weight": None}, r"0.weight is missing, and \(4, 3\) is needed \(1 such in all\)"),
        ({"0.weight": torch.zeros(4, 2), "0.bias": None}, r"0.bias is missing, and .* \(2 such in all\)"),
        ({"0.weight": torch.zeros(3, 4)}, r"0.weight is \(3, 4\), and \(4, 3\) is needed"),
        ({"head": torch.zeros(2)}, r"head is \(2,\), and none is needed"),
        ({"0.bias": torch.tensor([0.0, 1.0, float("nan"), 0.0])}, r"not finite \(0.bias\)"),
        ({"0.bias": torch.tensor([0.0, 1.0, float("inf"), 0.0])}, r"not finite \(0.bias\)"),
    ],
)
def test_weights_that_are_not_the_models_are_refused(tmp_path, change, message):
    weights = {k: v for k, v in {**model(0).state_dict(), **change}.items() if v is not None}
    save_file(weights, tmp_path / "m.safetensors")
    with pytest.raises(UserError, match=rf"m.safetensors .*{message}.*copy it again"):
        load_weights(model(0), tmp_path / "m.safetensors")
