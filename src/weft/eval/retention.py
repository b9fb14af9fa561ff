"""Bits per byte of text under a causal language model, which are comparable between vocabularies.

    found = bits_per_byte(model, vocab, texts, max_tokens=1024)         # (bits, bytes) of each text

A text is cut into windows of at most `max_tokens` ids, each after the start of a document, so that the first ids of a
window are less likely than in a longer context. Compare models with the same windows only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from weft import progress
from weft.eval.model import Vocab
from weft.lm.packing import check_seq_len, pack, token_losses

_BATCH_TOKENS = 4096


@torch.no_grad()
def bits_per_byte(
    model: PreTrainedModel, vocab: Vocab, texts: Sequence[str], max_tokens: int
) -> list[tuple[float, int]]:
    """Return the bits and the bytes of UTF-8 of each text.

    Raises UserError if the windows are longer than the model's positions.
    """
    check_seq_len(model, max_tokens)
    model.eval()
    bits, found = np.zeros(len(texts)), [*_windows(vocab, texts, max_tokens)]
    with progress.bar("text", len(found)) as advance:
        for batch in _batches(found):
            packed = pack([window for _, window in batch])
            losses = token_losses(model, packed).double().cpu().numpy()
            of_window = np.bincount(packed.documents.numpy(), losses, minlength=len(batch))
            np.add.at(bits, [text for text, _ in batch], of_window / math.log(2))
            advance(len(batch))
    return [(float(b), len(text.encode())) for b, text in zip(bits, texts, strict=True)]


_Window = tuple[int, tuple[np.ndarray, np.ndarray]]  # the text, and ids with the mask of those that count


def _windows(vocab: Vocab, texts: Sequence[str], max_tokens: int) -> Iterator[_Window]:
    """Yield the windows of all texts: the start of a document, which does not count, and ids."""
    start = vocab.document_start_ids if len(vocab.document_start_ids) else np.array([vocab.eos_id])
    size = max_tokens - len(start)
    for text, ids in enumerate(vocab.text_ids(t) for t in texts):
        for first in range(0, len(ids), size):
            part = ids[first : first + size]
            yield text, (np.concatenate([start, part]), np.repeat([False, True], [len(start), len(part)]))


def _batches(windows: Sequence[_Window]) -> Iterator[list[_Window]]:
    """Yield windows in groups of about `_BATCH_TOKENS` ids."""
    batch: list[_Window] = []
    for window in windows:
        batch.append(window)
        if sum(len(ids) for _, (ids, _) in batch) >= _BATCH_TOKENS:
            yield batch
            batch = []
    if batch:
        yield batch
