"""Many processes, one training run: torchrun starts them, each holds the whole model and takes a share of every step.

    torchrun --nproc-per-node 8 -m weft train-tokenizer RECIPE.toml

    with distributed.build(config.out, KIND, settings, parents) as draft:    # the first process makes the artifact
        fit(...)                                                             # all train it, on a share of each step
        if distributed.is_first():
            save(model, draft.folder)

Gradients are summed by torch's DistributedDataParallel while the backward pass goes on.

In a process that was started alone every function here does nothing, or gives back what it was given. The processes
must see the same disk. Each has the CPU, or the GPU of its place on its machine: "cuda" is that one.

Errors are told once: `first_to_tell` says which process prints its line, and a process whose peer is gone ends too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from weft import artifacts, launch
from weft.artifacts import Draft, Manifest
from weft.errors import UserError

T = TypeVar("T")

_PATIENCE = timedelta(hours=12)  # the first process may read, measure and save alone while the others wait
_HEAD_START = timedelta(seconds=5)
_TOLD = "weft/told"

_store: dist.Store | None = None  # where the processes of this run meet; as global as torch's process group


def begin() -> None:
    """Join the other processes of this run, if there are any and they are not joined yet."""
    global _store
    if launch.world_size() == 1 or dist.is_initialized():
        return
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    with _peers():
        _store, rank, size = next(dist.rendezvous("env://"))
        # Both backends: tensors may be on either device, whichever the model is on.
        backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
        dist.init_process_group(backend, store=_store, rank=rank, world_size=size, timeout=_PATIENCE)


def end() -> None:
    """Part from the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this is the process that writes files and talks."""
    return rank() == 0


def first_to_tell() -> bool:
    """Whether no process of this run has told of an error before: the one that gets True prints it.

    Where all have the same one, that is the first process, which knows the folders by their names.
    """
    if _store is None:
        return launch.rank() == 0
    try:
        if launch.rank() and _told_within(_HEAD_START):
            return False
        return _store.add(_TOLD, 1) == 1
    except dist.DistError:  # the process that kept the store is gone, and told why
        return False


def _told_within(time: timedelta) -> bool:
    assert _store is not None
    try:
        _store.wait([_TOLD], time)
    except dist.DistStoreError:
        return False
    return True


def share(micro_batch: int = 0, accumulate: int = 1) -> slice:
    """This process's part of any sequence that all of them have, again cut into `accumulate` micro-batches.

    The parts hold every item once. Item by item in turn, so that parts of a sequence sorted by length are alike; the
    first process gets the first item.
    """
    return slice(rank() + world_size() * micro_batch, None, world_size() * accumulate)


def all_reduce(*tensors: Tensor) -> None:
    """Sum each tensor, in place, over all processes; they all get the same bits."""
    if world_size() > 1:
        with _peers():
            for tensor in tensors:
                dist.all_reduce(tensor)


def broadcast(*tensors: Tensor) -> None:
    """Overwrite each tensor, in place, with the first process's."""
    if world_size() > 1:
        with _peers():
            for tensor in tensors:
                dist.broadcast(tensor, 0)


def total(count: int) -> int:
    """The sum of every process's `count`."""
    summed = torch.tensor(count)
    all_reduce(summed)
    return int(summed)


def from_first(value: T) -> T:
    """The first process's `value`, a small one that can be pickled."""
    if world_size() == 1:
        return value
    values = [value]
    with _peers():
        dist.broadcast_object_list(values, 0)
    return values[0]


def gather(value: T) -> list[T]:
    """Every process's `value`, a small one that can be pickled, by rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    with _peers():
        dist.all_gather_object(values, value)
    return values


def data_parallel(module: nn.Module) -> nn.Module:
    """`module` in DistributedDataParallel, or alone itself: all processes begin with the first one's parameters and
    buffers, and `backward` gives the parameters that any of them used in a step the same gradients in all.

    A parameter that none of them used keeps having no gradient. Gradients are summed in their parameter's dtype, bucket
    by bucket while the backward pass goes on. Buckets are cut once, by the order of the parameters: a run that goes on
    from a checkpoint sums in the same order, and gives the same bits on a CPU, however many processes there are.
    """
    if world_size() == 1:
        return module
    with _peers():
        parallel = DistributedDataParallel(module, find_unused_parameters=True, gradient_as_bucket_view=True)
    parallel.broadcast_buffers = False  # what a quantizer learns, it shares itself, once a step
    return parallel


def no_sync(module: nn.Module) -> AbstractContextManager[None]:
    """Around forward and `backward` of any but the last micro-batch of a step, which waits for no other process.

    `module` is what `data_parallel` gave. The next micro-batch outside sums the gradients of all of them.
    """
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


def backward(loss: Tensor) -> None:
    """The backward pass of this process's part of a `loss` that is a sum over all processes.

    DistributedDataParallel makes the mean of their gradients, hence a loss times their number.
    """
    if world_size() == 1:
        loss.backward()
        return
    with _peers(computing=True):
        (loss * world_size()).backward()


@contextmanager
def build(
    out: Path,
    kind: str,
    settings: Mapping[str, Any],
    parents: Mapping[str, Manifest] | None = None,
    licence: str | None = None,
) -> Iterator[Draft]:
    """`artifacts.build` for all processes: the first one's draft becomes the artifact, which all find made afterwards.

    What the others put into theirs is thrown away; large files are better not written there at all.
    """
    begin()
    if is_first():
        with artifacts.build(out, kind, settings, parents, licence) as draft:
            yield draft
    else:
        with TemporaryDirectory(prefix="weft-") as folder:
            yield Draft(Path(folder))
    all_reduce(torch.zeros(1))  # the others wait here


@contextmanager
def _peers(computing: bool = False) -> Iterator[None]:
    """Around every call that waits for other processes: one of them may be gone.

    Where the call is `computing` too, it may also fail for reasons of its own, which are told as they are.
    """
    try:
        yield
    except (RuntimeError, ValueError) as e:
        of_peers = not computing or isinstance(e, dist.DistError) or "gloo" in str(e)  # which has no class of its own
        if not of_peers or "out of memory" in str(e):
            raise
        raise UserError(
            f"another process of this run has ended ({str(e).splitlines()[0]}): see what it said, then run the same "
            "command again, it goes on from its last checkpoint"
        ) from e
