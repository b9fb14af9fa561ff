"""Choice of device, precision and attention kernel."""

import re
from pathlib import Path

import pytest
import torch

import weft
from weft import device
from weft.errors import UserError


@pytest.fixture(params=[False, True], ids=["emulated", "native"])
def native_bf16(request, monkeypatch):
    """A CPU with or without instructions for bf16."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: request.param)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return request.param


@pytest.mark.parametrize("available", [False, True])
def test_the_gpu_is_used_if_there_is_one(monkeypatch, available):
    monkeypatch.delenv("WEFT_DEVICE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert device.default_device() == ("cuda" if available else "cpu")
    assert device.attn_implementation() == ("sdpa" if available else "eager")


@pytest.mark.parametrize(("chosen", "attention"), [("cpu", "eager"), ("cuda", "sdpa")])
def test_the_environment_chooses_the_device(monkeypatch, chosen, attention):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("WEFT_DEVICE", chosen)
    assert device.default_device() == chosen
    assert device.attn_implementation() == attention


@pytest.mark.parametrize("chosen", ["mps", "cuda:1", "CPU", "gpu"])
def test_other_devices_are_rejected(monkeypatch, chosen):
    monkeypatch.setenv("WEFT_DEVICE", chosen)
    with pytest.raises(UserError, match=f"WEFT_DEVICE is '{chosen}': give cpu or cuda"):
        device.default_device()


def test_a_gpu_that_is_asked_for_must_exist(monkeypatch):
    monkeypatch.setenv("WEFT_DEVICE", "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="PyTorch finds no GPU"):
        device.default_device()


def test_no_other_module_chooses_a_device():
    package = Path(weft.__file__).parent
    choosing = [p.name for p in package.rglob("*.py") if re.search(r"cuda\.is_available\(", p.read_text("utf-8"))]
    assert choosing == ["device.py"]


@pytest.mark.parametrize("instructions", ["_is_avx512_bf16_supported", "_is_amx_tile_supported"])
def test_either_kind_of_cpu_instructions_is_native_bf16(monkeypatch, instructions):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda found=name == instructions: found)
    assert device.has_native_bf16("cpu")
    assert device.has_native_bf16(torch.device("cpu"))
    assert not device.has_native_bf16("mps")


@pytest.mark.parametrize("supported", [False, True])
def test_emulation_on_a_gpu_is_not_native_bf16(monkeypatch, supported):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation or supported)
    assert device.has_native_bf16("cuda:1") == supported


def test_auto_means_bf16_where_it_is_native(native_bf16):
    assert device.uses_bf16("auto", "cpu") == native_bf16
    assert device.uses_bf16("bf16", "cpu")
    assert not device.uses_bf16("fp32", "cpu")
    assert device.inference_dtype("cpu") == (torch.bfloat16 if native_bf16 else torch.float32)


@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16"])
def test_matrix_products_run_in_the_precision(native_bf16, precision):
    x = torch.eye(2)
    with device.autocast("cpu", precision):
        product = x @ x
    assert product.dtype == (torch.bfloat16 if device.uses_bf16(precision, "cpu") else torch.float32)
    assert (x @ x).dtype == torch.float32
