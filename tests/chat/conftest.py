"""A bundle of small models with random weights."""

import numpy as np
import pytest
import torch

from tests.tokenizer.conftest import make_tokenizer
from weft.artifacts import Manifest
from weft.chat.bundle import Bundle
from weft.decoder.decoder import SpeechDecoder
from weft.decoder.flow import FlowConfig, FlowDecoder
from weft.decoder.mel import MelConfig
from weft.lm.model import KIND, LanguageModel, LmConfig, new_lm
from weft.vocab import SpeechVocab, extend_tokenizer, train_text_tokenizer

NUM_CODES = 32
TEXTS = ["The cat sat on the mat, and the dog barked at the cat.", "A bird sang to the cat; the dog slept."] * 20


def make_decoder():
    """Return a decoder with random weights, whose first block has four codes and the others ten."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        flow = FlowConfig(width=8, heads=2, encoder_layers=1, estimator_layers=1, euler_steps=2)
        mel = MelConfig()
        return SpeechDecoder(FlowDecoder(flow, NUM_CODES, 5 * mel.num_mels).eval(), mel)


def noise(num_samples, seed=7):
    return np.random.default_rng(seed).normal(size=num_samples).astype(np.float32) * 0.2


@pytest.fixture(scope="session")
def vocab():
    return SpeechVocab.of(extend_tokenizer(train_text_tokenizer(TEXTS, vocab_size=320), NUM_CODES))


@pytest.fixture(scope="session")
def make_bundle(vocab):
    """make_bundle(...) -> a bundle, by default of a language model with random weights."""
    tokenizer, decoder = make_tokenizer(), make_decoder()

    def make(seed=0, max_position_tokens=2048, model=None, kind=Bundle):
        shape = LmConfig(hidden=64, layers=2, heads=2, ffn=128, max_position_tokens=max_position_tokens)
        model = model or new_lm(shape, vocab.tokenizer, seed)
        return kind(tokenizer, decoder, LanguageModel(model.eval(), vocab, Manifest(KIND, "")))

    return make


@pytest.fixture(scope="session")
def bundle(make_bundle):
    return make_bundle()
