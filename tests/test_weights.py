"""Loading of weights, and the messages about weights that do not fit the model."""

import os

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from weft.errors import UserError
from weft.weights import load_weights, save_pretrained, save_weights


def model(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


@pytest.mark.parametrize("leave_out", [(), ("0.bias",)])
def test_saved_weights_are_loaded_except_those_left_out(tmp_path, leave_out):
    saved, loaded = model(0), model(1)
    save_file({k: v for k, v in saved.state_dict().items() if k not in leave_out}, tmp_path / "m.safetensors")
    before = {k: v.clone() for k, v in loaded.state_dict().items()}
    load_weights(loaded, tmp_path / "m.safetensors", leave_out)
    for name, weight in loaded.state_dict().items():
        assert torch.equal(weight, (before if name in leave_out else saved.state_dict())[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"0.weight": None}, r"0.weight is missing, expected \(4, 3\) \(1 wrong in total\)"),
        ({"0.weight": torch.zeros(4, 2), "0.bias": None}, r"0.bias is missing, expected .* \(2 wrong in total\)"),
        ({"0.weight": torch.zeros(3, 4)}, r"0.weight is \(3, 4\), expected \(4, 3\)"),
        ({"head": torch.zeros(2)}, r"head is \(2,\), expected none"),
        ({"0.bias": torch.tensor([0.0, 1.0, float("nan"), 0.0])}, r"not finite \(0.bias\)"),
        ({"0.bias": torch.tensor([0.0, 1.0, float("inf"), 0.0])}, r"not finite \(0.bias\)"),
    ],
)
def test_weights_that_do_not_fit_the_model_are_rejected(tmp_path, change, message):
    weights = {k: v for k, v in {**model(0).state_dict(), **change}.items() if v is not None}
    save_file(weights, tmp_path / "m.safetensors")
    with pytest.raises(UserError, match=rf"m.safetensors .*{message}.*copy it again"):
        load_weights(model(0), tmp_path / "m.safetensors")


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_files_have_the_mode_of_other_new_files(tmp_path, umask, mode):
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    before = os.umask(umask)
    try:
        save_weights({"a": torch.ones(2, 3).T}, tmp_path / "a.safetensors")
        save_pretrained(LlamaForCausalLM(LlamaConfig(vocab_size=8, **shape)), tmp_path)
    finally:
        os.umask(before)
    assert {path.name for path in tmp_path.glob("*.safetensors")} == {"a.safetensors", "model.safetensors"}
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {mode}
