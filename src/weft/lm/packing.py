"""Documents side by side in rows: little padding, each document read as if it stood alone.

    batch = pack([(ids, loss), ...], row_tokens=256)
    losses = token_losses(model, batch)            # one for every trained id

Positions start again at 0 with each document, and that alone tells transformers to keep attention inside documents.
It does so for the attention kernels "sdpa", "eager" and "flex_attention"; weft loads models with "sdpa".

Shapes: B rows, R columns, N trained ids, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from weft.errors import UserError

_COLUMNS_MULTIPLE = 8  # row widths are rounded up to it, which kernels like


@dataclass(frozen=True)
class Batch:
    """Packed rows and what is to be predicted in them. Padding is id 0 at position 0, and attends only itself."""

    ids: Tensor
    """(B, R) int64."""
    positions: Tensor
    """(B, R) int64, the place of an id in its own document."""
    places: Tensor
    """(N,) int64, places in the flattened rows from which an id is predicted: the one before it."""
    targets: Tensor
    """(N,) int64, the ids predicted there."""
    documents: Tensor
    """(N,) int64, the number of the document that each belongs to, in the order given to `pack`."""
    num_tokens: int
    """Ids of the documents, padding left out."""

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


def pack(documents: Sequence[tuple[np.ndarray, np.ndarray]], row_tokens: int) -> Batch:
    """Lay documents, as (ids, loss mask) of at most `row_tokens` ids each, into as few rows as first-fit finds.

    The first id of a document has nothing before it and is never predicted.
    """
    lengths = np.array([len(ids) for ids, _ in documents])
    assert lengths.max() <= row_tokens, f"a document of {lengths.max()} ids does not fit rows of {row_tokens}"
    starts, num_rows, num_columns = _layout(lengths, row_tokens)
    ids = np.zeros((num_rows * num_columns,), np.int64)
    positions = np.zeros_like(ids)
    places, owners = [], []
    for number, ((document_ids, loss), start) in enumerate(zip(documents, starts, strict=True)):
        stop = start + len(document_ids)
        ids[start:stop] = document_ids
        positions[start:stop] = np.arange(len(document_ids))
        trained = np.flatnonzero(loss[1:])
        places.append(start + trained)
        owners.append(np.full(len(trained), number))
    where = np.concatenate(places)
    return Batch(
        ids=torch.from_numpy(ids.reshape(num_rows, num_columns)),
        positions=torch.from_numpy(positions.reshape(num_rows, num_columns)),
        places=torch.from_numpy(where),
        targets=torch.from_numpy(ids[where + 1]),
        documents=torch.from_numpy(np.concatenate(owners)),
        num_tokens=int(lengths.sum()),
    )


def _layout(lengths: np.ndarray, row_tokens: int) -> tuple[np.ndarray, int, int]:
    """Where each document starts in the flattened rows, the number of rows and of columns."""
    rows, offsets = np.zeros(len(lengths), np.int64), np.zeros(len(lengths), np.int64)
    filled: list[int] = []
    for document in np.argsort(-lengths, kind="stable"):
        length = int(lengths[document])
        row = next((i for i, tokens in enumerate(filled) if tokens + length <= row_tokens), len(filled))
        if row == len(filled):
            filled.append(0)
        rows[document], offsets[document] = row, filled[row]
        filled[row] += length
    num_columns = -(-max(filled) // _COLUMNS_MULTIPLE) * _COLUMNS_MULTIPLE
    return rows * num_columns + offsets, len(filled), num_columns


def token_losses(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Negative log-likelihood of every target of `batch`, (N,) float32, on the model's device.

    Logits are computed at the N places alone: the head is asked in mid-forward for those rows of the hidden states,
    so that whatever a model does to its logits (scaling, soft caps) still happens.
    """
    places = batch.places.to(model.device)

    def keep_places(head: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        return inputs[0].flatten(0, -2)[places]

    hook = model.get_output_embeddings().register_forward_pre_hook(keep_places)
    try:
        logits = model(
            input_ids=batch.ids.to(model.device), position_ids=batch.positions.to(model.device), use_cache=False
        ).logits
    finally:
        hook.remove()
    return nn.functional.cross_entropy(logits.float(), batch.targets.to(model.device), reduction="none")
