"""Checkpoints of a training run: safetensors files and their checksums, without pickled data.

    first_step = restore(folder, model, optimizer, guard)       # 0 if there is none
    save(folder, step, model, optimizer, guard, keep=2)         # after `step` finished steps

All ranks call both, with the directory that rank 0 gives. Each rank writes the parts of the tensors that it holds, and
rank 0 those that all hold (`weft.training.tensor_files`). Every tensor is stored under its parameter's name, so that
any number of ranks can load a checkpoint, with DDP or FSDP.

`sha256.json`, written last, has the SHA-256 of every file. A checkpoint is written under a temporary name, synced to
disk, and renamed by rank 0 when all ranks have written. Nothing of it is read before the checksums are compared.

The format of torch.distributed.checkpoint would need less code here, but its metadata and values are pickled, which
execute code when a prepared file is loaded, and it has no checksums.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from weft import progress
from weft.errors import UserError, reason_of
from weft.files import sync, write_json
from weft.training import distributed
from weft.training.guard import StepGuard
from weft.training.optimizers import Optimizers
from weft.training.tensor_files import Part, PartReader, Stored, digest_of, read_headers, write_parts

DIGESTS = "sha256.json"
_THREADS = 4  # that compute checksums


def save(folder: Path, step: int, model: nn.Module, optimizer: Optimizers, guard: StepGuard, keep: int) -> None:
    """Write a checkpoint after `step` finished steps, then remove all but the newest `keep`.

    Raises OSError on all ranks if one of them cannot write. Earlier checkpoints then stay as they are.
    """
    folder = distributed.broadcast_object(folder.resolve())
    final = folder / f"step-{step:08d}"
    temporary = _temporary(final)
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        digests = _write(temporary, _parts(model, optimizer, guard))
        if distributed.is_main_process():
            _finish(temporary, final, digests)
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
        if not (reason := _damage(path) or _load(path, model, optimizer, guard)):
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
            progress.note(f"weft: {bad} is damaged ({reason}): using the previous checkpoint")
            _remove(bad.with_suffix(".damaged"))
            bad.rename(bad.with_suffix(".damaged"))
    return step_of(path)


def load_model(path: Path, model: nn.Module) -> None:
    """Load the weights of a checkpoint into a whole model, while its run may continue.

    Raises UserError for a damaged checkpoint, for that of another model, and for one that the run removes meanwhile.
    """
    try:
        stored: dict[str, Stored] | str = _damage(path) or _stored(path)
        if isinstance(stored, dict):
            stored = {name: found for name, found in stored.items() if name.startswith("model.")}
            tensors = _tensors(model)
            stored = _misfit(stored, tensors, dict(model.named_parameters())) or stored
        if isinstance(stored, str):
            raise UserError(f"{path} cannot be loaded ({stored}): give another checkpoint, or the base of its run")
        with PartReader(path) as reader:
            for name, found in stored.items():
                reader.read_into(found, name, tensors[name.removeprefix("model.")])
    except FileNotFoundError as e:
        raise UserError(f"{path} was removed by its run while it was read: give a newer one") from e


def newest(folder: Path) -> Path | None:
    """Return the newest complete checkpoint, or None. Its checksums are not compared."""
    return next((path for path in _all(folder) if isinstance(_digests(path), dict)), None)


def step_of(path: Path) -> int:
    """Return the number of finished steps of a checkpoint."""
    return int(path.name.removeprefix("step-"))


def _parts(model: nn.Module, optimizer: Optimizers, guard: StepGuard) -> dict[str, Part]:
    """Return what this rank writes: its parts of sharded tensors, and on rank 0 all other tensors."""
    state = {"model": _tensors(model), "optimizer": optimizer.state_dict(model), "guard": guard.state_dict()}
    parts = {f"{kind}.{name}": Part.of(tensor) for kind, tensors in state.items() for name, tensor in tensors.items()}
    if distributed.is_main_process():
        return parts
    return {name: part for name, part in parts.items() if part.rows.shape != part.shape}


def _write(temporary: Path, parts: dict[str, Part]) -> dict[str, str]:
    """Write the parts of every rank; return the checksums of all files. Raises the OSError of any rank."""
    name = f"rank-{distributed.rank():05d}.safetensors"
    result: dict[str, str] | OSError = {}
    if parts:
        try:
            result = {name: write_parts(temporary / name, parts)}
        except OSError as e:
            result = e
    digests: dict[str, str] = {}
    for of_rank in distributed.all_gather_object(result):
        if isinstance(of_rank, OSError):
            raise of_rank
        digests |= of_rank
    return digests


def _finish(temporary: Path, final: Path, digests: dict[str, str]) -> None:
    """Write the checksums and rename the directory."""
    for name in digests:
        if not (temporary / name).is_file():
            raise UserError(f"{temporary / name} is missing: use an output directory that all processes share")
    write_json(temporary / DIGESTS, digests)
    sync(temporary)
    os.replace(temporary, final)
    sync(final.parent)


def _load(path: Path, model: nn.Module, optimizer: Optimizers, guard: StepGuard) -> str | None:
    """Load an intact checkpoint on all ranks, or on none and return why it does not fit the model."""
    stored = distributed.compute_once(lambda: _stored(path))
    if isinstance(stored, str):
        return stored
    tensors, parameters = _tensors(model), dict(model.named_parameters())
    if reason := _misfit(stored, tensors, parameters):
        return reason
    targets = {f"model.{name}": tensor for name, tensor in tensors.items()}
    for full_name, found in stored.items():
        part, _, name = full_name.partition(".")
        if part == "guard":
            targets[full_name] = torch.empty(found.shape, dtype=found.dtype)
        elif part == "optimizer":
            owner = parameters[name.rpartition(".")[0]]
            # A moment is sharded as its parameter is, a step count is not.
            like = owner.detach() if found.shape == owner.shape else torch.empty(found.shape, device=owner.device)
            targets[full_name] = torch.empty_like(like, dtype=found.dtype)
    with PartReader(path) as reader:
        for full_name, found in stored.items():
            reader.read_into(found, full_name, targets[full_name])
    optimizer.load_state_dict(model, _under("optimizer.", targets))
    guard.load_state_dict(_under("guard.", targets))
    return None


def _stored(path: Path) -> dict[str, Stored] | str:
    """Return the tensors of a checkpoint, or why its files are not those of a checkpoint."""
    try:
        return read_headers(path, sorted(_digests(path)))
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as e:
        return reason_of(e)


def _misfit(stored: dict[str, Stored], tensors: dict[str, Tensor], parameters: dict[str, nn.Parameter]) -> str | None:
    """Return why a checkpoint does not fit the model, or None."""
    for full_name, found in stored.items():
        part, _, name = full_name.partition(".")
        if part == "guard":
            continue
        owner = tensors.get(name) if part == "model" else parameters.get(name.rpartition(".")[0])
        if owner is None:
            return f"the model has no {full_name}"
        if part == "optimizer" and not owner.requires_grad:
            return f"the model does not train {name.rpartition('.')[0]}"
        if part == "model" and found.shape != owner.shape:
            return f"{full_name} has shape {tuple(found.shape)}, and the model's has {tuple(owner.shape)}"
    missing = [name for name in tensors if f"model.{name}" not in stored]
    return f"{min(missing)} is missing" if missing else None


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a state dict, tied ones once, under the first of their names."""
    by_id = {id(tensor): (name, tensor) for name, tensor in reversed(model.state_dict(keep_vars=True).items())}
    return dict(reversed(by_id.values()))


def _damage(path: Path) -> str | None:
    """Return what is wrong with the files of a checkpoint, or None. Each rank reads a share of them."""
    if not all(distributed.all_gather_object(path.is_dir())):  # rank 0 has seen it
        raise UserError(f"{path} does not exist: all processes must see the directory that rank 0 writes to")
    digests = distributed.compute_once(lambda: _digests(path))
    if isinstance(digests, str):
        return digests
    own = sorted(digests.items())[distributed.rank_slice()]
    with ThreadPoolExecutor(_THREADS) as threads:
        reasons = [reason for reason in threads.map(lambda item: _file_damage(path, *item), own) if reason]
    return next((reason for of_rank in distributed.all_gather_object(reasons) for reason in of_rank), None)


def _digests(path: Path) -> dict[str, str] | str:
    """Return the checksums of a checkpoint's files, or why they cannot be read."""
    try:
        digests = json.loads((path / DIGESTS).read_bytes())
        if (
            not isinstance(digests, dict)
            or not digests
            or not all(map(re.compile(r"rank-\d{5}\.safetensors").fullmatch, digests))
        ):
            raise ValueError("other names")
    except FileNotFoundError:
        is_old = (path / ".metadata").exists()
        return "it was written by an older version of weft" if is_old else f"{DIGESTS} is missing"
    except (OSError, ValueError, TypeError) as e:
        return f"{DIGESTS} cannot be read: {type(e).__name__}"
    return digests


def _file_damage(path: Path, name: str, digest: str) -> str | None:
    try:
        return None if digest_of(path / name) == digest else f"{name} has changed since it was written"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as e:
        return f"{name} cannot be read: {type(e).__name__}"


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
