"""Bytes of text per token id, for losses that are comparable between vocabularies.

num_bytes = text_bytes(tokenizer)
num_bytes[ids].sum()                       # for the ids of a text, its length in UTF-8
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

_SPACE = "\u2581"  # SentencePiece's space
_BYTE = re.compile("<0x[0-9A-F]{2}>")


def text_bytes(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Return the bytes of UTF-8 of each id, (V,) int64; 0 for special tokens.

    Part of a character counts its own bytes. The sum over the ids of a text is its length, except for a space that some
    tokenizers add or remove at the start, and for the tokenizer's normalization.
    """
    ids: dict[str, int] = tokenizer.get_vocab()
    num_bytes = np.zeros(max(ids.values()) + 1, np.int64)
    tokens, numbers = list(ids), list(ids.values())
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    decoder = "" if backend is None or backend.decoder is None else backend.decoder.__getstate__().decode()
    if "ByteLevel" in decoder:
        num_bytes[numbers] = [len(token) for token in tokens]  # one character per byte
    elif _SPACE in decoder:
        num_bytes[numbers] = [1 if _BYTE.fullmatch(t) else _size(t.replace(_SPACE, " ")) for t in tokens]
    else:
        before = tokenizer("a", add_special_tokens=False).input_ids  # the first id of a word may be decoded differently
        texts: Any = tokenizer.batch_decode([before, *([*before, i] for i in numbers)])
        num_bytes[numbers] = [_size(text) - _size(texts[0]) for text in texts[1:]]
    for i, added in tokenizer.added_tokens_decoder.items():  # literal text
        num_bytes[i] = 0 if added.special else _size(added.content)
    num_bytes[tokenizer.all_special_ids] = 0
    return num_bytes


def _size(text: str) -> int:
    return len(text.encode(errors="replace"))
