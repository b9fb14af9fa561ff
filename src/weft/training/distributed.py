"""Many processes, one training run: torchrun starts them, each takes a share of every step.

    torchrun --nproc-per-node 8 -m weft train-tokenizer RECIPE.toml

    with distributed.build(config.out, KIND, settings, parents) as draft:    # the first process makes the artifact
        fit(...)                                                             # all train it, on a share of each step
        if distributed.is_first():
            save(model, draft.folder)

Each holds the whole model, of which torch's DistributedDataParallel sums the gradients while the backward pass goes on,
or a part of it, where `shard` has cut a model that does not fit.

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
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from weft import artifacts, launch
from weft.artifacts import Draft, Manifest
from weft.errors import UserError

T = TypeVar("T")

ANY = slice(1)
"""The part of a step that a process takes which has none of its own, where it has to go along: it has no weight."""

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
    with peers():
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
        with peers():
            for tensor in tensors:
                dist.all_reduce(tensor)


def broadcast(*tensors: Tensor) -> None:
    """Overwrite each tensor, in place, with the first process's."""
    if world_size() > 1:
        with peers():
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
    with peers():
        dist.broadcast_object_list(values, 0)
    return values[0]


def gather(value: T) -> list[T]:
    """Every process's `value`, a small one that can be pickled, by rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    with peers():
        dist.all_gather_object(values, value)
    return values


def data_parallel(module: nn.Module) -> nn.Module:
    """`module` in DistributedDataParallel, or itself where it is alone or sharded: all processes begin with the first
    one's parameters and buffers, and `backward` gives those that any of them used in a step the same gradients in all.

    A parameter that none of them used keeps having no gradient. Gradients are summed in their parameter's dtype, bucket
    by bucket while the backward pass goes on. Buckets are cut once, by the order of the parameters: a run that goes on
    from a checkpoint sums in the same order, and gives the same bits on a CPU, however many processes there are.
    """
    if world_size() == 1 or is_sharded(module):
        return module
    with peers():
        parallel = DistributedDataParallel(module, find_unused_parameters=True, gradient_as_bucket_view=True)
    parallel.broadcast_buffers = False  # what a quantizer learns, it shares itself, once a step
    return parallel


def no_sync(module: nn.Module) -> AbstractContextManager[None]:
    """Around forward and `backward` of any but the last micro-batch of a step, which waits for no other process.

    `module` is what `data_parallel` gave. The next micro-batch outside sums the gradients of all of them. In a sharded
    one every micro-batch does: a gradient that waits would be whole, and as large as the model.
    """
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


def shard(model: nn.Module, device: str, half: bool) -> nn.Module:
    """`model`, changed in place and moved to `device`: every process holds a part of each parameter, its gradient and
    its moments (FSDP2, arXiv 2304.11277), and all of a layer only while that computes. Alone, it is just moved.

    The layers are what the model's lists of modules hold; the rest of it (embeddings, head, final norm) is whole during
    all of a pass. Layers get to the device one by one, so that the model need fit no single one. All processes begin
    with the first one's parameters and must call `model` equally often, with data that use the same parameters of it.
    With `half`, layers are gathered in bf16 for passes under autocast, which would else keep a copy of them that does
    not go away; gradients are summed in fp32.
    """
    if world_size() == 1:
        return model.to(device)
    mesh = dist.init_device_mesh(device, (world_size(),))
    # The residual stream stays what autocast makes it: inputs are not cast.
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    with peers():
        for layer in _layers(model):
            _begin_alike(layer, device)
            fully_shard(layer, mesh=mesh, mp_policy=policy if half else MixedPrecisionPolicy())
        _begin_alike(model, device)
        fully_shard(model, mesh=mesh)
    return model


def is_sharded(module: nn.Module) -> bool:
    """Whether `shard` has cut a model that is in `module`."""
    return any(isinstance(m, FSDPModule) for m in module.modules())


@contextmanager
def without_gradients(model: nn.Module) -> Iterator[None]:
    """Around passes of a `model` that no backward pass follows: one that is sharded has its parts back afterwards."""
    with torch.no_grad():
        yield
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole_weights(model: nn.Module) -> dict[str, Any]:
    """The state dict of a sharded model, on the CPU of the first process; the others get an empty one."""
    with peers():
        return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    """What a model's lists of modules hold, lists within lists left out."""
    for child in model.children():
        yield from child if isinstance(child, nn.ModuleList) else _layers(child)


def _begin_alike(module: nn.Module, device: str) -> None:
    """Move what of `module` is not sharded yet to `device`, with the first process's values."""
    for tensor in (*module.parameters(), *module.buffers()):
        if not isinstance(tensor, DTensor):
            tensor.data = tensor.data.to(device)
            broadcast(tensor.data)


def backward(loss: Tensor) -> None:
    """The backward pass of this process's part of a `loss` that is a sum over all processes.

    DistributedDataParallel and FSDP2 make the mean of their gradients, hence a loss times their number.
    """
    if world_size() == 1:
        loss.backward()
        return
    with peers(computing=True):
        (loss * world_size()).backward()


def clip_gradients(model: nn.Module, max_norm: float) -> Tensor:
    """Scale the gradients of `model` down to a norm of at most `max_norm`; returns the norm that they had.

    Both are of the whole gradient, however it is sharded, and the same in all processes.
    """
    parameters = list(model.parameters())
    with peers(computing=True):
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


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
def peers(computing: bool = False) -> Iterator[None]:
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
