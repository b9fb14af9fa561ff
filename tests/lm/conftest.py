import numpy as np
import pytest

from weft.lm.model import LmConfig, new_lm
from weft.vocab import SpeechVocab, extend_tokenizer, train_text_tokenizer

NUM_CODES = 16
TEXTS = ["The cat sat on the mat, and the dog barked at the cat.", "A bird sang to the cat; the dog slept."] * 20
TINY = LmConfig(hidden=32, layers=2, heads=2, ffn=64, max_position_tokens=256)


@pytest.fixture(scope="session")
def text_tokenizer():
    return train_text_tokenizer(TEXTS, vocab_size=320)


@pytest.fixture(scope="session")
def vocab(text_tokenizer):
    return SpeechVocab.of(extend_tokenizer(text_tokenizer, NUM_CODES))


@pytest.fixture
def tiny_lm(vocab):
    return new_lm(TINY, vocab.tokenizer, seed=0).eval()


@pytest.fixture
def rng():
    return np.random.default_rng(0)
