from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, pre_tokenizers
from transformers import WhisperConfig, WhisperForConditionalGeneration, WhisperTokenizer

from weft.tokenizer.encoder import BottleneckConfig, BottleneckWhisper
from weft.tokenizer.quantizer import QuantizerConfig
from weft.tokenizer.text import text_tokenizer
from weft.tokenizer.tokenizer import SpeechTokenizer


def tiny_whisper(vocab_size: int = 40, window_frames: int = 1500) -> WhisperForConditionalGeneration:
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=vocab_size,
        num_mel_bins=80,
        d_model=16,
        encoder_layers=3,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_source_positions=window_frames,
        max_target_positions=24,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        init_std=0.3,
    )
    return WhisperForConditionalGeneration(config).eval()


def make_tokenizer(**settings: Any) -> SpeechTokenizer:
    """A tokenizer with random weights, blocks of 0.8 s and windows of 2.4 s, and a codebook of states it meets."""
    words = text_tokenizer(["the cat sat on the mat"], 40)
    given = {"layer": 2, "block_frames": 40, "log_mel_floor": "fixed", **settings}
    config = BottleneckConfig(**given, quantizer=QuantizerConfig(num_codes=32))
    model = BottleneckWhisper(config, tiny_whisper(len(words), window_frames=120)).eval()
    made = SpeechTokenizer(model, words)
    noise = torch.randn(32_000, generator=torch.Generator().manual_seed(1)).numpy()
    with torch.no_grad():
        hidden = model.first_half(made.features(noise)[None])[0]
        model.quantizer.initialise(hidden, torch.Generator().manual_seed(2), iterations=1)
    return made


def save_whisper(folder: Path, multilingual: bool = True, window_frames: int = 120) -> Path:
    """A folder as Hugging Face's Whispers are, with random weights, and letters as bytes for text tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = WhisperTokenizer(vocab={letter: i for i, letter in enumerate(letters)}, merges=[])
    languages = ["<|en|>", "<|zh|>", "<|transcribe|>"] if multilingual else []
    special = ["<|startoftranscript|>", *languages, "<|notimestamps|>"]
    words.add_tokens([AddedToken(name, special=True) for name in special])
    whisper = tiny_whisper(len(words), window_frames)
    ids = {"eos_token_id": words.eos_token_id, "pad_token_id": words.eos_token_id}
    ids["decoder_start_token_id"] = words.convert_tokens_to_ids("<|startoftranscript|>")
    for settings in (whisper.config, whisper.generation_config):
        for name, value in ids.items():
            setattr(settings, name, value)
    whisper.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.fixture
def tokenizer() -> SpeechTokenizer:
    return make_tokenizer()
