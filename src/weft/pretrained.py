"""Loading of Hugging Face models, configurations and text tokenizers from local directories.

    model = load_pretrained(AutoModelForCausalLM, folder, dtype=torch.float32)
    model = load_on_meta(AutoModelForCausalLM, folder, dtype=torch.float32)       # without weights
    tokenizer = load_pretrained(AutoTokenizer, folder)

Every such call of the package is here, so that none of them executes code that comes with a model: Python files that
`auto_map` names, and attention kernels that `_attn_implementation` names.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from weft.files import read_json_object

_ATTENTION_KEYS = ("_attn_implementation", "attn_implementation", "_attn_implementation_internal")
_ATTENTION = (None, "eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3")
# Settings that decide how much is allocated before the weights are read: none, or from 1 to about ten times the largest
# of published models. A Whisper without a text decoder has 0 layers in it.
_MAX_SIZES = (
    dict.fromkeys(("num_hidden_layers", "encoder_layers", "decoder_layers"), 2_000)
    | dict.fromkeys(("num_attention_heads", "encoder_attention_heads", "decoder_attention_heads"), 10_000)
    | dict.fromkeys(("hidden_size", "d_model", "intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim"), 1_000_000)
    | {"vocab_size": 100_000_000}
)
_MAY_BE_0 = ("decoder_layers", "decoder_attention_heads", "decoder_ffn_dim")


def load_pretrained(kind: Any, folder: str | Path, **settings: Any) -> Any:
    """Return `kind.from_pretrained(folder, **settings)`, where `kind` is a class of transformers.

    Raises what transformers raises for damaged files and for a class that is defined in the directory, and ValueError
    as `read_config` does.
    """
    if (Path(folder) / "config.json").is_file():
        read_config(Path(folder))
    with _errors():
        return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **settings)


def load_on_meta(kind: Any, folder: Path, **settings: Any) -> Any:
    """Return the model that `load_pretrained` gives, in evaluation mode on torch's meta device: no weights are read.

    `kind` is an auto class of transformers. Raises as `load_pretrained` does for its configuration.
    """
    from transformers import AutoConfig, GenerationConfig

    config = load_pretrained(AutoConfig, folder)
    with torch.device("meta"), _errors():
        model = kind.from_config(config, trust_remote_code=False, **settings)
    if (folder / "generation_config.json").is_file():
        model.generation_config = load_pretrained(GenerationConfig, folder)
    return model.eval()


def config_of(kind: Any, settings: dict[str, Any]) -> Any:
    """Return `kind.from_dict(settings)`, a configuration. Raises ValueError for settings that are not valid."""
    with _errors():
        return kind.from_dict(settings)


@contextmanager
def _errors() -> Iterator[None]:
    """Raise ValueError for errors that have no common class with those of damaged files."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except pickle.UnpicklingError as e:
        raise ValueError("its pickled weights contain more than tensors: use a copy in safetensors format") from e
    except StrictDataclassError as e:
        raise ValueError(f"config.json is not valid, {' '.join(str(e).split())}") from e
    except Exception as e:
        if type(e) is Exception:  # of tokenizers, which is written in Rust
            raise ValueError(str(e)) from e
        raise


def read_config(folder: Path) -> dict[str, Any]:
    """Return the settings in the config.json of a model directory.

    Raises OSError if it is missing, and ValueError for anything but a JSON object, a size that no model has, and an
    attention implementation that is not part of transformers.
    """
    config = read_json_object(folder / "config.json")
    for name, value in _settings(config):
        largest = _MAX_SIZES.get(name)
        if name in _ATTENTION_KEYS and not isinstance(value, dict) and value not in _ATTENTION:
            raise ValueError(f"config.json has _attn_implementation {value!r}, which is not part of transformers")
        if largest is not None and value is not None and not _is_size(value, largest, name in _MAY_BE_0):
            raise ValueError(f"config.json has {name} {value!r}, expected a whole number from 1 to {largest}")
    return config


def _is_size(value: Any, largest: int, may_be_0: bool) -> bool:
    return type(value) is int and (value > 0 or may_be_0) and 0 <= value <= largest


def _settings(config: dict[str, Any], name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield all settings of a configuration and of those nested in it; entries of an attention setting by its name."""
    for key, value in config.items():
        own_name = name if name in _ATTENTION_KEYS else key
        yield own_name, value
        if isinstance(value, dict):
            yield from _settings(value, own_name)
