"""Token ids of texts from outside, in which no string is a control token.

    encode(tokenizer, "Write <|endoftext|> at the end.")        # does not contain the id of <|endoftext|>

A control token is a special token of the tokenizer, or an added token such as `<|0.00|>`, a timestamp of Whisper. Other
added tokens (runs of spaces, `<think>`) are text, as in the data that their models were trained on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CONTROL_FORM = re.compile(r"<\|.*\|>", re.DOTALL)


def encode(tokenizer: PreTrainedTokenizerBase, text: str, prefix: str = "", num_prefix_ids: int = 0) -> list[int]:
    """Return the ids of a text, without the special tokens that the tokenizer adds around it.

    `prefix` is put before the text, and its ids are removed again.
    """

    def ids_of(part: str) -> list[int]:
        encoded = tokenizer(prefix + part, add_special_tokens=False, split_special_tokens=True, verbose=False)
        return list(encoded.input_ids[num_prefix_ids:])

    ids, names = ids_of(text), control_tokens(tokenizer)
    split: set[str] = set()
    while new := {names[i] for i in ids if i in names} - split:
        split |= new  # `split_special_tokens` has no effect on tokens that are not special, nor in Unigram models
        places = "|".join(f"(?<={re.escape(name[0])})(?={re.escape(name[1:])})" for name in split if len(name) > 1)
        ids = [i for part in re.split(places, text) if part for i in ids_of(part)] if places else ids
    unknown = {tokenizer.unk_token_id} - {tokenizer.eos_token_id}  # stands for any character that has no id
    if len(text) > 1 and any(i in names and i not in unknown for i in ids):
        # The tokenizer normalizes another string, such as "</s>" in full-width characters, to a control token.
        half = len(text) // 2
        ids = [i for part in (text[:half], text[half:]) for i in encode(tokenizer, part, prefix, num_prefix_ids)]
    return ids


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> Mapping[int, str]:
    """Return the control tokens of a tokenizer by id."""
    return _control_tokens(tokenizer, len(tokenizer))


@lru_cache(maxsize=4)
def _control_tokens(tokenizer: PreTrainedTokenizerBase, size: int) -> Mapping[int, str]:
    special = set(tokenizer.all_special_ids)
    return {
        i: token.content
        for i, token in tokenizer.added_tokens_decoder.items()
        if token.special or i in special or _CONTROL_FORM.fullmatch(token.content)
    }
