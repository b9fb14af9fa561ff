"""The Whisper that training begins with: a Hugging Face folder, or one from nothing, of random weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase, WhisperConfig, WhisperForConditionalGeneration

from weft import artifacts
from weft.errors import UserError
from weft.tokenizer.encoder import BottleneckConfig, BottleneckWhisper
from weft.tokenizer.recipe import WhisperShape
from weft.tokenizer.text import SPECIAL, Prompt, text_tokenizer
from weft.tokenizer.tokenizer import SpeechTokenizer


def from_nothing(shape: WhisperShape, model: BottleneckConfig, texts: Sequence[str]) -> SpeechTokenizer:
    """A Whisper of that shape with random weights, whose text tokenizer is made from `texts`."""
    words = text_tokenizer(texts, shape.vocab_size)
    whisper = WhisperForConditionalGeneration(config_of_shape(shape, len(words)))
    return SpeechTokenizer(BottleneckWhisper(model, whisper), words)


def config_of_shape(shape: WhisperShape, vocab_size: int) -> WhisperConfig:
    """The configuration of a Whisper from nothing. Raises UserError for a shape that is none."""
    if shape.width % shape.heads:
        raise UserError(f"whisper.width is {shape.width}: choose a multiple of whisper.heads, {shape.heads}")
    return WhisperConfig(
        vocab_size=vocab_size,
        num_mel_bins=shape.num_mels,
        d_model=shape.width,
        encoder_layers=shape.encoder_layers,
        decoder_layers=shape.decoder_layers,
        encoder_attention_heads=shape.heads,
        decoder_attention_heads=shape.heads,
        encoder_ffn_dim=4 * shape.width,
        decoder_ffn_dim=4 * shape.width,
        pad_token_id=SPECIAL.index("<pad>"),
        bos_token_id=SPECIAL.index("<s>"),
        eos_token_id=SPECIAL.index("</s>"),
        decoder_start_token_id=SPECIAL.index("<s>"),
        init_std=shape.width**-0.5,
    )


def from_whisper(folder: Path, model: BottleneckConfig) -> SpeechTokenizer:
    """A Hugging Face Whisper's weights and text tokenizer. Raises UserError as `load_whisper` does."""
    whisper, words = load_whisper(folder)
    return SpeechTokenizer(BottleneckWhisper(model, whisper), words)


def load_whisper(
    folder: Path, dtype: torch.dtype = torch.float32
) -> tuple[WhisperForConditionalGeneration, PreTrainedTokenizerBase]:
    """The model and the text tokenizer of a Hugging Face Whisper.

    Raises UserError for a folder that is none, and for weights that are missing or surplus.
    """
    with artifacts.loading(folder, "a Hugging Face Whisper"):
        whisper_config(folder)
        loaded: Any = WhisperForConditionalGeneration.from_pretrained(folder, dtype=dtype, output_loading_info=True)
        whisper, info = loaded
        if missing := sorted(info["missing_keys"]):
            raise UserError(f"{folder} lacks weights that its config.json asks for, {_some(missing)}: copy it again")
        if surplus := sorted(info["unexpected_keys"]):
            raise UserError(f"{folder} has weights that its config.json does not know, {_some(surplus)}: copy it again")
        return whisper, AutoTokenizer.from_pretrained(folder)


def load_prompt(folder: Path) -> Prompt:
    """How the transcripts of a Hugging Face Whisper begin. Raises UserError for a folder that is none."""
    config = whisper_config(folder)
    with artifacts.loading(folder, "a Hugging Face Whisper"):
        return Prompt.of(AutoTokenizer.from_pretrained(folder), config)


def whisper_config(folder: Path) -> WhisperConfig:
    """The configuration of a Hugging Face Whisper. Raises UserError for a folder that is none."""
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist: give the folder of a Hugging Face Whisper")
    with artifacts.loading(folder, "a Hugging Face Whisper"):
        kind = WhisperConfig.get_config_dict(folder)[0].get("model_type")
        if kind != "whisper":
            found = f"is of type {kind}" if kind else "has no config.json"
            raise UserError(f"{folder} is not a Hugging Face Whisper: it {found}")
        return WhisperConfig.from_pretrained(folder)


def _some(names: Sequence[str], most: int = 3) -> str:
    left = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + left
