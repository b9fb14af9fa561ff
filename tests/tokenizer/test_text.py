from pathlib import Path

import pytest
from transformers import WhisperConfig

from tests.tokenizer.conftest import save_whisper
from weft.errors import UserError
from weft.tokenizer.base import load_prompt, load_whisper
from weft.tokenizer.text import Prompt, spoken_form, text_tokenizer

TEXTS = {
    "en": ["The cat's hat, no. 3!", "Ought cats to sit?"],
    "zh": ["今天天气很好,我们去公园吧。", "他说:“天气很好!”"],
    "ja": ["今日は天気がいいですね。", "ラーメンを食べました。"],
    "th": ["วันนี้อากาศดีมาก", "ผมกินข้าวที่บ้าน ๆ"],
    "hi": ["आज मौसम बहुत अच्छा है।", "किताब पढ़ो!"],
    "ko": ["오늘 날씨가 좋아요.", "밥을 먹었어요?"],
}


@pytest.mark.parametrize("language", TEXTS)
@pytest.mark.parametrize("vocab_size", [10, 60, 300])
def test_a_text_tokenizer_from_nothing_spells_what_is_heard(language: str, vocab_size: int) -> None:
    """In any script: nothing is unknown, and what comes back is the text without case and punctuation."""
    texts = TEXTS[language]
    words = text_tokenizer(texts, vocab_size)
    for text, heard in zip(texts, spoken_form(texts), strict=True):
        ids = words(text, add_special_tokens=False).input_ids
        assert words.unk_token_id not in ids
        assert words.decode(ids) == heard


@pytest.mark.parametrize(
    ("text", "heard"),
    [
        ("他说:“天气很好!”", "他说天气很好"),
        ("วันนี้อากาศดี", "วันนี้อากาศดี"),  # vowel signs and tone marks are heard
        ("किताब पढ़ो!", "किताब पढ़ो"),
        ("\uff21\uff22\u3000\uff11\uff12", "ab 12"),
    ],
)
def test_letters_that_are_heard_are_kept_in_any_script(text: str, heard: str) -> None:
    import unicodedata

    assert spoken_form([text]) == [unicodedata.normalize("NFKC", heard)]


def test_many_letters_make_a_large_alphabet() -> None:
    texts = ["".join(chr(0x4E00 + 20 * i + j) for j in range(20)) for i in range(150)]
    words = text_tokenizer(texts, vocab_size=600)
    assert len(words) == 3000 + 5  # and the special ones, and what stands for a space
    assert all(words.decode(words(t, add_special_tokens=False).input_ids) == t for t in texts)


def test_a_prompt_is_what_its_whisper_was_trained_with(tmp_path: Path) -> None:
    whisper, words = load_whisper(save_whisper(tmp_path / "whisper"))
    prompt = Prompt.of(words, whisper.config)
    for name in ("en", "EN", "en-us", "en_GB", "English"):
        assert words.decode(prompt.ids(name)) == "<|startoftranscript|><|en|><|transcribe|><|notimestamps|>"
    assert prompt.ids("Mandarin") == prompt.ids("zh-CN")
    for wrong, why in {"fr": "'fr' is none", None: "it has no language", "": "it has no language"}.items():
        with pytest.raises(UserError, match=why):
            prompt.ids(wrong)
    for language, text in {"en": " a cat", "zh": "天气"}.items():
        ids = prompt.transcript_ids(words, text.strip(), language)
        assert words.decode(ids) == text

    english = Prompt.of(words, WhisperConfig(vocab_size=51_864))  # its text tokenizer has languages, and it has none
    assert words.decode(english.ids(None)) == words.decode(english.ids("fr")) == "<|startoftranscript|><|notimestamps|>"
    assert words.decode(english.transcript_ids(words, "a cat", None)) == " a cat"
    assert load_prompt(save_whisper(tmp_path / "english", multilingual=False)).languages == {}

    made = text_tokenizer(["a cat"], 20)
    nothing = Prompt.of(made, WhisperConfig(vocab_size=20, decoder_start_token_id=1))
    assert nothing.ids("en") == nothing.ids(None) == [1]
    assert nothing.transcript_ids(made, "a cat", "en") == made("a cat", add_special_tokens=False).input_ids
