"""Packed sequences: documents concatenated without padding, each processed as if it were alone.

    batch = pack([(ids, loss), ...])
    losses = token_losses(model, batch)            # one per trained id

Positions restart at 0 with each document, and attention stays within it (`weft.lm.attention`).

Shapes: T ids of all documents, S segments, N trained ids, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from weft.data.batching import first_fit
from weft.errors import UserError
from weft.lm.attention import flash_attention_kwargs, segment_attention
from weft.training import distributed
from weft.training.cross_entropy import linear_cross_entropy


@dataclass(frozen=True)
class Batch:
    """Packed documents, and the ids to predict in them. Its length is the number of these ids."""

    ids: Tensor
    """(1, T) int64."""
    positions: Tensor
    """(1, T) int64, the position of an id in its segment."""
    lengths: tuple[int, ...]
    """(S,) number of ids in each segment of attention: a document, or a sequence of documents."""
    indices: Tensor
    """(N,) int64, indices into the row at which an id is predicted: the index before it."""
    targets: Tensor
    """(N,) int64, the predicted ids."""
    documents: Tensor
    """(N,) int64, the document that each belongs to, as an index into the argument of `pack`."""

    @property
    def num_tokens(self) -> int:
        """Number of ids in the row."""
        return self.ids.numel()

    @property
    def num_pairs(self) -> int:
        """Number of pairs of ids in the same segment, in both orders."""
        return 2 * int(self.positions.sum()) + self.num_tokens  # 1 + 3 + 5 + ... are the squares of the lengths

    def __len__(self) -> int:
        return len(self.targets)


def check_seq_len(model: PreTrainedModel, max_seq_len: int) -> None:
    """Raise UserError if `max_seq_len` exceeds the positions of `model`, or if it accepts no position ids.

    Also for a length from which the model would process packed documents in another way than each alone, which the
    comparison of short documents (`_packing_of`) cannot find.
    """
    longest = getattr(model.config, "max_position_embeddings", max_seq_len)
    if not 2 <= max_seq_len <= longest:
        raise UserError(f"max_seq_len is {max_seq_len}: give 2 to {longest}, the number of positions of the model")
    setting, limit = _packable_len(model.config)
    if limit is not None and max_seq_len > limit:
        raise UserError(f"max_seq_len is {max_seq_len}: give at most {limit}, the {setting} of the model, for packing")
    check_position_ids(model)


def check_position_ids(model: PreTrainedModel) -> None:
    """Raise UserError if `model` accepts no position ids, as Mamba and the decoder of a Whisper."""
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise UserError(f"{type(model).__name__} accepts no position ids, which packing needs: use another base")


def _packable_len(config: PretrainedConfig) -> tuple[str, int | None]:
    """Return the setting of a model that limits the length of packed documents, and that length; None without one.

    Chunked attention (Llama 4) counts its chunks from the start of the row. LongRoPE and dynamic NTK change the
    frequencies of all documents in a row if one of them is longer than the original number of positions.
    """
    text = config.get_text_config()
    limits = {"attention_chunk_size": getattr(text, "attention_chunk_size", None)}
    parameters = getattr(text, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, Mapping)]  # by type of layer
    for rope in nested or [parameters]:
        if rope.get("rope_type") in ("longrope", "dynamic"):
            original = rope.get("original_max_position_embeddings") or text.max_position_embeddings
            limits["original_max_position_embeddings"] = original
    found = {setting: limit for setting, limit in limits.items() if limit is not None}
    return min(found.items(), key=lambda item: item[1]) if found else ("", None)


def pack(documents: Sequence[tuple[np.ndarray, np.ndarray]], max_seq_len: int | None = None) -> Batch:
    """Concatenate documents, given as (ids, loss mask), each as a segment of its own.

    With `max_seq_len`, segments are sequences of documents of at most that many ids, packed by first-fit decreasing,
    and a document attends to those before it in its sequence. The first id of a document is never predicted.
    """
    lengths = np.array([len(ids) for ids, _ in documents])
    sequences = (
        [[i] for i in range(len(documents))] if max_seq_len is None else first_fit(lengths.tolist(), max_seq_len)
    )
    order = [i for sequence in sequences for i in sequence]
    starts = np.zeros(len(documents), np.int64)
    starts[order] = np.cumsum([0, *lengths[order][:-1]])
    segment_lengths = [int(lengths[sequence].sum()) for sequence in sequences]
    trained = [np.flatnonzero(loss[1:]) for _, loss in documents]
    ids = np.concatenate([documents[i][0] for i in order]).astype(np.int64)
    indices = np.concatenate([start + offsets for start, offsets in zip(starts, trained, strict=True)])
    return Batch(
        ids=torch.from_numpy(ids)[None],
        positions=torch.from_numpy(np.concatenate([np.arange(length) for length in segment_lengths]))[None],
        lengths=tuple(segment_lengths),
        indices=torch.from_numpy(indices),
        targets=torch.from_numpy(ids[indices + 1]),
        documents=torch.from_numpy(np.repeat(np.arange(len(documents)), [len(offsets) for offsets in trained])),
    )


def token_losses(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Return the negative log-likelihood of every target, (N,) float32, on the model's device.

    The head runs only at the N indices. If its products are the model's logits, they are never all in memory
    (`weft.training.cross_entropy`). If the model changes them (scaling, soft capping), or if the head is not a plain
    linear layer, the N rows of logits are computed. Raises UserError for a model whose attention crosses documents.
    """
    head = model.get_output_embeddings()
    indices, targets = batch.indices.to(model.device), batch.targets.to(model.device)

    def losses_of(hidden: Tensor) -> Tensor:
        return linear_cross_entropy(hidden.flatten(0, -2)[indices], head.weight, head.bias, targets)

    packing = _packing_of(model)
    if packing.max_len is not None and max(batch.lengths) > packing.max_len:
        check_seq_len(model, max(batch.lengths))
    if packing.logits_are_products:
        with _with_forward(head, losses_of):
            return _logits(model, batch, packing.by_segment)
    hook = head.register_forward_pre_hook(lambda _, inputs: inputs[0].flatten(0, -2)[indices])
    try:
        logits = _logits(model, batch, packing.by_segment)
    finally:
        hook.remove()
    return nn.functional.cross_entropy(logits.float(), targets, reduction="none")


@contextmanager
def training_mode(model: PreTrainedModel, activation_checkpointing: bool, compiled: bool) -> Iterator[None]:
    """Prepare `model` for calls of `token_losses` and their backward passes.

    With `activation_checkpointing` (arXiv 1604.06174), layers save only their inputs and are recomputed in the backward
    pass, which takes less memory and a third more time. With `compiled`, each layer is compiled by torch.compile, once
    for sequences of any length. Raises UserError for a model whose layers or attention do not support this.
    """
    # Only rank 0 needs the weights at this time (`weft.training.parallel`).
    packing = _verified[model] = distributed.compute_once(lambda: _packing_of(model))
    if activation_checkpointing:
        if not model.supports_gradient_checkpointing:
            raise UserError(f"{type(model).__name__} does not support activation_checkpointing: set it to false")
        model.activation_checkpointing_enable({"use_reentrant": False})
    if compiled:
        for module in model.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.compile(dynamic=True)
    # The context lasts until after the backward pass, because recomputed layers need their attention there.
    with segment_attention(model) if packing.by_segment else nullcontext():
        yield


def _logits(model: PreTrainedModel, batch: Batch, by_segment: bool) -> Tensor:
    ids, positions = batch.ids.to(model.device), batch.positions.to(model.device)
    kwargs = flash_attention_kwargs(batch.lengths, model.device) if by_segment else {}
    with segment_attention(model) if by_segment else nullcontext():
        logits: Tensor = model(input_ids=ids, position_ids=positions, use_cache=False, **kwargs).logits
    return logits


@dataclass(frozen=True)
class _Packing:
    """Properties of a model that determine how its losses are computed."""

    by_segment: bool
    """By `weft.lm.attention`; otherwise by its own attention, which transformers masks where positions restart."""
    logits_are_products: bool
    """Whether the logits are the unchanged output of the head, and the head is a plain linear layer."""
    max_len: int | None = None
    """Length of a document above which the model processes packed documents in another way than each alone."""


_verified: WeakKeyDictionary[nn.Module, _Packing] = WeakKeyDictionary()  # `_packing_of` takes forward passes


@torch.no_grad()
def _packing_of(model: PreTrainedModel) -> _Packing:
    """Compare two packed documents of a few ids with each of them alone, in the model's own attention.

    Raises UserError if neither way of packing gives the same logits.
    """
    if model not in _verified:
        head = model.get_output_embeddings()
        is_plain = type(head) is nn.Linear and "forward" not in vars(head)
        products: list[Tensor] = []

        def record(hidden: Tensor) -> Tensor:
            products.append(nn.functional.linear(hidden, head.weight, head.bias))
            return products[-1]

        ids = np.arange(9) % model.config.get_text_config().vocab_size
        parts = [ids[:5], ids[5:]]
        batch = pack([(part, np.ones(len(part), bool)) for part in parts])
        # Without dropout, whose random numbers would differ in a resumed run, and without autocast, which would cache
        # cast weights here, where they have no gradient.
        with _eval_mode(model), torch.autocast(model.device.type, enabled=False):
            alone = [model(torch.from_numpy(part)[None].to(model.device), use_cache=False).logits for part in parts]
            # In a row of several documents, the model's own chunks of attention would not begin with a document.
            chunked = getattr(model.config.get_text_config(), "attention_chunk_size", None) is not None
            for by_segment in (True,) if chunked else (True, False):
                try:
                    with _with_forward(head, record) if is_plain else nullcontext():
                        logits = _logits(model, batch, by_segment)
                except (NotImplementedError, TypeError, ValueError):
                    continue
                expected, tolerance = torch.cat(alone, dim=1), 0.1 if logits.dtype.itemsize < 4 else 1e-3
                if (logits - expected).abs().max() <= tolerance * expected.float().std():
                    unchanged = is_plain and logits is products[-1] and logits._version == 0
                    _verified[model] = _Packing(by_segment, unchanged, _packable_len(model.config)[1])
                    break
            else:
                raise UserError(f"{type(model).__name__} does not mask packed documents: use another base")
    return _verified[model]


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    were_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in were_training:
            module.training = True


@contextmanager
def _with_forward(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Replace the forward pass of `module`. Its hooks stay, and with them weights that FSDP gathers there."""
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
