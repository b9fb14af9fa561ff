import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.lm.families import FAMILIES
from weft.lm.text_bytes import text_bytes
from weft.vocab import SpeechVocab, extend_tokenizer

KINDS = ("llama2", "llama3", "qwen2", "glm", "gemma", "gpt2")
VOCABS = {name: SpeechVocab.of(extend_tokenizer(FAMILIES[name][2](), 16)) for name in KINDS}
BYTES = {name: text_bytes(vocab.tokenizer) for name, vocab in VOCABS.items()}
# SentencePiece's sign for a space is decoded as one. Qwen's tokenizer composes characters first.
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\u2581")).map(
    lambda text: unicodedata.normalize("NFC", text)
)


@pytest.mark.parametrize("name", KINDS)
@given(
    text=TEXTS | st.sampled_from(["The cat sat on the mat.", " the  cat\n\n", "猫が座った 🐈", "<|user|> <s> <0x41>"])
)
def test_the_bytes_of_the_ids_of_a_text_add_up_to_its_utf8(name, text):
    ids = VOCABS[name].text_ids(text)
    assert BYTES[name][ids].sum() == len(text.encode())


@given(text=TEXTS)
def test_a_space_that_the_tokenizer_adds_is_counted(text):
    ids = VOCABS["llama2"].tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
    assert BYTES["llama2"][ids].sum() - len(text.encode()) == (1 if text and text[0] != " " else 0)


@pytest.mark.parametrize("name", KINDS)
def test_speech_and_control_tokens_have_no_bytes(name):
    vocab = VOCABS[name]
    control = [*vocab.codes_to_ids(range(16)), vocab.begin_of_audio_id, vocab.eos_id, *vocab.role_start_ids.values()]
    assert not BYTES[name][np.array(control)].any()
    assert len(BYTES[name]) == vocab.size


def test_the_tokens_of_other_tokenizers_are_decoded():
    pieces = ["[UNK]", "a", "the", "cat", "##s", "na", "##ï", "##ve"]
    words = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    words.pre_tokenizer, words.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    tokenizer.add_tokens(["naïf"])
    for text in ("the cats", "naïve cat", "cats the naïf cats"):
        ids = tokenizer(text).input_ids
        assert text_bytes(tokenizer)[ids].sum() == len(text.encode()) + ("naïf" not in text)  # a space before each word


def test_a_unigram_model_has_the_spaces_of_sentencepiece():
    pieces = [("<unk>", 0.0), ("\u2581the", -1.0), ("\u2581cat", -1.5), ("s", -2.0), ("\u2581", -3.0), ("é", -3.0)]
    words = Tokenizer(models.Unigram(pieces, unk_id=0))
    words.pre_tokenizer, words.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    text = "the cats és"
    assert text_bytes(tokenizer)[tokenizer(text).input_ids].sum() == len(f" {text}".encode())
