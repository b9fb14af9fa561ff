"""Data parallelism: a whole model per process (DDP) or a part of it (FSDP2).

    model = shard_model(model, device, bf16=True)      # FSDP2; changes the model in place
    model = replicate_model(model, device)             # or a whole model per process
    objective = wrap_ddp(objective)                    # DDP, unless the model is sharded

In a single-process run, nothing is wrapped or sharded. Only rank 0 needs the weights: on other ranks, the model may be
on torch's meta device, so that the host memory of a node holds one copy of it and not one per process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from weft.training.distributed import broadcast, broadcast_object, peer_errors, world_size


def wrap_ddp(module: nn.Module) -> nn.Module:
    """Wrap `module` in DistributedDataParallel; return it unchanged in a single process or if it is sharded.

    All ranks start with the parameters and buffers of rank 0. The gradient of a parameter that no rank used in a step
    stays None. The gradient buckets are fixed by the order of the parameters, so a resumed run sums in the same order
    and gives the same bits on a CPU, whatever the number of ranks.
    """
    if world_size() == 1 or is_sharded(module):
        return module
    with peer_errors():
        wrapped = DistributedDataParallel(module, find_unused_parameters=True, gradient_as_bucket_view=True)
    wrapped.broadcast_buffers = False  # a quantizer synchronizes its own buffers once per step
    return wrapped


def no_sync(module: nn.Module) -> AbstractContextManager[None]:
    """Return a context for all but the last micro-batch of a step, in which DDP sums no gradients.

    A sharded model sums them in every micro-batch: an unreduced gradient would be as large as the model.
    """
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


def replicate_model(model: nn.Module, device: str) -> nn.Module:
    """Move `model` to `device`, in place, with the parameters and buffers of rank 0."""
    if world_size() == 1:
        return model.to(device)
    _move_and_broadcast(model, device)
    return model


def shard_model(model: nn.Module, device: str, bf16: bool) -> nn.Module:
    """Shard `model` in place with FSDP2 (arXiv 2304.11277) and move it to `device`.

    Every rank holds a part of each parameter, gradient and optimizer state; a layer is gathered while it computes, with
    `bf16` in bf16. The layers are the entries of the model's module lists; the other modules stay gathered during a
    pass. Layers are moved one by one, so the model need not fit one device. All ranks start with the parameters of
    rank 0, and must call the model equally often with data that use the same parameters.
    """
    if world_size() == 1:
        return model.to(device)
    mesh = dist.init_device_mesh(device, (world_size(),))
    # Inputs are not cast: the residual stream has the dtype that autocast gives it.
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    with peer_errors():
        for layer in _layers(model):
            _move_and_broadcast(layer, device)
            fully_shard(layer, mesh=mesh, mp_policy=policy if bf16 else MixedPrecisionPolicy())
        _move_and_broadcast(model, device)
        fully_shard(model, mesh=mesh)
    return model


def is_sharded(module: nn.Module) -> bool:
    """Whether `module` contains a model that `shard_model` has sharded."""
    return any(isinstance(m, FSDPModule) for m in module.modules())


@contextmanager
def no_grad(model: nn.Module) -> Iterator[None]:
    """Disable gradients for forward passes without a backward pass, and reshard a sharded model afterwards."""
    with torch.no_grad():
        yield
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def full_state_dict(model: nn.Module) -> dict[str, Any]:
    """Return the state dict of a sharded model on the CPU of rank 0; an empty one on the other ranks."""
    with peer_errors():
        return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def backward(loss: Tensor) -> None:
    """Run the backward pass of this rank's part of a loss that is summed over all ranks.

    DDP and FSDP2 average gradients, so the loss is multiplied by the number of ranks.
    """
    if world_size() == 1:
        loss.backward()
        return
    with peer_errors(computing=True):
        (loss * world_size()).backward()


def clip_grad_norm(model: nn.Module, max_norm: float) -> Tensor:
    """Scale the gradients of `model` to a norm of at most `max_norm`; return their norm before.

    Both norms are those of the whole gradient, also of a sharded model, and equal on all ranks.
    """
    parameters = list(model.parameters())
    with peer_errors(computing=True):
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the entries of a model's module lists, not of lists inside them."""
    for child in model.children():
        yield from child if isinstance(child, nn.ModuleList) else _layers(child)


def _move_and_broadcast(module: nn.Module, device: str) -> None:
    """Move the tensors of `module` that are not sharded yet to `device`, with what they are on rank 0."""
    tensors = [t for t in (*module.parameters(), *module.buffers()) if not isinstance(t, DTensor)]
    of_rank_0 = broadcast_object([(tensor.dtype, tensor.requires_grad) for tensor in tensors])
    allocated: dict[Any, Any] = {}  # by the tensor on the meta device, whose device cannot change
    for tensor, (dtype, requires_grad) in zip(tensors, of_rank_0, strict=True):
        if tensor.is_meta:
            values = torch.empty_like(tensor, device=device, dtype=dtype)
            is_parameter = isinstance(tensor, nn.Parameter)
            allocated[tensor] = nn.Parameter(values, requires_grad) if is_parameter else values
        else:
            tensor.data = tensor.data.to(device)
        broadcast(allocated.get(tensor, tensor).data)
    for child in module.modules() if allocated else ():
        for named in (child._parameters, child._buffers):
            named.update({name: allocated[tensor] for name, tensor in named.items() if tensor in allocated})
