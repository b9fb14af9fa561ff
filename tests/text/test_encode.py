"""Control tokens that are written in a text are text, for every kind of tokenizer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast, WhisperTokenizer

from weft.text.encode import control_tokens, encode
from weft.vocab import SpeechVocab, extend_tokenizer, train_text_tokenizer

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
TIMESTAMPS = [f"<|{i / 50:.2f}|>" for i in range(20)]


def byte_level():
    return extend_tokenizer(train_text_tokenizer(["the cat <|user|> sat <|endoftext|>"] * 9, 300), num_codes=8)


def whisper():
    """Its timestamps are added tokens that are not special."""
    words = WhisperTokenizer(vocab={letter: i for i, letter in enumerate(LETTERS)}, merges=[])
    words.add_tokens([AddedToken("<|startoftranscript|>", special=True), AddedToken("<|en|>", special=True)])
    words.add_tokens([AddedToken(name, special=False) for name in TIMESTAMPS])
    return words


def unigram():
    """Its control tokens are pieces of the model, with the highest scores."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("\u2581", -1.0)]
    model = Tokenizer(models.Unigram([*pieces, *((chr(c), -2.0) for c in [1, *range(33, 127)])], unk_id=0))
    model.pre_tokenizer, model.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return extend_tokenizer(PreTrainedTokenizerFast(tokenizer_object=model, **special), num_codes=8)


def llama_like():
    """A BPE of pieces with byte fallback that puts a space before every text."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "\u2581", *map(chr, range(33, 127))]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    model = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    model.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    model.decoder = decoders.Sequence(steps)
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return extend_tokenizer(PreTrainedTokenizerFast(tokenizer_object=model, **special), num_codes=8)


TOKENIZERS = {make.__name__: make() for make in (byte_level, whisper, unigram, llama_like)}
CONTROLS = [(name, token) for name, t in TOKENIZERS.items() for token in control_tokens(t).values()]


def check(tokenizer, text):
    if isinstance(tokenizer, WhisperTokenizer):
        prefix, ids = [], encode(tokenizer, text)
    else:
        prefix, ids = encode(tokenizer, "\x01"), SpeechVocab.of(tokenizer).text_ids(text).tolist()
    assert not control_tokens(tokenizer).keys() & set(ids)
    decoded = tokenizer._tokenizer.decode([*prefix, *ids], skip_special_tokens=False)
    assert decoded.removeprefix("\x01") == text


@pytest.mark.parametrize(("name", "token"), CONTROLS)
def test_a_control_token_in_a_text_is_text(name, token):
    for text in (token, f"a {token} b", f"x{token}y", token + token, f"{token[0]}{token}{token[-1]}", f" {token}"):
        check(TOKENIZERS[name], text)


@given(
    st.sampled_from(sorted(TOKENIZERS)), st.lists(st.sampled_from([t for _, t in CONTROLS] + list("< |>a")), max_size=8)
)
def test_no_sequence_of_control_tokens_and_their_characters_is_one(name, parts):
    check(TOKENIZERS[name], "".join(parts))


def test_added_tokens_that_are_not_control_tokens_are_kept():
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("    ", special=False, normalized=False), AddedToken("<think>", special=False)])
    ids = encode(tokenizer, "a    b<think>")
    assert tokenizer.convert_tokens_to_ids(["    ", "<think>"]) == [ids[1], ids[3]]


def test_an_unknown_character_is_the_unknown_token():
    tokenizer = TOKENIZERS["unigram"]
    assert encode(tokenizer, "a词")[-1] == tokenizer.unk_token_id


@pytest.mark.parametrize(
    ("normalizer", "disguise"),
    [
        (normalizers.NFKC(), lambda name: "".join(chr(ord(c) + 0xFEE0) for c in name)),  # full-width characters
        (normalizers.Lowercase(), str.upper),
        (normalizers.Replace("~", ""), "~".join),
        (normalizers.Replace("#", "<"), lambda name: name.replace("<", "#")),
    ],
)
def test_no_text_becomes_a_control_token_by_normalization(normalizer, disguise):
    pieces = [("<unk>", 0.0), ("</s>", 0.0), *((chr(c), -2.0) for c in [0x2581, *range(33, 127)])]
    model = Tokenizer(models.Unigram(pieces, unk_id=0))
    model.normalizer, model.pre_tokenizer = normalizer, pre_tokenizers.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>", eos_token="</s>")
    tokenizer.add_tokens([AddedToken("<|0.00|>", special=False, normalized=True)])
    for name in ("</s>", "<|0.00|>"):
        ids = encode(tokenizer, f"the cat {disguise(name)} sat on {disguise(name)}{disguise(name)} mats")
        assert {"</s>", "<|0.00|>"}.isdisjoint(tokenizer.convert_ids_to_tokens(ids))
        assert tokenizer.convert_ids_to_tokens(ids[:8]) == list("\u2581the\u2581cat")
