import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import WhisperForConditionalGeneration

from tests.tokenizer.conftest import save_whisper
from weft.errors import UserError
from weft.text.normalize import label_form
from weft.tokenizer.config import WhisperShape
from weft.tokenizer.encoder import BottleneckConfig
from weft.tokenizer.init import from_scratch, from_tokenizer, from_whisper, train_text_tokenizer, whisper_config_of
from weft.tokenizer.quantizer import QuantizerConfig, VectorQuantizer
from weft.tokenizer.tokenizer import SpeechTokenizer

TEXTS = {
    "en": ["The cat's hat, no. 3!", "Ought cats to sit?"],
    "zh": ["今天天气很好,我们去公园吧。", "他说:“天气很好!”"],
    "ja": ["今日は天気がいいですね。", "ラーメンを食べました。"],
    "th": ["วันนี้อากาศดีมาก", "ผมกินข้าวที่บ้าน ๆ"],
    "hi": ["आज मौसम बहुत अच्छा है।", "किताब पढ़ो!"],
    "ko": ["오늘 날씨가 좋아요.", "밥을 먹었어요?"],
}
SHAPE = WhisperShape(width=16, encoder_layers=2, decoder_layers=1, heads=2, vocab_size=30)


@pytest.mark.parametrize("language", TEXTS)
@pytest.mark.parametrize("vocab_size", [10, 60, 300])
def test_a_trained_text_tokenizer_decodes_to_the_label_form(language: str, vocab_size: int) -> None:
    """In any script, no character is unknown, and decoding gives the text without case and punctuation."""
    texts = TEXTS[language]
    text_tokenizer = train_text_tokenizer(texts, vocab_size)
    for text, label in zip(texts, label_form(texts), strict=True):
        ids = text_tokenizer(text, add_special_tokens=False).input_ids
        assert text_tokenizer.unk_token_id not in ids
        assert text_tokenizer.decode(ids) == label


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("他说:“天气很好!”", "他说天气很好"),
        ("วันนี้อากาศดี", "วันนี้อากาศดี"),  # vowel signs and tone marks are pronounced
        ("किताब पढ़ो!", "किताब पढ़ो"),
        ("\uff21\uff22\u3000\uff11\uff12", "ab 12"),
    ],
)
def test_the_label_form_keeps_pronounced_characters_in_any_script(text: str, label: str) -> None:
    assert label_form([text]) == [unicodedata.normalize("NFKC", label)]


def test_the_vocabulary_has_every_character_even_beyond_its_size() -> None:
    texts = ["".join(chr(0x4E00 + 20 * i + j) for j in range(20)) for i in range(150)]
    text_tokenizer = train_text_tokenizer(texts, vocab_size=600)
    assert len(text_tokenizer) == 3000 + 5  # and the special tokens and the word boundary
    ids = [text_tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    assert text_tokenizer.batch_decode(ids) == texts


def test_random_weights_have_the_given_shape_and_the_size_of_the_text_tokenizer() -> None:
    tokenizer = from_scratch(SHAPE, BottleneckConfig(layer=1), ["the cat"])
    whisper = tokenizer.model.whisper_config
    assert (whisper.d_model, whisper.encoder_layers, whisper.decoder_layers) == (16, 2, 1)
    assert whisper.vocab_size == len(tokenizer.text_tokenizer)
    assert whisper.eos_token_id == tokenizer.text_tokenizer.eos_token_id
    assert tokenizer.prompt.ids(None) == [tokenizer.text_tokenizer.bos_token_id]


def test_the_width_must_be_a_multiple_of_the_heads() -> None:
    with pytest.raises(UserError, match=r"whisper\.width is 16: give a multiple of whisper\.heads, 3"):
        whisper_config_of(WhisperShape(width=16, heads=3), 30)


@pytest.mark.parametrize("on_meta", [False, True])
def test_all_weights_of_a_whisper_are_trained_except_its_first_position_table(tmp_path: Path, on_meta: bool) -> None:
    loaded = from_whisper(save_whisper(tmp_path / "whisper"), BottleneckConfig(layer=1), on_meta).model
    for model in (loaded, from_scratch(SHAPE, BottleneckConfig(layer=1), ["the cat"]).model):
        fixed = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
        assert fixed == ["whisper.model.encoder.embed_positions.weight"]
        assert model.positions_after.weight.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])  # large Whispers are published in fp16
def test_the_weights_of_a_whisper_are_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    base = save_whisper(tmp_path / "whisper")
    whisper = WhisperForConditionalGeneration.from_pretrained(base, dtype=dtype)
    whisper.save_pretrained(base)
    loaded = from_whisper(base, BottleneckConfig(layer=2)).model.whisper.state_dict()
    assert all(torch.equal(loaded[name], weight.float()) for name, weight in whisper.state_dict().items())


def test_positions_after_the_quantizer_of_a_whisper_are_pooled_as_its_frames(tmp_path: Path) -> None:
    model = from_whisper(save_whisper(tmp_path / "whisper"), BottleneckConfig(layer=1)).model
    positions = model.whisper.model.encoder.embed_positions.weight
    assert torch.allclose(model.positions_after.weight[3], positions[12:16].mean(0))
    assert model.positions_after.weight.requires_grad


def tokenizer_at(folder: Path, encoder_only: bool) -> Path:
    """Save a tokenizer of the tiny Whisper with a random codebook."""
    model = BottleneckConfig(layer=1, encoder_only=encoder_only, quantizer=QuantizerConfig(num_codes=8))
    tokenizer = from_whisper(save_whisper(folder / "whisper"), model)
    tokenizer.model.quantizer.codebook.normal_()
    if encoder_only:
        tokenizer = SpeechTokenizer(tokenizer.model, None)
    tokenizer.save_pretrained(folder / "tokenizer")
    return folder / "tokenizer"


@pytest.mark.parametrize("encoder_only", [False, True])
def test_a_tokenizer_is_continued_with_its_weights_and_codes(tmp_path: Path, encoder_only: bool) -> None:
    folder = tokenizer_at(tmp_path, encoder_only)
    config = BottleneckConfig(layer=1, quantizer=QuantizerConfig(num_codes=8, decay=0.5, commitment=2.0))
    tokenizer = from_tokenizer(folder, config, tmp_path / "whisper")
    saved = SpeechTokenizer.from_pretrained(folder, device="cpu")
    state = tokenizer.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in saved.model.state_dict().items())
    assert tokenizer.model.config == config
    assert tokenizer.transcribe([[0, 1, 2]], ["en"])
    quantizer = tokenizer.model.quantizer
    assert isinstance(quantizer, VectorQuantizer)
    if encoder_only:
        assert torch.allclose(quantizer.ema_sum / quantizer.ema_count[:, None], quantizer.codebook)
        with pytest.raises(UserError, match="is encoder_only: give the Whisper that it was trained from as base"):
            from_tokenizer(folder, config, None)


@pytest.mark.parametrize(
    ("change", "problem"),
    [({"pooling": 2}, "pooling = 4, but model.pooling is 2"), ({"quantizer": QuantizerConfig(num_codes=4)}, "8")],
)
def test_a_tokenizer_with_other_settings_is_rejected(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    config = BottleneckConfig(layer=1, quantizer=QuantizerConfig(num_codes=8))
    with pytest.raises(UserError, match=problem):
        from_tokenizer(tokenizer_at(tmp_path, False), replace(config, **change), None)
