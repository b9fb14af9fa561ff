"""Training runs in which only rank 0 has the weights of the base."""

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from weft.training import distributed


def without_weights(base: Path, folder: Path) -> Path:
    """Copy a model directory. Its weights have the same size, but reading them is an error."""
    shutil.copytree(base, folder)
    for path in folder.glob("*.safetensors"):
        path.write_bytes(bytes(path.stat().st_size))
    return folder


def train_from_rank_0(run: Callable[[Any], Any], config: Any, empty_base: Path) -> list[dict[str, Tensor]]:
    """Call `run(config)`; all ranks but the first have the base `empty_base`.

    Return the weights of this rank before and after training.
    """
    weights: list[dict[str, Tensor]] = []
    module: Any = sys.modules[run.__module__]
    real_fit = module.fit

    def fit(model: nn.Module, *arguments: Any, **named: Any) -> Any:
        weights.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        result = real_fit(model, *arguments, **named)
        weights.append(model.state_dict())
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "fit", fit)
        run(config if distributed.is_main_process() else replace(config, base=empty_base))
    return weights
