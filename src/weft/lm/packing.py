"""Documents one behind the other in a row: no padding, each document read as if it stood alone.

    batch = pack([(ids, loss), ...])
    losses = token_losses(model, batch)            # one for every trained id

Positions start again at 0 with each document, and attention stays inside it (`weft.lm.attention`).

Shapes: T ids of the row, S segments, N trained ids, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from weft.errors import UserError
from weft.lm.attention import attention_in_segments, segments
from weft.lm.cross_entropy import linear_cross_entropy


@dataclass(frozen=True)
class Batch:
    """A row of documents and what is to be predicted in it."""

    ids: Tensor
    """(1, T) int64."""
    positions: Tensor
    """(1, T) int64, the place of an id in its own segment."""
    lengths: tuple[int, ...]
    """(S,) ids of each segment, inside which attention stays: a document, or a row of them."""
    places: Tensor
    """(N,) int64, places in the row from which an id is predicted: the one before it."""
    targets: Tensor
    """(N,) int64, the ids predicted there."""
    documents: Tensor
    """(N,) int64, the number of the document that each belongs to, in the order given to `pack`."""

    @property
    def num_tokens(self) -> int:
        """Ids of the row."""
        return self.ids.numel()

    def __len__(self) -> int:
        """Trained ids, over which the losses are means."""
        return len(self.targets)


def check_rows(model: PreTrainedModel, row_tokens: int) -> None:
    """Raise UserError for rows longer than the positions of `model`, and for a model that takes no positions."""
    longest = getattr(model.config, "max_position_embeddings", row_tokens)
    if not 2 <= row_tokens <= longest:
        raise UserError(f"row_tokens is {row_tokens}: give 2 to {longest}, the positions of the model")
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise UserError(f"{type(model).__name__} takes no position ids, which packed rows need: take another base")


def pack(documents: Sequence[tuple[np.ndarray, np.ndarray]], row_tokens: int | None = None) -> Batch:
    """Lay documents, as (ids, loss mask), one behind the other, each a segment of its own.

    With `row_tokens`, segments are rows of at most so many ids, as few as first-fit finds for the longest first, and
    documents see those before them in their row. The first id of a document is never predicted.
    """
    lengths = np.array([len(ids) for ids, _ in documents])
    rows = [[i] for i in range(len(documents))] if row_tokens is None else _rows(lengths, row_tokens)
    order = [i for row in rows for i in row]
    starts = np.zeros(len(documents), np.int64)
    starts[order] = np.cumsum([0, *lengths[order][:-1]])
    in_segments = [int(lengths[row].sum()) for row in rows]
    trained = [np.flatnonzero(loss[1:]) for _, loss in documents]
    ids = np.concatenate([documents[i][0] for i in order]).astype(np.int64)
    places = np.concatenate([start + at for start, at in zip(starts, trained, strict=True)])
    return Batch(
        ids=torch.from_numpy(ids)[None],
        positions=torch.from_numpy(np.concatenate([np.arange(length) for length in in_segments]))[None],
        lengths=tuple(in_segments),
        places=torch.from_numpy(places),
        targets=torch.from_numpy(ids[places + 1]),
        documents=torch.from_numpy(np.repeat(np.arange(len(documents)), [len(at) for at in trained])),
    )


def _rows(lengths: np.ndarray, row_tokens: int) -> list[list[int]]:
    """Which documents are in each row, by first-fit, the longest first."""
    rows: list[list[int]] = []
    filled: list[int] = []
    for document in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[document])
        row = next((i for i, tokens in enumerate(filled) if tokens + length <= row_tokens), len(filled))
        if row == len(filled):
            rows.append([])
            filled.append(0)
        rows[row].append(document)
        filled[row] += length
    return rows


def token_losses(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Negative log-likelihood of every target of `batch`, (N,) float32, on the model's device.

    The head is asked in mid-forward for the N places alone. Where its products are the model's logits, losses take
    their place, for which all logits never exist at once (`weft.lm.cross_entropy`). Where a model does more to them
    (scaling, soft caps), or its head is no plain linear layer, the N rows of logits are made. Raises UserError for a
    model of which `pack` would make neighbours of documents.
    """
    head = model.get_output_embeddings()
    places, targets = batch.places.to(model.device), batch.targets.to(model.device)

    def losses_of(hidden: Tensor) -> Tensor:
        return linear_cross_entropy(hidden.flatten(0, -2)[places], head.weight, head.bias, targets)

    def keep_places(head: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        return inputs[0].flatten(0, -2)[places]

    way = _way(model)
    if way.logits_are_products:
        with _forward_as(head, losses_of):
            return _logits(model, batch, way.in_segments)
    hook = head.register_forward_pre_hook(keep_places)
    try:
        logits = _logits(model, batch, way.in_segments)
    finally:
        hook.remove()
    return nn.functional.cross_entropy(logits.float(), targets, reduction="none")


@contextmanager
def in_training(model: PreTrainedModel, recompute: bool, compiled: bool) -> Iterator[None]:
    """`model` for many calls of `token_losses` and their backward passes.

    With `recompute`, layers keep their inputs alone and run again in the backward pass (arXiv 1604.06174): less memory
    for a third more time. With `compiled`, each layer runs as torch.compile makes it, once for rows of any length.
    Raises UserError for a family that cannot recompute, or that would mix documents of one row.
    """
    way = _way(model)
    if recompute:
        if not model.supports_gradient_checkpointing:
            raise UserError(f"{type(model).__name__} cannot recompute its layers: set recompute to false")
        model.activation_checkpointing_enable({"use_reentrant": False})
    if compiled:
        for module in model.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.compile(dynamic=True)
    # Layers that run again in the backward pass need their attention there, too.
    with attention_in_segments(model) if way.in_segments else nullcontext():
        yield


def _logits(model: PreTrainedModel, batch: Batch, in_segments: bool) -> Tensor:
    ids, positions = batch.ids.to(model.device), batch.positions.to(model.device)
    where = segments(batch.lengths, model.device) if in_segments else {}
    with attention_in_segments(model) if in_segments else nullcontext():
        logits: Tensor = model(input_ids=ids, position_ids=positions, use_cache=False, **where).logits
    return logits


@dataclass(frozen=True)
class _Way:
    """How a model's losses are found."""

    in_segments: bool
    """By our attention; else by its own, which transformers masks where positions begin again."""
    logits_are_products: bool
    """The logits are what the head gives, untouched, and the head is a plain linear layer."""


_known: WeakKeyDictionary[nn.Module, _Way] = WeakKeyDictionary()  # asking costs forward passes, if short ones


@torch.no_grad()
def _way(model: PreTrainedModel) -> _Way:
    """Found by running two documents of a few ids, in one row and each alone, by the model's own attention.

    Raises UserError where no way gives both the same logits.
    """
    if model not in _known:
        head = model.get_output_embeddings()
        plain = type(head) is nn.Linear and "forward" not in vars(head)
        given: list[Tensor] = []

        def note(hidden: Tensor) -> Tensor:
            given.append(nn.functional.linear(hidden, head.weight, head.bias))
            return given[-1]

        ids = np.arange(9) % model.config.get_text_config().vocab_size
        parts = [ids[:5], ids[5:]]
        batch = pack([(part, np.ones(len(part), bool)) for part in parts])
        # Without dropout, which would draw, and a run that goes on from a checkpoint asks again; without autocast,
        # which would keep the cast weights that it made where no gradients are.
        with _in_evaluation(model), torch.autocast(model.device.type, enabled=False):
            alone = [model(torch.from_numpy(part)[None].to(model.device), use_cache=False).logits for part in parts]
            for in_segments in (True, False):
                try:
                    with _forward_as(head, note) if plain else nullcontext():
                        logits = _logits(model, batch, in_segments)
                except (NotImplementedError, TypeError, ValueError):
                    continue
                if _agree(logits, torch.cat(alone, dim=1)):
                    products = plain and logits is given[-1] and logits._version == 0
                    _known[model] = _Way(in_segments, products)
                    break
            else:
                raise UserError(f"{type(model).__name__} mixes documents that stand in one row: take another base")
    return _known[model]


def _agree(logits: Tensor, expected: Tensor) -> bool:
    tolerance = 0.1 if logits.dtype.itemsize < 4 else 1e-3
    return bool((logits - expected).abs().max() <= tolerance * expected.float().std())


@contextmanager
def _in_evaluation(model: nn.Module) -> Iterator[None]:
    in_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in in_training:
            module.training = True


@contextmanager
def _forward_as(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """`module` with another forward pass; hooks around it stay, and with them weights that are gathered there."""
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
