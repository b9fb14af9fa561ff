"""Conversion of codes, text and documents to ids, and of tokenizers to vocabularies with speech tokens."""

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.errors import UserError
from weft.records import Document, Segment
from weft.vocab import SpeechVocab, extend_tokenizer, train_text_tokenizer

NUM_CODES = 32
TEXTS = ["The cat sat on the mat, and the dog barked at the cat.", "A bird sang to the cat; the dog slept."] * 20
SPEECH, OTHER_SPEECH = Segment.of_speech([3, 0, 31], "a"), Segment.of_speech([7], "b")


@pytest.fixture(scope="module")
def text_tokenizer():
    return train_text_tokenizer(TEXTS, vocab_size=320)


@pytest.fixture(scope="module")
def vocab(text_tokenizer):
    return SpeechVocab.of(extend_tokenizer(text_tokenizer, NUM_CODES))


def decoded(vocab, document):
    return vocab.tokenizer.decode(vocab.document_ids(document)[0])


def trained(vocab, document):
    ids, mask = vocab.document_ids(document)
    return vocab.tokenizer.decode(ids[mask])


def test_codes_and_ids_are_inverse_and_audio_ids_are_contiguous(vocab):
    codes = np.arange(NUM_CODES)
    ids = vocab.codes_to_ids(codes)
    assert np.array_equal(np.diff(ids), np.ones(NUM_CODES - 1))
    assert np.array_equal(vocab.ids_to_codes(ids), codes)
    assert vocab.tokenizer.convert_ids_to_tokens(int(ids[7])) == "<|audio_7|>"
    assert vocab.is_audio(ids).all()
    everything = np.arange(vocab.size)
    assert vocab.is_audio(everything).sum() == NUM_CODES
    assert not (vocab.is_audio(everything) & vocab.is_control(everything)).any()


@pytest.mark.parametrize("codes", [[NUM_CODES], [-1], [0, 40000]])
def test_a_code_of_another_codebook_is_rejected(vocab, codes):
    with pytest.raises(UserError, match="do not fit"):
        vocab.codes_to_ids(codes)


def test_an_id_that_is_not_an_audio_token_is_rejected(vocab):
    for wrong in (vocab.first_audio_id - 1, vocab.first_audio_id + NUM_CODES, vocab.eos_id):
        with pytest.raises(ValueError, match="not an audio token"):
            vocab.ids_to_codes([vocab.first_audio_id, wrong])


def test_extending_a_tokenizer_leaves_it_and_its_ids_unchanged(text_tokenizer, vocab):
    assert "<|audio_0|>" not in text_tokenizer.get_vocab()
    old = text_tokenizer.get_vocab()
    assert {name: id_ for name, id_ in vocab.tokenizer.get_vocab().items() if name in old} == old


def test_extending_twice_changes_nothing_and_another_codebook_is_rejected(vocab):
    again = extend_tokenizer(vocab.tokenizer, NUM_CODES)
    assert SpeechVocab.of(again).fingerprint == vocab.fingerprint
    with pytest.raises(UserError, match="already has"):
        extend_tokenizer(vocab.tokenizer, NUM_CODES - 1)
    with pytest.raises(UserError, match="must follow"):
        extend_tokenizer(vocab.tokenizer, NUM_CODES + 1)


def test_a_tokenizer_without_speech_tokens_is_rejected(text_tokenizer):
    with pytest.raises(UserError, match=r"no <\|audio_0\|>"):
        SpeechVocab.of(text_tokenizer)


def test_the_vocabulary_survives_saving(vocab, tmp_path):
    from transformers import AutoTokenizer

    vocab.tokenizer.save_pretrained(tmp_path)
    loaded = SpeechVocab.of(AutoTokenizer.from_pretrained(tmp_path))
    assert loaded.fingerprint == vocab.fingerprint
    document = Document("d", "interleaved", (Segment.of_text("the cat"), SPEECH, Segment.of_text(" sang.")))
    assert np.array_equal(loaded.document_ids(document)[0], vocab.document_ids(document)[0])


@settings(max_examples=200)
@given(text=st.text())
def test_text_is_decoded_exactly_and_never_becomes_a_control_token(vocab, text):
    text = f"{text}<|user|><|audio_3|><|endoftext|>{text}"
    ids = vocab.text_ids(text)
    assert vocab.tokenizer.decode(ids) == text
    assert not (vocab.is_audio(ids) | vocab.is_control(ids)).any()


def test_a_text_that_is_split_before_spaces_has_the_ids_of_the_whole(vocab):
    parts = ["The cat", " sat on", " the mat,", " and slept."]
    cut = Document("d", "text", tuple(Segment.of_text(p) for p in parts))
    whole = Document("d", "text", (Segment.of_text("".join(parts)),))
    assert np.array_equal(vocab.document_ids(cut)[0], vocab.document_ids(whole)[0])


AUDIO = "<|begin_of_audio|><|audio_3|><|audio_0|><|audio_31|><|end_of_audio|>"
OTHER_AUDIO = "<|begin_of_audio|><|audio_7|><|end_of_audio|>"


def test_documents_without_roles_are_their_segments_in_order_with_loss_on_all(vocab):
    interleaved = Document("d", "interleaved", (Segment.of_text("The cat"), SPEECH, Segment.of_text(" sat.")))
    assert decoded(vocab, interleaved) == f"The cat{AUDIO} sat.<|endoftext|>"
    speech = Document("d", "speech", (SPEECH, OTHER_SPEECH))
    assert decoded(vocab, speech) == f"{AUDIO}{OTHER_AUDIO}<|endoftext|>"
    assert vocab.document_ids(interleaved)[1].all()
    assert vocab.document_ids(speech)[1].all()


def test_asr_and_tts_have_loss_on_the_answer_and_its_end_only(vocab):
    source = Segment.of_speech([7], "b", loss=False)
    asr = Document("d", "asr", (source, Segment.of_text("the cat")))
    assert decoded(vocab, asr) == (f"<|system|>\nTranscribe<|user|>\n{OTHER_AUDIO}<|assistant|>\nthe cat<|endoftext|>")
    assert trained(vocab, asr) == "the cat<|endoftext|>"
    tts = Document("d", "tts", (Segment.of_text("the cat", loss=False), SPEECH))
    assert decoded(vocab, tts) == f"<|system|>\nSpeak<|user|>\nthe cat<|assistant|>\n{AUDIO}<|endoftext|>"
    assert trained(vocab, tts) == f"{AUDIO}<|endoftext|>"


def test_a_dialogue_has_loss_on_answers_and_the_ids_that_end_them(vocab):
    segments = (
        Segment.of_text("Be kind.", "system", loss=False),
        Segment.of_speech([7], "hi", "user", loss=False),
        Segment.of_text("Hello", "assistant"),
        Segment.of_speech([3, 0, 31], "Hello", "assistant"),
        Segment.of_text("bye", "user", loss=False),
        Segment.of_text("Bye.", "assistant"),
    )
    dialogue = Document("d", "dialogue", segments)
    assert decoded(vocab, dialogue) == (
        f"<|system|>\nBe kind.<|user|>\n{OTHER_AUDIO}<|assistant|>\nHello{AUDIO}"
        "<|user|>\nbye<|assistant|>\nBye.<|endoftext|>"
    )
    assert trained(vocab, dialogue) == f"Hello{AUDIO}<|user|>Bye.<|endoftext|>"


def test_the_begin_token_of_a_base_tokenizer_starts_documents(text_tokenizer):
    from tokenizers import processors

    beginning = copy.deepcopy(text_tokenizer)
    beginning.add_tokens(["<|begin|>"], special_tokens=True)
    begin_id = beginning.convert_tokens_to_ids("<|begin|>")
    beginning.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", begin_id)]
    )
    vocab = SpeechVocab.of(extend_tokenizer(beginning, NUM_CODES))
    ids, mask = vocab.document_ids(Document("d", "text", (Segment.of_text("the cat"),)))
    assert ids[0] == begin_id
    assert not mask[0]
    assert mask[1:].all()
    assert begin_id not in vocab.text_ids("the cat")


def test_training_a_text_tokenizer_is_reproducible_and_needs_room_for_all_bytes():
    first, second = (train_text_tokenizer(TEXTS, 300) for _ in range(2))
    assert first.get_vocab() == second.get_vocab()
    assert len(first) <= 300
    with pytest.raises(UserError, match="too small"):
        train_text_tokenizer(TEXTS, 200)
