"""Files of a tokenizer artifact, read without loading the model.

config = load_bottleneck_config("runs/demo/tokenizer")
vectors = load_codebook("runs/demo/tokenizer")             # (K, D)
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from weft.artifacts import loading, read
from weft.config import RENAMED
from weft.files import read_json_object
from weft.tokenizer.encoder import ENCODER_HZ, BottleneckConfig, new_quantizer
from weft.tokenizer.quantizer import QuantizerConfig

KIND = "tokenizer"
CONFIG, WEIGHTS = "bottleneck.json", "model.safetensors"


def load_bottleneck_config(folder: str | Path) -> BottleneckConfig:
    """Read the configuration of a tokenizer artifact. Raises UserError if it is damaged."""
    folder = Path(folder)
    read(folder, KIND)
    with loading(folder, "a tokenizer"):
        settings = read_json_object(folder / CONFIG)
        given = settings["quantizer"]
        if not isinstance(given, dict):
            raise ValueError(f"{CONFIG} has a quantizer that is not a JSON object")
        quantizer = {str(RENAMED.get(name, name)): value for name, value in given.items()}
        return BottleneckConfig(**{**settings, "quantizer": QuantizerConfig(**quantizer)})


def load_codebook(folder: str | Path) -> Tensor:
    """Read the vectors (K, D) of all codes of a tokenizer artifact. Raises UserError if it is damaged."""
    folder, config = Path(folder), load_bottleneck_config(folder)
    with loading(folder, "a tokenizer"), safe_open(folder / WEIGHTS, "pt") as weights:
        names = [name for name in weights.keys() if name.startswith("quantizer.")]  # noqa: SIM118 - not a mapping
        state = {name.removeprefix("quantizer."): weights.get_tensor(name) for name in names}
        if "codebook" in state:
            return state["codebook"].float()
        quantizer = new_quantizer(config.quantizer, len(state["up.weight"]))
        quantizer.load_state_dict(state)
        with torch.no_grad():
            return quantizer.decode(torch.arange(quantizer.num_codes))


def load_frame_rate(folder: str | Path) -> float:
    """Read the number of codes per second of a tokenizer artifact. Raises UserError if it is damaged."""
    return ENCODER_HZ / load_bottleneck_config(folder).pooling
