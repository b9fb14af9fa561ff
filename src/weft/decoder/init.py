"""Decoders that training starts from, or imitates.

    decoder = load_base(folder, config.flow, mel, "init")          # checked to have the shape of the new one
    start_from(flow, decoder.flow)

A table of speakers is kept for speakers of the same names in the same order. Otherwise, the new model starts with the
weights of an unknown speaker.
"""

from __future__ import annotations

from pathlib import Path

import torch

from weft.decoder.decoder import PublishedDecoder, SpeechDecoder
from weft.decoder.flow import FlowConfig, FlowDecoder
from weft.decoder.mel import MelConfig
from weft.errors import UserError

_SHAPE = (
    "width", "heads", "encoder_layers", "estimator_layers", "context_codes", "prompt_codes", "block_codes",
)  # fmt: skip


def load_base(folder: Path, flow: FlowConfig, mel: MelConfig) -> SpeechDecoder:
    """Load a decoder whose weights fit a new one. Raises UserError if its shape or mel spectrogram differs."""
    decoder = SpeechDecoder.from_pretrained(folder, device="cpu")
    if isinstance(decoder, PublishedDecoder):
        raise UserError(f'{folder} is of kind = "published": set this kind, or give a decoder of kind = "block"')
    for name in _SHAPE:
        if (found := getattr(decoder.flow.config, name)) != (value := getattr(flow, name)):
            raise UserError(f"{folder} has {name} = {found}, but flow.{name} is {value}: give the same value")
    if decoder.mel != mel:
        raise UserError(f"{folder} has another mel spectrogram ({decoder.mel}): give the same settings or its vocoder")
    return decoder


@torch.no_grad()
def start_from(flow: FlowDecoder, base: FlowDecoder, same_speakers: bool) -> None:
    """Copy the weights of `base`, and its table of speakers if they are the same."""
    weights = {name: value for name, value in base.state_dict().items() if same_speakers or name != "speaker.weight"}
    flow.load_state_dict(weights, strict=False)
    if base.speaker is not None and not same_speakers:
        flow.code_positions.add_(base.speaker.weight[0])
        flow.estimator_positions.add_(base.speaker.weight[0])
