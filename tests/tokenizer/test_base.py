import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import WhisperConfig

from tests.tokenizer.conftest import save_whisper
from weft.errors import UserError
from weft.tokenizer.base import load_prompt, load_whisper
from weft.tokenizer.encoder import BottleneckConfig, kept_parameters


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_whisper(tmp_path / "whisper")


def change(folder: Path, without: tuple[str, ...] = (), and_also: tuple[str, ...] = ()) -> None:
    weights = load_file(folder / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if name not in without}
    save_file(kept | {name: torch.zeros(2) for name in and_also}, folder / "model.safetensors", {"format": "pt"})


def test_a_whole_folder_loads(folder: Path) -> None:
    whisper, words = load_whisper(folder)
    assert whisper.config.decoder_start_token_id == words.convert_tokens_to_ids("<|startoftranscript|>")
    assert set(load_prompt(folder).languages) == {"en", "zh"}


def test_weights_that_are_missing_are_named(folder: Path) -> None:
    change(folder, without=("model.encoder.conv1.bias", "model.encoder.layers.0.fc1.weight"))
    with pytest.raises(UserError, match=r"lacks weights.* model\.encoder\.conv1\.bias, model\.encoder\.layers\.0\.fc1"):
        load_whisper(folder)


def test_weights_that_are_surplus_are_named(folder: Path) -> None:
    change(folder, and_also=tuple(f"model.encoder.layers.{i}.fc1.weight" for i in range(3, 8)))
    with pytest.raises(UserError, match=r"does not know, model\.encoder\.layers\.3.*layers\.5\.fc1\.weight and 2 more"):
        load_whisper(folder)


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    settings = json.loads((folder / "config.json").read_text()) | {"num_mel_bins": 128}
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="does not load as a Hugging Face Whisper"):
        load_whisper(folder)


@pytest.mark.parametrize(
    ("files", "why"),
    [
        (None, "does not exist"),
        ({}, "not a Hugging Face Whisper"),
        ({"config.json": '{"model_type": "llama"}'}, "is of type llama"),
        ({"config.json": "{"}, "does not load"),
    ],
)
def test_other_folders_are_refused(tmp_path: Path, files: dict[str, str] | None, why: str) -> None:
    if files is not None:
        (tmp_path / "x").mkdir()
        for name, text in files.items():
            (tmp_path / "x" / name).write_text(text)
    for load in (load_whisper, load_prompt):
        with pytest.raises(UserError, match=why):
            load(tmp_path / "x")


def test_the_kept_half_of_the_papers_whisper_is_as_large_as_published() -> None:
    large_v3 = WhisperConfig(
        vocab_size=51866, num_mel_bins=128, d_model=1280, encoder_layers=32, decoder_layers=32,
        encoder_attention_heads=20, decoder_attention_heads=20, encoder_ffn_dim=5120, decoder_ffn_dim=5120,
    )  # fmt: skip
    assert kept_parameters(BottleneckConfig(layer=16), large_v3) == 343_599_360
