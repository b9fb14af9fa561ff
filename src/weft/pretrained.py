"""Loading of Hugging Face models, configurations and text tokenizers from local directories.

    model = load_pretrained(AutoModelForCausalLM, folder, dtype=torch.float32)
    tokenizer = load_pretrained(AutoTokenizer, folder)

Every such call of the package is here, so that none of them executes code that comes with a model: Python files that
`auto_map` names, and attention kernels that `_attn_implementation` names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_ATTENTION_KEYS = ("_attn_implementation", "attn_implementation", "_attn_implementation_internal")
_ATTENTION = (None, "eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3")


def load_pretrained(kind: Any, folder: str | Path, **settings: Any) -> Any:
    """Return `kind.from_pretrained(folder, **settings)`, where `kind` is a class of transformers.

    Raises what transformers raises for damaged files and for a class that is defined in the directory, and ValueError
    for an unknown attention implementation.
    """
    path = Path(folder) / "config.json"
    if path.is_file():
        for name in _attention_names(json.loads(path.read_bytes())):
            if name not in _ATTENTION:
                raise ValueError(f"config.json has _attn_implementation {name!r}, which is not part of transformers")
    return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **settings)


def _attention_names(config: Any) -> Iterator[Any]:
    """Yield the attention implementations in a configuration and in those nested in it."""
    if isinstance(config, dict):
        for key, value in config.items():
            if key in _ATTENTION_KEYS:
                yield from value.values() if isinstance(value, dict) else (value,)
            else:
                yield from _attention_names(value)
