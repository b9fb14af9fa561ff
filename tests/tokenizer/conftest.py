import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, pre_tokenizers
from transformers import WhisperConfig, WhisperForConditionalGeneration, WhisperTokenizer

from tests.tokenizer.training import SENTENCES
from weft.audio import save
from weft.tokenizer.encoder import BottleneckConfig, BottleneckWhisper
from weft.tokenizer.init import train_text_tokenizer
from weft.tokenizer.quantizer import QuantizerConfig
from weft.tokenizer.tokenizer import SpeechTokenizer
from weft.voices.speak import Line, speak_lines

TEXTS = ["the cat", "cat sat", "on the mat", "mat", "the hat", "sat on", "a mat", "that cat sat on the hat"]


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
    """A tokenizer with random weights, blocks of 0.8 s, windows of 2.4 s, and a codebook of its own hidden states."""
    words = train_text_tokenizer(["the cat sat on the mat"], 40)
    given = {"layer": 2, "block_frames": 40, "log_mel_floor": "fixed", **settings}
    config = BottleneckConfig(**given, quantizer=QuantizerConfig(num_codes=32))
    model = BottleneckWhisper(config, tiny_whisper(len(words), window_frames=120)).eval()
    made = SpeechTokenizer(model, words)
    noise = torch.randn(32_000, generator=torch.Generator().manual_seed(1)).numpy()
    with torch.no_grad():
        hidden = model.to_bottleneck(made.features([noise], [len(noise)])[0][None])[0]
        model.quantizer.initialize(hidden, torch.Generator().manual_seed(2), iterations=1)
    return made


SETTINGS: list[dict[str, Any]] = [
    {},
    {"pooling": 2, "pooling_type": "max", "pooling_layer": 1, "block_frames": 24},
    {"pooling": 1, "block_frames": 50},
    {"block_frames": 0, "causal_convolution": False, "log_mel_floor": "window"},
    {"block_frames": 80, "causal_convolution": False, "pooling_layer": 1},
    {"block_frames": 0, "pooling_type": "max", "log_mel_floor": "window"},
    {"block_frames": 80, "pooling_type": "max", "pooling_layer": 1},  # 1.5 blocks per window
]


@cache
def shared_tokenizer(number: int) -> SpeechTokenizer:
    """The tokenizer with the settings of this number. Tests must not change it."""
    return make_tokenizer(**SETTINGS[number])


def noise(num_samples: int, seed: int = 0) -> np.ndarray:
    """Noise of changing loudness."""
    rng = np.random.default_rng(seed)
    loudness = np.abs(np.sin(np.arange(num_samples) / 2500 + seed)) * 0.2
    return (rng.normal(size=num_samples) * loudness).astype(np.float32)


def save_whisper(folder: Path, multilingual: bool = True, window_frames: int = 120) -> Path:
    """Write a Hugging Face Whisper with random weights and a text tokenizer of bytes; return its directory."""
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


def write_speech(folder: Path, num: int, seed: int = 0, rate_hz: int = 16_000) -> Path:
    """Write utterances of noise of 0.8 to 2.4 s with transcripts; return their directory."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    rows = []
    for i in range(num):
        noise = 0.1 * rng.standard_normal(int(rate_hz * rng.uniform(0.8, 2.4)), np.float32)
        save(folder / f"{i}.wav", noise, rate_hz)
        rows.append({"id": f"{folder.name}-{i}", "audio": f"{i}.wav", "text": TEXTS[i % len(TEXTS)]})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def tokenizer() -> SpeechTokenizer:
    return make_tokenizer()


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Spoken sentences to train on."""
    folder = tmp_path_factory.mktemp("corpus") / "speech"
    speak_lines([Line(f"u{i}", text, "espeak:en-us") for i, text in enumerate(SENTENCES)], folder)
    return folder
