import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.lm.families import FAMILIES, text_lm
from weft.lm.flops import ModelFlops, peak_flops
from weft.lm.lora import LoraConfig, adapt
from weft.lm.model import extend_lm
from weft.lm.packing import pack, token_losses
from weft.vocab import SpeechVocab


def a_document(length, trained=None):
    return np.arange(1, length + 1) % 50, np.arange(length) >= length - (trained or length)


@pytest.mark.parametrize("trained", [64, 10])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama3", "qwen2", "gpt2", "gemma"])
def test_it_counts_the_products_that_are_computed(family, tied, trained):
    """Those that torch counts, of whole rows: forward and backward, with the head at trained ids only."""
    model, _ = text_lm(family, tied)
    batch = pack([a_document(64, trained)] * 2)
    token_losses(model, batch)  # a model's first time has other products
    with FlopCounterMode(display=False) as counter:
        token_losses(model, batch).sum().backward()
    assert ModelFlops.of(model).of_batch(batch) == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_attention_is_counted_within_documents():
    model, _ = text_lm("llama3", True)
    flops = ModelFlops.of(model)
    short, long = pack([a_document(8)] * 8), pack([a_document(64)])
    assert short.num_tokens == long.num_tokens == 64
    of_heads = flops.head * (len(long) - len(short))
    assert flops.of_batch(long) - flops.of_batch(short) - of_heads == flops.attention * (64**2 - 8 * 8**2)


def test_of_frozen_weights_there_is_no_gradient():
    pytest.importorskip("peft")
    model, tokenizer = text_lm("llama3", False)
    vocab = SpeechVocab.of(extend_lm(model, tokenizer, 16, seed=0))
    whole = ModelFlops.of(model)
    adapted = ModelFlops.of(adapt(model, vocab, LoraConfig(rank=1), seed=0))
    rows = 16 + 2 + 3  # of the head, which train
    assert adapted.head == pytest.approx(whole.head * 4 / 6 + 6 * rows * model.config.hidden_size)
    assert whole.body * 4 / 6 < adapted.body < whole.body * 4 / 6 * 1.5
    assert adapted.attention == whole.attention


def test_every_family_is_counted():
    assert all(ModelFlops.of(text_lm(family, True)[0]).body > 0 for family in FAMILIES)


def test_the_peak_is_no_less_than_what_a_product_does():
    peak = peak_flops(torch.device("cpu"), half=False)
    assert 1e8 < peak < 1e14
