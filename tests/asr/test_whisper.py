import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import WhisperConfig

from tests.tokenizer.conftest import save_whisper
from weft.asr.whisper import Prompt, load_prompt, load_whisper
from weft.errors import UserError
from weft.tokenizer.init import train_text_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_whisper(tmp_path / "whisper")


def change_weights(folder: Path, remove: tuple[str, ...] = (), add: tuple[str, ...] = ()) -> None:
    weights = load_file(folder / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if name not in remove}
    save_file(kept | {name: torch.zeros(2) for name in add}, folder / "model.safetensors", {"format": "pt"})


def test_a_complete_directory_loads(folder: Path) -> None:
    whisper, text_tokenizer = load_whisper(folder)
    assert whisper.config.decoder_start_token_id == text_tokenizer.convert_tokens_to_ids("<|startoftranscript|>")
    assert set(load_prompt(folder).languages) == {"en", "zh"}


def test_missing_weights_are_named(folder: Path) -> None:
    change_weights(folder, remove=("model.encoder.conv1.bias", "model.encoder.layers.0.fc1.weight"))
    with pytest.raises(UserError, match=r"lacks weights.* model\.encoder\.conv1\.bias, model\.encoder\.layers\.0\.fc1"):
        load_whisper(folder)


def test_unexpected_weights_are_named(folder: Path) -> None:
    change_weights(folder, add=tuple(f"model.encoder.layers.{i}.fc1.weight" for i in range(3, 8)))
    with pytest.raises(
        UserError, match=r"unknown to its config\.json, model\.encoder\.layers\.3.*layers\.5\.fc1\.weight and 2 more"
    ):
        load_whisper(folder)


def test_weights_of_another_shape_are_rejected(folder: Path) -> None:
    settings = json.loads((folder / "config.json").read_text()) | {"num_mel_bins": 128}
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="cannot be loaded as a Hugging Face Whisper"):
        load_whisper(folder)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (None, "does not exist"),
        ({}, "is not a Hugging Face Whisper .it has no config.json.: give"),
        ({"config.json": '{"model_type": "llama"}'}, "its model type is llama"),
        ({"config.json": "{"}, "cannot be loaded"),
    ],
)
def test_other_directories_are_rejected(tmp_path: Path, files: dict[str, str] | None, reason: str) -> None:
    if files is not None:
        (tmp_path / "x").mkdir()
        for name, text in files.items():
            (tmp_path / "x" / name).write_text(text)
    for load in (load_whisper, load_prompt):
        with pytest.raises(UserError, match=reason):
            load(tmp_path / "x")


def test_the_prompt_of_a_multilingual_whisper_names_language_and_task(folder: Path) -> None:
    whisper, text_tokenizer = load_whisper(folder)
    prompt = Prompt.of(text_tokenizer, whisper.config)
    for name in ("en", "EN", "en-us", "en_GB", "English"):
        assert text_tokenizer.decode(prompt.ids(name)) == "<|startoftranscript|><|en|><|transcribe|><|notimestamps|>"
    assert prompt.ids("Mandarin") == prompt.ids("zh-CN")
    for wrong, reason in {
        "fr": "has no language 'fr': give one of en zh",
        None: "needs a language: add it to the manifest, or set `language`",
        "": "needs a language",
    }.items():
        with pytest.raises(UserError, match=reason):
            prompt.ids(wrong)
    for language, text in {"en": " a cat", "zh": "天气"}.items():
        ids = prompt.transcript_ids(text_tokenizer, text.strip(), language)
        assert text_tokenizer.decode(ids) == text
    ids = prompt.transcript_ids(text_tokenizer, "the end <|endoftext|>", "en")
    assert text_tokenizer.eos_token_id not in ids
    assert text_tokenizer.decode(ids) == " the end <|endoftext|>"


def test_the_prompt_of_an_english_whisper_names_no_language(folder: Path, tmp_path: Path) -> None:
    """Its text tokenizer may have language tokens all the same, as those of OpenAI's have."""
    text_tokenizer = load_whisper(folder)[1]
    english = Prompt.of(text_tokenizer, WhisperConfig(vocab_size=51_864))
    expected = "<|startoftranscript|><|notimestamps|>"
    assert text_tokenizer.decode(english.ids(None)) == text_tokenizer.decode(english.ids("fr")) == expected
    assert text_tokenizer.decode(english.transcript_ids(text_tokenizer, "a cat", None)) == " a cat"
    assert load_prompt(save_whisper(tmp_path / "english", multilingual=False)).languages == {}


def test_the_prompt_of_another_text_tokenizer_is_its_start_token() -> None:
    text_tokenizer = train_text_tokenizer(["a cat"], 20)
    prompt = Prompt.of(text_tokenizer, WhisperConfig(vocab_size=20, decoder_start_token_id=1))
    assert prompt.ids("en") == prompt.ids(None) == [1]
    ids = text_tokenizer("a cat", add_special_tokens=False).input_ids
    assert prompt.transcript_ids(text_tokenizer, "a cat", "en") == ids
