"""Export of the part of a tokenizer that computes codes: `weft export-encoder TOKENIZER --out DIR`.

The result is an `encoder_only` tokenizer in bf16. Its weights are rounded, so a few codes differ from those of the
original: tokenize speech again with it. To transcribe its codes, train the other layers with `init` and
`lr_ratio.before = 0`, which changes no code.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from weft import artifacts
from weft.artifacts import Manifest
from weft.errors import UserError
from weft.plan import Draft, Plan, create
from weft.tokenizer.artifact import KIND
from weft.tokenizer.encoder import BottleneckWhisper, encoder_parameters
from weft.tokenizer.tokenizer import SpeechTokenizer


@dataclass(frozen=True)
class ExportConfig:
    """Export of the part of a tokenizer that computes codes."""

    tokenizer: Path
    """Tokenizer."""
    out: Path
    """Output directory."""


def run(config: ExportConfig) -> Manifest:
    """Create the artifact `config.out`. Raises UserError for a directory that is not a complete tokenizer."""
    manifest = artifacts.read_parent(config.tokenizer, KIND)

    def write(draft: Draft) -> None:
        encoder = encoder_of(SpeechTokenizer.from_pretrained(config.tokenizer, device="cpu"))
        encoder.write_files(draft.folder, torch.bfloat16)
        draft.counts["parameters"] = encoder_parameters(encoder.model.config, encoder.model.whisper_config)
        draft.counts |= {k: v for k, v in manifest.counts.items() if k not in ("parameters", "utterances")}

    return create(config.out, Plan(KIND, {"dtype": "bf16"}, {"tokenizer": manifest}), write)


def encoder_of(tokenizer: SpeechTokenizer) -> SpeechTokenizer:
    """Return the part of a tokenizer that computes codes; the tokenizer itself cannot be used any more.

    Raises UserError for an `encoder_only` tokenizer.
    """
    whole = tokenizer.model
    if whole.config.encoder_only:
        raise UserError("the tokenizer is encoder_only already: use it as it is")
    state = whole.state_dict()
    whole.whisper.config.encoder_layers = whole.config.layer
    encoder = BottleneckWhisper(replace(whole.config, encoder_only=True), whole.whisper)
    encoder.load_state_dict({name: state[name] for name in encoder.state_dict()})
    return SpeechTokenizer(encoder)
