"""The tokenizer that training starts from: a Hugging Face Whisper, random weights, or another tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, WhisperConfig, WhisperForConditionalGeneration

from weft.artifacts import loading
from weft.asr.whisper import load_whisper
from weft.errors import UserError
from weft.text.normalize import label_normalizer
from weft.tokenizer.config import WhisperShape
from weft.tokenizer.encoder import BottleneckConfig, BottleneckWhisper
from weft.tokenizer.quantizer import VectorQuantizer
from weft.tokenizer.tokenizer import SpeechTokenizer

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>")  # the first ids of a text tokenizer trained here


def from_whisper(folder: Path, model: BottleneckConfig, on_meta: bool = False) -> SpeechTokenizer:
    """Return a tokenizer with the weights of a Hugging Face Whisper; `on_meta`, without them, on torch's meta device.

    The positions after the quantizer are pooled as the frames are, so that the layers there receive positions that they
    were trained with. (The released GLM-4-Voice tokenizer starts from the first rows of Whisper's table. Pooled rows
    give a lower error rate after the same steps.) Raises UserError as `load_whisper` does.
    """
    whisper, text_tokenizer = load_whisper(folder, on_meta=on_meta)
    tokenizer = SpeechTokenizer(BottleneckWhisper(model, whisper), text_tokenizer)
    if model.positions_after:
        after, frames = tokenizer.model.positions_after.weight, whisper.model.encoder.embed_positions.weight
        with torch.no_grad():
            after.copy_(torch.stack([rows.mean(0) for rows in frames.split(model.pooling)]))
    return tokenizer


def from_tokenizer(folder: Path, model: BottleneckConfig, base: Path | None) -> SpeechTokenizer:
    """Return a tokenizer with the weights and codes of another, and the layers that it lacks from the Whisper `base`.

    Raises UserError for one with other settings of the bottleneck, and for an `encoder_only` one without `base`.
    """
    other = SpeechTokenizer.from_pretrained(folder, device="cpu")
    found = other.model.config
    for name, value in _architecture(model).items():
        if (has := _architecture(found)[name]) != value:
            raise UserError(f"{folder} has {name} = {has}, but model.{name} is {value}: give the same value")
    if not found.encoder_only:
        tokenizer = SpeechTokenizer(BottleneckWhisper(model, other.model.whisper), other.text_tokenizer)
    elif base:
        tokenizer = from_whisper(base, model)
    else:
        raise UserError(f"{folder} is encoder_only: give the Whisper that it was trained from as base")
    with loading(folder, "a tokenizer"):
        tokenizer.model.load_state_dict(other.model.state_dict(), strict=False)
    if found.encoder_only and isinstance(tokenizer.model.quantizer, VectorQuantizer):
        tokenizer.model.quantizer.reset_averages()
    return tokenizer


def _architecture(config: BottleneckConfig) -> dict[str, object]:
    """Return the settings that the weights of a tokenizer depend on, by name."""
    settings = {name: value for name, value in asdict(config).items() if name not in ("quantizer", "encoder_only")}
    quantizer = {f"quantizer.{name}": getattr(config.quantizer, name) for name in ("kind", "num_codes", "levels")}
    return settings | quantizer


def from_scratch(shape: WhisperShape, model: BottleneckConfig, texts: Iterable[str]) -> SpeechTokenizer:
    """Return a tokenizer with random weights, and a text tokenizer trained on `texts`."""
    text_tokenizer = train_text_tokenizer(texts, shape.vocab_size)
    whisper = WhisperForConditionalGeneration(whisper_config_of(shape, len(text_tokenizer)))
    return SpeechTokenizer(BottleneckWhisper(model, whisper), text_tokenizer)


def whisper_config_of(shape: WhisperShape, vocab_size: int) -> WhisperConfig:
    """Return the configuration of a Whisper of this shape. Raises UserError if `heads` does not divide `width`."""
    if shape.width % shape.heads:
        raise UserError(f"whisper.width is {shape.width}: give a multiple of whisper.heads, {shape.heads}")
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
        pad_token_id=SPECIAL_TOKENS.index("<pad>"),
        bos_token_id=SPECIAL_TOKENS.index("<s>"),
        eos_token_id=SPECIAL_TOKENS.index("</s>"),
        decoder_start_token_id=SPECIAL_TOKENS.index("<s>"),
        init_std=shape.width**-0.5,
    )


def train_text_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a BPE tokenizer on the label form of `texts`; with few distinct words, its tokens are whole words."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.normalizer = label_normalizer()
    bpe.pre_tokenizer = pre_tokenizers.Metaspace()
    bpe.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=list(SPECIAL_TOKENS), show_progress=False)
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
