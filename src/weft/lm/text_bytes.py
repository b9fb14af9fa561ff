"""How many bytes of text each id of a tokenizer stands for: what losses of different vocabularies are compared by.

num_bytes = text_bytes(tokenizer)
num_bytes[ids].sum()                       # of the ids of a text, as many as it has in UTF-8
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

_SPACE = "\u2581"  # what SentencePiece writes for a space
_BYTE = re.compile("<0x[0-9A-F]{2}>")


def text_bytes(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Bytes of UTF-8 by id, (V,) int64: of part of a character the bytes that it is; of special tokens 0.

    The sum over a text's ids is its length, less or more the space that some tokenizers put before a text, and but for
    what a tokenizer normalises.
    """
    ids: dict[str, int] = tokenizer.get_vocab()
    num_bytes = np.zeros(max(ids.values()) + 1, np.int64)
    tokens, numbers = list(ids), list(ids.values())
    decoder = _decoder(tokenizer)
    if "ByteLevel" in decoder:
        num_bytes[numbers] = [len(token) for token in tokens]  # a letter for each byte
    elif _SPACE in decoder:
        num_bytes[numbers] = [1 if _BYTE.fullmatch(t) else _size(t.replace(_SPACE, " ")) for t in tokens]
    else:
        before = tokenizer("a", add_special_tokens=False).input_ids  # a word's first id may be decoded otherwise
        texts: Any = tokenizer.batch_decode([before, *([*before, i] for i in numbers)])
        num_bytes[numbers] = [_size(text) - _size(texts[0]) for text in texts[1:]]
    for i, added in tokenizer.added_tokens_decoder.items():  # written as they are
        num_bytes[i] = 0 if added.special else _size(added.content)
    num_bytes[tokenizer.all_special_ids] = 0
    return num_bytes


def _size(text: str) -> int:
    return len(text.encode(errors="replace"))


def _decoder(tokenizer: PreTrainedTokenizerBase) -> str:
    """How the tokenizer makes text of tokens, in words: empty where it does not tell."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    return "" if backend is None or backend.decoder is None else backend.decoder.__getstate__().decode()
