"""Loading of weights from safetensors files, with checks of names, shapes and values.

with loading(folder, "a decoder"):      # of weft.artifacts, for damaged files
    load_weights(model, folder / "model.safetensors")
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

from weft.errors import UserError


def load_weights(model: nn.Module, path: Path, leave_out: Collection[str] = ()) -> None:
    """Load a state dict without the names in `leave_out` into `model`, which may be on torch's meta device.

    Raises UserError for weights that are missing, unknown, of another shape, infinite or NaN.
    """
    weights = load_file(path)
    own = model.state_dict()
    found = {name: tuple(weight.shape) for name, weight in weights.items()}
    expected = {name: tuple(weight.shape) for name, weight in own.items() if name not in leave_out}
    if wrong := sorted(n for n in found.keys() | expected.keys() if found.get(n) != expected.get(n)):
        first = wrong[0]
        raise UserError(
            f"{path} does not fit its settings: {first} is {found.get(first, 'missing')}, expected "
            f"{expected.get(first, 'none')} ({len(wrong)} wrong in total): copy it again"
        )
    require_finite(weights, path)
    model.load_state_dict({n: w.to(own[n].dtype) for n, w in weights.items()}, strict=False, assign=True)


def require_finite(weights: Mapping[str, Tensor], path: Path) -> None:
    """Raise UserError if one of the `weights` of the file `path` is infinite or NaN."""
    for name, weight in weights.items():
        if weight.is_floating_point() and not bool(weight.isfinite().all()):
            raise UserError(f"{path} contains weights that are not finite ({name}): copy it again, or create it again")
