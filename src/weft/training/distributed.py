"""Processes of one training run, as torchrun starts them.

    torchrun --nproc-per-node 8 -m weft train-tokenizer RECIPE.toml

    manifest = create(config.out, plan, write)     # rank 0 writes the artifact, all ranks train it

In a single-process run, every function does nothing or returns its argument. The processes must share a
file system. Each uses the CPU, or the GPU of its local rank as "cuda".

An error is reported by one process (`claim_error_report`), and a process whose peer has ended ends as well.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import _set_pg_timeout  # as in torchtitan; there is no public function

from weft import artifacts, launch, plan
from weft.artifacts import Manifest
from weft.device import default_device
from weft.errors import UserError, reason_of
from weft.plan import Draft, Plan

T = TypeVar("T")

_TIMEOUT = timedelta(hours=12)  # rank 0 may read, evaluate and save alone while the others wait
_REPORT_DELAY = timedelta(seconds=5)
_REPORTED = "weft/reported"

_store: dist.Store | None = None  # of the process group, and as global as that


def init() -> None:
    """Join the process group of this run, if there is one."""
    global _store
    if launch.world_size() == 1 or dist.is_initialized():
        return
    has_gpu = default_device() == "cuda"
    if has_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    with peer_errors():
        _store, rank, size = next(dist.rendezvous("env://"))
        # Two backends, because tensors may be on either device whichever the model is on.
        backend = "cpu:gloo,cuda:nccl" if has_gpu else "gloo"
        dist.init_process_group(backend, store=_store, rank=rank, world_size=size, timeout=_TIMEOUT)


def shutdown() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def world_size() -> int:
    """Return the number of processes of this run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the rank of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main_process() -> bool:
    """Whether this is rank 0, which writes files and prints."""
    return rank() == 0


def create(out: Path, the_plan: Plan, write: Callable[[Draft], None], licence: str | None = None) -> Manifest:
    """Call `weft.plan.create` in all processes. The draft of rank 0 becomes the artifact; the others are discarded."""
    init()
    if not broadcast_object(plan.is_created(out, the_plan, licence) if is_main_process() else False):
        if is_main_process():
            with plan.open_draft(out, the_plan, licence) as draft:
                write(draft)
        else:
            with TemporaryDirectory(prefix="weft-") as folder:
                write(Draft(Path(folder)))
        all_reduce(torch.zeros(1))  # the other ranks wait here for the artifact
    return artifacts.read(out)


def rank_slice(micro_batch: int = 0, grad_accum_steps: int = 1) -> slice:
    """Return this rank's slice of a sequence that all ranks have, divided again into micro-batches.

    Items are assigned round-robin, so that ranks get similar lengths from a sorted sequence. The slices of all ranks
    and micro-batches contain every item once, and rank 0 has the first.
    """
    return slice(rank() + world_size() * micro_batch, None, world_size() * grad_accum_steps)


def rank_slices(grad_accum_steps: int) -> list[slice]:
    """Return the slices of all micro-batches of this rank."""
    return [rank_slice(i, grad_accum_steps) for i in range(grad_accum_steps)]


def rank_part(items: Sequence[T]) -> Sequence[T]:
    """Return this rank's part of items that all ranks have: consecutive ones, in the order of the ranks."""
    first, last = (len(items) * i // world_size() for i in (rank(), rank() + 1))
    return items[first:last]


def all_reduce(*tensors: Tensor) -> None:
    """Sum each tensor over all ranks, in place. All ranks get the same bits."""
    if world_size() > 1:
        with peer_errors():
            for tensor in tensors:
                dist.all_reduce(tensor)


def broadcast(*tensors: Tensor) -> None:
    """Overwrite each tensor with that of rank 0, in place."""
    if world_size() > 1:
        with peer_errors():
            for tensor in tensors:
                dist.broadcast(tensor, 0)


def all_reduce_sum(count: int) -> int:
    """Return the sum of `count` over all ranks."""
    summed = torch.tensor(count)
    all_reduce(summed)
    return int(summed)


def broadcast_object(value: T) -> T:
    """Return the value of rank 0, a small object that can be pickled."""
    if world_size() == 1:
        return value
    values = [value]
    with peer_errors():
        dist.broadcast_object_list(values, 0)
    return values[0]


def all_gather_object(value: T) -> list[T]:
    """Return the values of all ranks, small objects that can be pickled."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    with peer_errors():
        dist.all_gather_object(values, value)
    return values


def compute_once(function: Callable[[], T]) -> T:
    """Call `function` on rank 0 and return its result, a small object that can be pickled, on all ranks."""
    return broadcast_object(function() if is_main_process() else None)  # type: ignore[return-value]


@contextmanager
def step_timeout(minutes: float) -> Iterator[None]:
    """Limit how long collective calls inside the block wait for other processes. Outside, they wait for 12 hours."""
    if world_size() == 1:
        yield
        return
    _set_pg_timeout(timedelta(minutes=minutes))
    try:
        yield
    finally:
        _set_pg_timeout(_TIMEOUT)


@contextmanager
def peer_errors(computing: bool = False) -> Iterator[None]:
    """Convert the error of a collective call whose peer has ended into a UserError.

    `computing` calls may also fail for reasons of their own, which are raised unchanged.
    """
    try:
        yield
    except (RuntimeError, ValueError) as e:
        is_peer_error = not computing or isinstance(e, dist.DistError) or "gloo" in str(e)  # gloo has no error class
        if not is_peer_error or "out of memory" in str(e):
            raise
        if "timed out" in str(e).lower():
            raise UserError(
                f"another process of this run has not answered in time ({reason_of(e)}): look for what it waits for, "
                "raise train.step_timeout_minutes if it is only slow, then run the same command again to resume"
            ) from e
        raise UserError(
            f"another process of this run has ended ({reason_of(e)}): see its message, then run the same "
            "command again to resume from the last checkpoint"
        ) from e


def claim_error_report() -> bool:
    """Whether this process should print its error: True in the first process that calls this.

    The other ranks wait a few seconds for rank 0, whose messages contain the paths that the user gave.
    """
    if _store is None:
        return launch.rank() == 0
    try:
        if launch.rank():
            with suppress(dist.DistStoreError):  # no process has reported in this time
                _store.wait([_REPORTED], _REPORT_DELAY)
                return False
        return _store.add(_REPORTED, 1) == 1
    except dist.DistError:  # the process that held the store has ended, and has reported why
        return False
