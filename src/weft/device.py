"""Device, precision and attention implementation of training, evaluation and inference.

    device = default_device()                          # "cuda" or "cpu"
    with autocast(device, "auto"): ...                 # bf16 where the hardware multiplies it natively
    model = load_causal_lm(folder, inference_dtype(device))

The environment variable WEFT_DEVICE chooses the device of every command: cpu or cuda. It is not a setting of recipes,
because it belongs to the machine, and it holds for the worker processes of a command too.
"""

from __future__ import annotations

import os
from typing import Literal

import torch

from weft.errors import UserError

Precision = Literal["auto", "fp32", "bf16"]


def default_device() -> str:
    """Return the device of WEFT_DEVICE; if it is not set, "cuda" if there is a GPU, else "cpu".

    Under torchrun, "cuda" is the GPU of this process. Raises UserError for another device, or without a GPU.
    """
    device = os.environ.get("WEFT_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    if device not in ("cpu", "cuda"):
        raise UserError(
            f"WEFT_DEVICE is {device!r}: give cpu or cuda, and choose a GPU by CUDA_VISIBLE_DEVICES. Other devices, "
            "such as mps, are not supported"
        )
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("WEFT_DEVICE is 'cuda', but PyTorch finds no GPU: check nvidia-smi and the driver, or give cpu")
    return device


def has_native_bf16(device: str | torch.device) -> bool:
    """Whether the hardware multiplies bf16 matrices natively. Emulated bf16 is slower than fp32."""
    device_type = torch.device(device).type
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device_type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def uses_bf16(precision: Precision, device: str | torch.device) -> bool:
    """Whether `precision` means bf16 on `device`: "auto" does where bf16 is native."""
    return precision == "bf16" or (precision == "auto" and has_native_bf16(device))


def inference_dtype(device: str | torch.device) -> torch.dtype:
    """Return the dtype of weights for generation: bf16 where it is native, else fp32."""
    return torch.bfloat16 if has_native_bf16(device) else torch.float32


def autocast(device: str | torch.device, precision: Precision) -> torch.autocast:
    """Return a context in which matrix products run in `precision`."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=uses_bf16(precision, device))


def attn_implementation() -> str:
    """Return "sdpa" on a GPU, else "eager", which takes a third less time for short sequences in bf16 on a CPU."""
    return "sdpa" if default_device() == "cuda" else "eager"
