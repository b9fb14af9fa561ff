"""Runs with NaN hidden states in some micro-batches, and whether each of their steps has changed the model."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from weft.training import distributed, loop
from weft.training.optimizers import Optimizers

Where = tuple[int, int, int]  # step, micro-batch of the rank, rank


def changed_steps(module: ModuleType, run: Callable[[], Any], bad: Collection[Where]) -> list[bool]:
    """Return for each step of `run`, which trains by `module.fit`, whether it has changed the model or the optimizer.

    All parameters, buffers and optimizer states are compared. The micro-batches `bad` have NaN hidden states.
    """
    optimizers: list[Optimizers] = []
    changed: list[bool] = []
    before: dict[str, Tensor] = {}
    step = passes = 0
    real_fit, real_of, real_forward = loop.fit, Optimizers.of, loop._Objective.forward

    def fit(model: nn.Module, *arguments: Any, **named: Any) -> float:
        names = ("batch_at", "loss_of", "config", "folder", "title", "after_step", "before_step")
        named = dict(zip(names, arguments, strict=False)) | named
        after_step, before_step = named.get("after_step"), named.get("before_step")

        def state() -> dict[str, Tensor]:
            found = {**model.state_dict(), **optimizers[-1].state_dict(model)}
            return {name: tensor.detach().clone() for name, tensor in found.items()}

        def begin(i: int) -> None:
            nonlocal before, step, passes
            if before_step:
                before_step(i)
            before, step, passes = state(), i, 0

        def end(i: int, updated: bool) -> dict[str, float]:
            found = after_step(i, updated) if after_step else {}
            now = state()
            changed.append(before.keys() != now.keys() or any(not torch.equal(before[k], now[k]) for k in now))
            assert all(tensor.isfinite().all() for tensor in now.values())
            return found

        return real_fit(model, **named | {"after_step": end, "before_step": begin})

    def forward(self: nn.Module, batch: Any) -> dict[str, Tensor]:
        nonlocal passes
        passes += 1
        with nan_hidden_states() if (step, passes - 1, distributed.rank()) in bad else no_change():
            return real_forward(self, batch)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "fit", fit)
        patch.setattr(loop._Objective, "forward", forward)
        patch.setattr(Optimizers, "of", lambda *given: optimizers.append(real_of(*given)) or optimizers[-1])
        run()
    return changed


@contextmanager
def no_change() -> Iterator[None]:
    yield


@contextmanager
def nan_hidden_states() -> Iterator[None]:
    """The first layer that runs inside returns NaN."""

    def to_nan(module: nn.Module, given: Any, output: Any) -> Any:
        handle.remove()
        return output * torch.nan

    handle = register_module_forward_hook(to_nan)
    yield
    handle.remove()
