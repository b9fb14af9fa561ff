"""Checkpoints of a training run in the format of torch.distributed.checkpoint.

    first_step = restore(folder, model, optimizer, guard)       # 0 if there is none
    save(folder, step, model, optimizer, guard, keep=2)         # after `step` finished steps

All ranks call both, with the directory that rank 0 gives. Every tensor is stored under its parameter's name, so that
any number of ranks can load a checkpoint, with DDP or FSDP. A checkpoint is written under a temporary name,
synced to disk, and renamed by rank 0 when all ranks have written.
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

from weft.errors import UserError
from weft.files import sync
from weft.training import distributed
from weft.training.guard import StepGuard
from weft.training.optimizers import Optimizers

# What a truncated or overwritten file may raise. Unpickling may raise nearly anything.
_UNREADABLE = (
    OSError, EOFError, pickle.UnpicklingError, AttributeError, ImportError, LookupError, ValueError, TypeError,
    ArithmeticError, RuntimeError, AssertionError,
)  # fmt: skip


def save(folder: Path, step: int, model: nn.Module, optimizer: Optimizers, guard: StepGuard, keep: int) -> None:
    """Write a checkpoint after `step` finished steps, then remove all but the newest `keep`.

    Raises OSError on all ranks if one of them cannot write. Earlier checkpoints then stay as they are.
    """
    folder = distributed.broadcast_object(folder.resolve())
    final = folder / f"step-{step:08d}"
    temporary = _temporary(final)
    state: dict[str, Any] = {
        "model": _tensors(model),
        "optimizer": optimizer.state_dict(model),
        "guard": guard.state_dict(),
    }
    try:
        with _collective():
            # Values that several ranks hold are written by the lowest.
            planner = dcp.DefaultSavePlanner(dedup_save_to_lowest_rank=True)
            dcp.save(state, storage_writer=_Writer(temporary), planner=planner)
        if distributed.is_main_process():
            if reason := _damage(temporary):
                raise UserError(f"{temporary}: {reason}: use an output directory that all processes share")
            sync(temporary)
            os.replace(temporary, final)
            sync(folder)
    finally:
        if distributed.is_main_process():
            shutil.rmtree(temporary, ignore_errors=True)
    if distributed.is_main_process():
        for old in _all(folder)[keep:]:
            _remove(old)


def restore(folder: Path, model: nn.Module, optimizer: Optimizers, guard: StepGuard) -> int:
    """Restore the newest intact checkpoint and return its number of finished steps, or 0 if there is none.

    A damaged one is renamed to `step-....damaged`. Raises UserError if all are, and if a rank does not see `folder`.
    """
    if distributed.is_main_process():
        for leftover in folder.glob("step-*.tmp"):
            shutil.rmtree(leftover)
    folder = distributed.broadcast_object(folder.resolve())
    found = distributed.broadcast_object(_all(folder))
    damaged: dict[Path, str] = {}
    for path in found:
        reason = distributed.compute_once(lambda path=path: _damage(path))  # type: ignore[misc]
        if not (reason := reason or _load(path, model, optimizer, guard)):
            break
        damaged[path] = reason
    else:
        if not found:
            return 0
        raise UserError(
            f"no checkpoint in {folder} can be read ({'; '.join(damaged.values())}): delete it to start again"
        )
    if distributed.is_main_process():
        for bad, reason in damaged.items():
            print(f"weft: {bad} is damaged ({reason}): using the previous checkpoint", file=sys.stderr, flush=True)
            _remove(bad.with_suffix(".damaged"))
            bad.rename(bad.with_suffix(".damaged"))
    return step_of(path)


def newest(folder: Path) -> Path | None:
    """Return the newest complete checkpoint, or None."""
    return next((path for path in _all(folder) if not _damage(path)), None)


def step_of(path: Path) -> int:
    """Return the number of finished steps of a checkpoint."""
    return int(path.name.removeprefix("step-"))


def _load(path: Path, model: nn.Module, optimizer: Optimizers, guard: StepGuard) -> str | None:
    """Load a checkpoint on all ranks, or on none and return the reason."""
    if not all(distributed.all_gather_object((path / ".metadata").is_file())):  # rank 0 has seen it
        raise UserError(f"{path} does not exist: all processes must see the directory that rank 0 writes to")
    metadata = distributed.compute_once(dcp.FileSystemReader(path).read_metadata)
    tensors = _tensors(model)
    state: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "guard": {}}
    if reason := _allocate(state, metadata, tensors, dict(model.named_parameters())):
        return reason
    try:
        with _collective():
            dcp.load(dict(state), storage_reader=dcp.FileSystemReader(path))
    except _UNREADABLE as e:
        return str(e).splitlines()[0] if str(e) else type(e).__name__
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(state["model"][name])
    optimizer.load_state_dict(model, state["optimizer"])
    guard.load_state_dict(state["guard"])
    return None


def _allocate(
    state: dict[str, dict[str, Tensor]],
    metadata: Metadata,
    tensors: dict[str, Tensor],
    parameters: dict[str, nn.Parameter],
) -> str | None:
    """Fill `state` with empty tensors to load into, or return why the checkpoint does not fit the model."""
    for full_name, stored in metadata.state_dict_metadata.items():
        part, _, name = full_name.partition(".")
        if not isinstance(stored, TensorStorageMetadata):
            return f"{full_name} is not a tensor"
        if part == "guard":
            state[part][name] = torch.empty(stored.size, dtype=stored.properties.dtype)
            continue
        owner = tensors.get(name) if part == "model" else parameters.get(name.rpartition(".")[0])
        if owner is None:
            return f"the model has no {full_name}"
        if part == "model" and stored.size != owner.shape:
            return f"{full_name} has shape {tuple(stored.size)}, and the model's has {tuple(owner.shape)}"
        # A moment is sharded as its parameter is, a step count is not.
        like = owner if stored.size == owner.shape else torch.empty(stored.size, device=owner.device)
        state[part][name] = torch.empty_like(like, dtype=stored.properties.dtype)
    if missing := tensors.keys() - state["model"].keys():
        return f"{min(missing)} is missing"
    return None


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a state dict, tied ones once, under the first of their names."""
    by_id = {id(tensor): (name, tensor) for name, tensor in reversed(model.state_dict(keep_vars=True).items())}
    return dict(reversed(by_id.values()))


@contextmanager
def _collective() -> Iterator[None]:
    """Raise the error of one rank on all ranks, as itself."""
    try:
        with distributed.peer_errors(computing=True), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # in a single process
            yield
    except CheckpointException as e:
        errors = [error for error, _ in e.failures.values()]
        raise next((error for error in errors if isinstance(error, OSError)), errors[0]) from None


class _Writer(dcp.FileSystemWriter):
    """The library's writer, which hides a full disk behind a RuntimeError."""

    def write_data(self, plan: dcp.SavePlan, planner: dcp.SavePlanner) -> Any:
        try:
            return super().write_data(plan, planner)
        except RuntimeError as e:
            raise e.__context__ if isinstance(e.__context__, OSError) else e from None


def _damage(path: Path) -> str | None:
    """Return what is wrong with the names and sizes of a checkpoint's files, or None."""
    try:
        stored = dcp.FileSystemReader(path).read_metadata().storage_data
        ends: dict[str, int] = {}
        for part in stored.values():
            ends[part.relative_path] = max(ends.get(part.relative_path, 0), part.offset + part.length)
    except _UNREADABLE as e:
        return f".metadata cannot be read: {type(e).__name__}"
    for name, end in ends.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if (size := (path / name).stat().st_size) < end:
            return f"{name} has {size} bytes, expected {end}"
    return None


def _all(folder: Path) -> list[Path]:
    """Return the checkpoints, newest first."""
    return sorted((path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8}", path.name)), reverse=True)


def _temporary(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")


def _remove(path: Path) -> None:
    """Remove a checkpoint. What an interruption leaves of it is not taken for one."""
    if path.exists():
        path.rename(_temporary(path))
        shutil.rmtree(_temporary(path))
