"""Saving of weights, and loading them with checks of names, shapes and values.

save_weights(model.state_dict(), folder / "model.safetensors")
with loading(folder, "a decoder"):      # of weft.artifacts, for damaged files
    load_weights(model, folder / "model.safetensors")
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from weft.errors import UserError


def save_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as a safetensors file."""
    with _usual_mode(path.parent):
        save_file({name: weight.contiguous() for name, weight in weights.items()}, path)


def weights_of(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return a state dict whose parameters have a dtype; buffers keep theirs."""
    parameters = dict(model.named_parameters())
    return {name: w.to(dtype) if name in parameters else w for name, w in model.state_dict().items()}


def save_pretrained(model: Any, folder: Path) -> None:
    """Write a model of transformers into a directory."""
    with _usual_mode(folder):
        model.save_pretrained(folder)


@contextmanager
def _usual_mode(folder: Path) -> Iterator[None]:
    """Give the weights that are written to `folder` the mode of other new files; safetensors uses 0600."""
    probe = folder / ".mode.tmp"
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    yield
    for path in folder.glob("*.safetensors"):
        path.chmod(mode)


def load_weights(model: nn.Module, path: Path, leave_out: Collection[str] = ()) -> None:
    """Load a state dict without the names in `leave_out` into `model`, which may be on torch's meta device.

    Raises UserError for weights that are missing, unknown, of another shape, infinite or NaN.
    """
    weights, own = load_file(path), model.state_dict()
    require_fit(model, weights, path, leave_out)
    require_finite(weights, path)
    model.load_state_dict({n: w.to(own[n].dtype) for n, w in weights.items()}, strict=False, assign=True)


def require_fit(model: nn.Module, weights: Mapping[str, Tensor], path: Path, leave_out: Collection[str] = ()) -> None:
    """Raise UserError unless the weights in `path` have the names and shapes of a model's, without `leave_out`."""
    found = {name: tuple(weight.shape) for name, weight in weights.items()}
    expected = {name: tuple(weight.shape) for name, weight in model.state_dict().items() if name not in leave_out}
    if wrong := sorted(n for n in found.keys() | expected.keys() if found.get(n) != expected.get(n)):
        first = wrong[0]
        raise UserError(
            f"{path} does not fit its settings: {first} is {found.get(first, 'missing')}, expected "
            f"{expected.get(first, 'none')} ({len(wrong)} wrong in total): copy it again"
        )


def require_finite(weights: Mapping[str, Tensor], path: Path) -> None:
    """Raise UserError if one of the `weights` of the file `path` is infinite or NaN."""
    for name, weight in weights.items():
        if weight.is_floating_point() and not bool(weight.isfinite().all()):
            raise UserError(f"{path} contains weights that are not finite ({name}): copy it again, or create it again")
