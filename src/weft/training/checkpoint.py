"""Checkpoints of a training run: whole or absent, the newest whole one found by itself, older ones removed.

    first_step = restore(folder, model, optimizer, guard)       # 0 where there is none
    save(folder, step, model, optimizer, guard, keep=2)         # after `step` finished steps

All processes of a run call both; the folder is the one that the first of them gives. A checkpoint is a folder in the
format of torch.distributed.checkpoint, in which every tensor of the model and of its optimizer stands under its
parameter's name: what some processes wrote, any number of them reads, whichever of them holds what. It is written
beside, synced to disk, and renamed by the first process when all have written.
"""

from __future__ import annotations

import os
import pickle
import re
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from weft import artifacts
from weft.errors import UserError
from weft.training import distributed
from weft.training.guard import Guard
from weft.training.optimizers import Optimizers

# What a file that is cut off or overwritten may raise: a pickle nearly anything, torch.load the last two.
_UNREADABLE = (
    OSError, EOFError, pickle.UnpicklingError, AttributeError, ImportError, LookupError, ValueError, TypeError,
    ArithmeticError, RuntimeError, AssertionError,
)  # fmt: skip


def save(folder: Path, step: int, model: nn.Module, optimizer: Optimizers, guard: Guard, keep: int) -> None:
    """Write a checkpoint after `step` finished steps, then remove all but the newest `keep`.

    Raises OSError, in all processes, where one of them cannot write; what was there before is left as it is.
    """
    folder = distributed.from_first(folder.resolve())
    final = folder / f"step-{step:08d}"
    beside = _beside(final)
    state: dict[str, Any] = {"model": _tensors(model), "optimizer": optimizer.state(model), "guard": guard.state()}
    try:
        with _collective():
            # What several processes have is the first one's.
            planner = dcp.DefaultSavePlanner(dedup_save_to_lowest_rank=True)
            dcp.save(state, storage_writer=_Writer(beside), planner=planner)
        if distributed.is_first():
            if why := _damage(beside):
                raise UserError(f"{why}: every process must see the folder that the first one writes to")
            artifacts.sync(beside)
            os.replace(beside, final)
            artifacts.sync(folder)
    finally:
        if distributed.is_first():
            shutil.rmtree(beside, ignore_errors=True)
    if distributed.is_first():
        for old in _all(folder)[keep:]:
            _remove(old)


def restore(folder: Path, model: nn.Module, optimizer: Optimizers, guard: Guard) -> int:
    """Give `model`, `optimizer` and `guard` what the newest whole checkpoint holds; returns its finished steps, or 0.

    One that is damaged is told of and set aside, as `step-....damaged`. Raises UserError where no other is whole, and
    where a process does not see the folder.
    """
    if distributed.is_first():
        for leftover in folder.glob("step-*.tmp"):
            shutil.rmtree(leftover)
    folder = distributed.from_first(folder.resolve())
    found = distributed.from_first(_all(folder))
    damaged: dict[Path, str] = {}
    for path in found:
        why = distributed.from_first(_damage(path) if distributed.is_first() else None)
        if not (why := why or _load(path, model, optimizer, guard)):
            break
        damaged[path] = why
    else:
        if not found:
            return 0
        told = "; ".join(damaged.values())
        raise UserError(f"no checkpoint in {folder} can be read ({told}): delete this folder to begin again")
    if distributed.is_first():
        for bad, why in damaged.items():
            print(f"weft: {bad} is damaged ({why}): going on from the one before", file=sys.stderr, flush=True)
            _remove(bad.with_suffix(".damaged"))
            bad.rename(bad.with_suffix(".damaged"))
    return step_of(path)


def newest(folder: Path) -> Path | None:
    """The newest checkpoint that lacks nothing, or None where there is none."""
    return next((path for path in _all(folder) if not _damage(path)), None)


def step_of(path: Path) -> int:
    """The finished steps of a checkpoint."""
    return int(path.name.removeprefix("step-"))


def _load(path: Path, model: nn.Module, optimizer: Optimizers, guard: Guard) -> str | None:
    """Change `model`, `optimizer` and `guard`, or none, and in all processes alike: then tell why not."""
    if not all(distributed.gather((path / ".metadata").is_file())):  # the first process has seen it
        raise UserError(f"{path} is not there: every process must see the folder that the first one writes to")
    metadata = distributed.from_first(_metadata(path) if distributed.is_first() else None)
    assert isinstance(metadata, Metadata)
    tensors, parameters = _tensors(model), dict(model.named_parameters())
    state: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "guard": {}}
    for full_name, stored in metadata.state_dict_metadata.items():
        part, _, name = full_name.partition(".")
        if not isinstance(stored, TensorStorageMetadata):
            return f"it holds {full_name}, which is no tensor"
        if part == "guard":
            state[part][name] = torch.empty(stored.size, dtype=stored.properties.dtype)
            continue
        owner = tensors.get(name) if part == "model" else parameters.get(name.rpartition(".")[0])
        if owner is None:
            return f"it holds {full_name}, which this model has not"
        if part == "model" and stored.size != owner.shape:
            return f"{full_name} is {tuple(stored.size)} in it, and {tuple(owner.shape)} here"
        # A moment is sharded as its parameter is, a count is not.
        like = owner if stored.size == owner.shape else torch.empty(stored.size, device=owner.device)
        state[part][name] = torch.empty_like(like, dtype=stored.properties.dtype)
    if lacking := tensors.keys() - state["model"].keys():
        return f"it lacks {min(lacking)}"
    try:
        with _collective():
            dcp.load(dict(state), storage_reader=dcp.FileSystemReader(path))
    except _UNREADABLE as e:
        return str(e).splitlines()[0] if str(e) else type(e).__name__
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(state["model"][name])
    optimizer.load_state(model, state["optimizer"])
    guard.load_state(state["guard"])
    return None


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """What a model's state dict holds, each tensor once, under the first of its names where weights are tied."""
    by_id = {id(tensor): (name, tensor) for name, tensor in reversed(model.state_dict(keep_vars=True).items())}
    return dict(reversed(by_id.values()))


@contextmanager
def _collective() -> Iterator[None]:
    """Around what all processes do together: an error in one is raised in all, as itself."""
    try:
        with distributed.peers(computing=True), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # a process alone
            yield
    except CheckpointException as e:
        errors = [error for error, _ in e.failures.values()]
        raise next((error for error in errors if isinstance(error, OSError)), errors[0]) from None


class _Writer(dcp.FileSystemWriter):
    """As the library's, which tells of a full disk by a RuntimeError over the OSError."""

    def write_data(self, plan: dcp.SavePlan, planner: dcp.SavePlanner) -> Any:
        try:
            return super().write_data(plan, planner)
        except RuntimeError as e:
            raise e.__context__ if isinstance(e.__context__, OSError) else e from None


def _metadata(path: Path) -> Metadata:
    return dcp.FileSystemReader(path).read_metadata()


def _damage(path: Path) -> str | None:
    """What is wrong with the files of a checkpoint, by their names and sizes; None where nothing is."""
    try:
        stored = _metadata(path).storage_data
        ends: dict[str, int] = {}
        for part in stored.values():
            ends[part.relative_path] = max(ends.get(part.relative_path, 0), part.offset + part.length)
    except _UNREADABLE as e:
        return f"its .metadata does not read: {type(e).__name__}"
    for name, end in ends.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if (size := (path / name).stat().st_size) < end:
            return f"{name} ends at byte {size}, not at {end}"
    return None


def _all(folder: Path) -> list[Path]:
    """The checkpoints, newest first."""
    return sorted((path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8}", path.name)), reverse=True)


def _beside(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")


def _remove(path: Path) -> None:
    """Remove a checkpoint; where that is cut short, what is left of it is no checkpoint."""
    if path.exists():
        path.rename(_beside(path))
        shutil.rmtree(_beside(path))
