import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, GPT2Config, Qwen3Config

from weft.lm.packing import pack, token_losses

VOCAB = 50


def documents_of(rng, lengths):
    return [(rng.integers(0, VOCAB, n), rng.random(n) < 0.7) for n in lengths]


def configs():
    shape = {"vocab_size": VOCAB, "num_attention_heads": 2, "num_hidden_layers": 2}
    llama_like = {"hidden_size": 32, "intermediate_size": 48, "num_key_value_heads": 1, "head_dim": 16}
    return [
        Qwen3Config(**shape, **llama_like, tie_word_embeddings=True),
        GPT2Config(vocab_size=VOCAB, n_embd=32, n_head=2, n_layer=2, n_positions=64),
    ]


@pytest.mark.parametrize("config", configs(), ids=lambda c: c.model_type)
def test_packed_losses_are_those_of_each_document_alone(config, rng):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    documents = documents_of(rng, [5, 30, 2, 17, 1, 40, 9])
    packed = pack(documents, row_tokens=40)
    losses = token_losses(model, packed)
    assert len(packed.ids) < len(documents)
    for number, (ids, loss) in enumerate(documents):
        logits = model(torch.from_numpy(ids)[None]).logits[0, :-1]
        alone = torch.nn.functional.cross_entropy(logits, torch.from_numpy(ids)[1:], reduction="none")
        torch.testing.assert_close(losses[packed.documents == number], alone[loss[1:]], atol=1e-5, rtol=1e-5)


def test_a_document_changes_nothing_for_its_neighbours(tiny_lm, rng):
    documents = documents_of(rng, [20, 20])
    before = pack(documents, row_tokens=40)
    after = pack([documents[0], (rng.integers(0, VOCAB, 20), documents[1][1])], row_tokens=40)
    first = before.documents == 0
    assert before.ids.shape == (1, 40)
    assert torch.equal(token_losses(tiny_lm, before)[first], token_losses(tiny_lm, after)[first])


def test_gradients_flow_through_the_chosen_places(tiny_lm, rng):
    token_losses(tiny_lm, pack(documents_of(rng, [20, 11]), row_tokens=40)).mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in tiny_lm.parameters())


@settings(max_examples=100)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30), seed=st.integers(0, 2**32))
def test_packing_keeps_every_document_whole_and_predicts_every_trained_id_once(lengths, seed):
    documents = documents_of(np.random.default_rng(seed), lengths)
    batch = pack(documents, row_tokens=40)
    assert batch.ids.shape[1] <= 40
    assert batch.num_tokens == sum(lengths)
    flat_ids, flat_positions = batch.ids.flatten(), batch.positions.flatten()
    for number, (ids, loss) in enumerate(documents):
        mine = batch.documents == number
        assert torch.equal(batch.targets[mine], torch.from_numpy(ids[1:][loss[1:]]))
        places = batch.places[mine]
        assert torch.equal(flat_ids[places], torch.from_numpy(ids[:-1][loss[1:]]))
        assert torch.equal(flat_positions[places], torch.from_numpy(np.flatnonzero(loss[1:])))
    assert len(set(batch.places.tolist())) == len(batch.places)


def test_rows_are_well_filled(rng):
    batch = pack(documents_of(rng, rng.integers(40, 251, 28)), row_tokens=512)
    assert batch.num_tokens / batch.ids.numel() > 0.85
