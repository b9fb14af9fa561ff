"""Weights from safetensors files: all that a model has, in their shapes, or a refusal.

with loading(folder, "a decoder"):                      # of weft.artifacts, for damaged files
    load_weights(model, folder / "model.safetensors")
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

from weft.errors import UserError


def load_weights(model: nn.Module, path: Path, leave_out: Collection[str] = ()) -> None:
    """Load a state dict into `model`, perhaps one on torch's meta device; the names in `leave_out` are not in the file.

    Raises UserError for weights that are missing, surplus, of another shape or not finite.
    """
    weights = load_file(path)
    found = {name: tuple(weight.shape) for name, weight in weights.items()}
    needed = {name: tuple(weight.shape) for name, weight in model.state_dict().items() if name not in leave_out}
    if wrong := sorted(n for n in found.keys() | needed.keys() if found.get(n) != needed.get(n)):
        first = wrong[0]
        raise UserError(
            f"{path} does not fit its settings: {first} is {found.get(first, 'missing')}, and "
            f"{needed.get(first, 'none')} is needed ({len(wrong)} such in all); copy it again"
        )
    require_finite(weights, path)
    dtypes = {name: weight.dtype for name, weight in model.state_dict().items()}
    model.load_state_dict({n: w.to(dtypes[n]) for n, w in weights.items()}, strict=False, assign=True)


def require_finite(weights: Mapping[str, Tensor], path: Path) -> None:
    """Raise UserError where one of `weights`, which came from `path`, is infinite or not a number."""
    for name, weight in weights.items():
        if weight.is_floating_point() and not bool(weight.isfinite().all()):
            raise UserError(f"{path} has weights that are not finite ({name}): copy it again, or make it again")
