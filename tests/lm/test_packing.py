import copy
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Cohere2Config,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    Lfm2Config,
    Llama4TextConfig,
    LlamaConfig,
    MistralConfig,
    PhiConfig,
    Qwen3Config,
    StableLmConfig,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from tests.ranks import in_ranks
from weft.errors import UserError
from weft.lm import packing
from weft.lm.packing import check_seq_len, pack, token_losses, training_mode
from weft.training import cross_entropy, distributed, parallel

from .families import CASES, DOCUMENTS, all_cases, extended_lm

VOCAB = 50


def documents_of(rng, lengths):
    return [(rng.integers(0, VOCAB, n), rng.random(n) < 0.7) for n in lengths]


def assert_losses_of_each_alone(model, documents):
    packed = pack(documents)
    losses = token_losses(model, packed)
    for number, (ids, loss) in enumerate(documents):
        logits = model(torch.from_numpy(ids)[None]).logits[0, :-1]
        alone = torch.nn.functional.cross_entropy(logits, torch.from_numpy(ids)[1:], reduction="none")
        torch.testing.assert_close(losses[packed.documents == number], alone[loss[1:]], atol=1e-5, rtol=1e-5)


def configs():
    shape = {"vocab_size": VOCAB, "num_attention_heads": 2, "num_hidden_layers": 2}
    llama_like = {"hidden_size": 32, "intermediate_size": 48, "num_key_value_heads": 1, "head_dim": 16}
    return [
        Qwen3Config(**shape, **llama_like, tie_word_embeddings=True),
        GPT2Config(vocab_size=VOCAB, n_embd=32, n_head=2, n_layer=2, n_positions=64),
    ]


@pytest.mark.parametrize("config", configs(), ids=lambda c: c.model_type)
def test_packed_documents_have_the_losses_of_each_alone(config, rng):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    documents = documents_of(rng, [5, 30, 2, 17, 1, 40, 9])
    assert_losses_of_each_alone(model, documents)


@all_cases
def test_packed_documents_of_every_family_have_the_losses_and_gradients_of_each_alone(case):
    model, vocab = extended_lm(*case)
    documents = [vocab.document_ids(d) for d in DOCUMENTS]
    check_seq_len(model, max(len(ids) for ids, _ in documents))
    batch = pack(documents)
    packed = token_losses(model, batch)
    packed.sum().backward()
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for number, (ids, loss) in enumerate(documents):
        whole = torch.from_numpy(ids)[None]
        labels = whole.where(torch.from_numpy(loss), -100)
        labels[:, 0] = -100
        num_trained = int((labels >= 0).sum())
        alone = model(input_ids=whole, labels=labels).loss * num_trained
        torch.testing.assert_close(packed[batch.documents == number].sum(), alone, rtol=1e-4, atol=1e-4)
        alone.backward()
    for p, grad in zip(model.parameters(), found, strict=True):
        torch.testing.assert_close(grad, p.grad, rtol=1e-3, atol=1e-3 * float(p.grad.abs().max()))


def loss_and_norm(family, tied):
    """Return the loss of all documents on every rank, and the norm of its gradient."""
    model, vocab = extended_lm(family, tied)
    model = parallel.shard_model(model, "cpu", bf16=False)
    assert parallel.is_sharded(model) == (distributed.world_size() > 1)
    loss = token_losses(model, pack([vocab.document_ids(d) for d in DOCUMENTS], max_seq_len=64)).mean()
    parallel.backward(loss / distributed.world_size())
    return loss.item(), parallel.clip_grad_norm(model, 1e9).item()


def losses_and_norms():
    return [loss_and_norm(*case) for case in CASES]


def test_every_family_can_be_sharded(tmp_path):
    for case, found, expected in zip(CASES, in_ranks(losses_and_norms, tmp_path)[1], losses_and_norms(), strict=True):
        assert found == pytest.approx(expected, rel=1e-5), case


def models():
    """Return configurations by how logits are computed, and whether they are the unchanged products of the head."""
    shape = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "pad_token_id": 0,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    return [
        ("tied", LlamaConfig(**shape, tie_word_embeddings=True), True),
        ("untied", LlamaConfig(**shape, tie_word_embeddings=False), True),
        ("biased", PhiConfig(**{**shape, "num_key_value_heads": 2}), True),
        ("capped", Gemma2Config(**shape, head_dim=16, final_logit_softcapping=2.0), False),
        ("scaled up", CohereConfig(**shape, logit_scale=3.0), False),
        ("scaled down", GraniteConfig(**shape, logits_scaling=4.0), False),
    ]


@pytest.mark.parametrize(("name", "config", "plain"), models(), ids=lambda x: x if isinstance(x, str) else "")
@pytest.mark.parametrize("bf16", [True, False])
def test_losses_and_gradients_equal_those_of_the_logits_of_the_model(name, config, plain, bf16, rng, monkeypatch):
    """In blocks of the vocabulary if the logits are the products of the head, and otherwise."""
    monkeypatch.setattr(cross_entropy, "_BLOCK_LOGITS", {"cpu": 0})
    monkeypatch.setattr(cross_entropy, "_MIN_BLOCK_IDS", 7)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    head = model.get_output_embeddings()
    torch.nn.init.normal_(head.weight, std=0.3)
    if head.bias is not None:
        torch.nn.init.normal_(head.bias)
    packed = pack(documents_of(rng, [20, 11, 9]))

    def by_logits():
        logits = model(input_ids=packed.ids, position_ids=packed.positions, use_cache=False).logits
        logits = logits.flatten(0, 1)[packed.indices].float()
        return torch.nn.functional.cross_entropy(logits, packed.targets, reduction="none")

    def gradients_of(losses_of):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            losses = losses_of()
        losses.mean().backward()
        return losses, {k: p.grad.clone() for k, p in model.named_parameters()}

    close = {"atol": 2e-2, "rtol": 2e-2} if bf16 else {"atol": 1e-6, "rtol": 1e-5}
    losses, gradients = gradients_of(lambda: token_losses(model, packed))
    expected, expected_gradients = gradients_of(by_logits)
    torch.testing.assert_close(losses, expected, **close)
    for k, gradient in expected_gradients.items():
        scale = float(gradient.abs().max()) or 1.0
        torch.testing.assert_close(gradients[k] / scale, gradient / scale, **close)
    assert packing._packing_of(model) == packing._Packing(by_segment=True, logits_are_products=plain)
    assert "forward" not in vars(head)


def test_the_first_losses_of_a_model_use_no_random_numbers(rng):
    """The dropout of a resumed run is that of an uninterrupted one."""
    config = GPT2Config(vocab_size=VOCAB, n_embd=32, n_head=2, n_layer=1, n_positions=64)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").train()
    packed = pack(documents_of(rng, [20, 11]))
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(token_losses(model, packed))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_without_targets_there_are_no_losses_and_gradients_are_zero(tiny_lm):
    losses = token_losses(tiny_lm, pack([(np.arange(5), np.zeros(5, bool))]))
    (losses.sum() / max(1, len(losses))).backward()
    assert losses.shape == (0,)
    assert not any(p.grad.any() for p in tiny_lm.parameters())


def test_a_document_does_not_change_the_losses_of_others(tiny_lm, rng):
    documents = documents_of(rng, [20, 20])
    before = pack(documents)
    after = pack([documents[0], (rng.integers(0, VOCAB, 20), documents[1][1])])
    first = before.documents == 0
    assert torch.equal(token_losses(tiny_lm, before)[first], token_losses(tiny_lm, after)[first])


def test_with_max_seq_len_a_document_sees_those_before_it_in_its_sequence(tiny_lm, rng):
    documents = documents_of(rng, [20, 19, 30, 3])
    losses = token_losses(tiny_lm, batch := pack(documents, max_seq_len=40))
    assert batch.lengths == (33, 39)  # of documents 2 and 3, 0 and 1
    joined = np.concatenate([documents[0][0], documents[1][0]])
    seen = np.concatenate([np.zeros(21, bool), documents[1][1][1:]])
    expected = token_losses(tiny_lm, pack([(joined, np.append(seen[:20], seen[20:]))]))
    torch.testing.assert_close(losses[batch.documents == 1], expected)


def random_lm(config):
    model = AutoModelForCausalLM.from_config(config)
    for p in model.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.3)  # so that attention between documents would change losses
    return model


def test_a_model_that_does_not_mask_packed_documents_is_rejected():
    model = random_lm(BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=1, n_head=2))
    with pytest.raises(UserError, match="BloomForCausalLM accepts no position ids"):
        check_seq_len(model, 40)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = random_lm(
        Lfm2Config(vocab_size=VOCAB, intermediate_size=48, layer_types=["conv", "full_attention"], **shape)
    )  # its convolutions ignore the bounds of documents
    with pytest.raises(UserError, match="Lfm2ForCausalLM does not mask packed documents: use another base"):
        packing._packing_of(model)


def test_a_family_that_does_not_pass_segments_to_its_attention_is_masked(rng):
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = random_lm(StableLmConfig(vocab_size=VOCAB, intermediate_size=48, **shape)).eval()
    assert not packing._packing_of(model).by_segment
    documents = documents_of(rng, [20, 11, 9])
    batch = pack(documents)
    losses = token_losses(model, batch)
    for number, document in enumerate(documents):
        torch.testing.assert_close(losses[batch.documents == number], token_losses(model, pack([document])))


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("config", configs(), ids=lambda c: c.model_type)
def test_checkpointed_and_compiled_layers_have_the_same_gradients(config, compiled, checkpointing, rng, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))  # the default takes a minute
    config = copy.deepcopy(config)
    config.num_hidden_layers = 1 if compiled else 2
    model = random_lm(config).train()
    batches = [pack(documents_of(rng, lengths)) for lengths in ([5, 30, 2], [17, 40, 9, 1])]
    expected = gradients_of(model, batches)
    runs = []
    layer = next(m for m in model.modules() if isinstance(m, GradientCheckpointingLayer))
    layer.get_submodule("mlp").register_forward_pre_hook(lambda *_: runs.append(layer))
    with training_mode(model, checkpointing, compiled):
        found = gradients_of(model, batches)
    if not compiled:  # the hook of a compiled layer runs only during compilation
        assert len(runs) == (4 if checkpointing else 2)
    for gradient, other in zip(expected, found, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-4 * float(gradient.abs().max()))


def gradients_of(model, batches):
    model.zero_grad()
    for batch in batches:
        torch.manual_seed(0)  # for the dropout of GPT-2
        token_losses(model, batch).sum().backward()
    return [p.grad.clone() for p in model.parameters()]


def test_all_parameters_have_gradients(tiny_lm, rng):
    token_losses(tiny_lm, pack(documents_of(rng, [20, 11]))).mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in tiny_lm.parameters())


@settings(max_examples=100)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30),
    max_seq_len=st.none() | st.integers(40, 100),
    seed=st.integers(0, 2**32),
)
def test_every_document_is_kept_whole_and_every_trained_id_predicted_once(lengths, max_seq_len, seed):
    documents = documents_of(np.random.default_rng(seed), lengths)
    batch = pack(documents, max_seq_len)
    assert batch.num_tokens == batch.ids.numel() == sum(lengths) == sum(batch.lengths)
    assert len(batch.lengths) == len(documents) if max_seq_len is None else max(batch.lengths) <= max_seq_len
    flat_ids, flat_positions = batch.ids.flatten(), batch.positions.flatten()
    starts = np.cumsum([0, *batch.lengths[:-1]])
    assert torch.equal((flat_positions == 0).nonzero()[:, 0], torch.from_numpy(starts))
    for number, (ids, loss) in enumerate(documents):
        mine = batch.documents == number
        assert torch.equal(batch.targets[mine], torch.from_numpy(ids[1:][loss[1:]]))
        indices = batch.indices[mine]
        assert torch.equal(flat_ids[indices], torch.from_numpy(ids[:-1][loss[1:]]))
        if max_seq_len is None:
            assert torch.equal(flat_positions[indices], torch.from_numpy(np.flatnonzero(loss[1:])))
    assert len(set(batch.indices.tolist())) == len(batch.indices)


LENGTH_DEPENDENT = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
                    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}  # fmt: skip
LONG_ROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}


@pytest.mark.parametrize(
    ("config", "setting"),
    [
        (
            LlamaConfig(**LENGTH_DEPENDENT, rope_parameters=LONG_ROPE | {"original_max_position_embeddings": 16}),
            "original_max_position_embeddings",
        ),
        (
            Llama4TextConfig(
                **LENGTH_DEPENDENT, head_dim=16, attention_chunk_size=16, num_local_experts=2, intermediate_size_mlp=48,
                interleave_moe_layer_step=1, layer_types=["chunked_attention", "full_attention"],
            ),
            "attention_chunk_size",
        ),
    ],
    ids=["longrope", "chunks"],
)  # fmt: skip
def test_documents_longer_than_packing_supports_are_rejected(config, setting, rng):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    check_seq_len(model, 16)
    with pytest.raises(UserError, match=f"max_seq_len is 17: give at most 16, the {setting} of the model, for packing"):
        check_seq_len(model, 17)
    documents = documents_of(rng, [16, 9, 16, 12])
    assert_losses_of_each_alone(model, documents)
    with pytest.raises(UserError, match="max_seq_len is 20: give at most 16"):
        token_losses(model, pack(documents_of(rng, [20, 5])))


@pytest.mark.parametrize("config_of", [MistralConfig, Cohere2Config], ids=lambda c: c.__name__)
def test_documents_longer_than_a_sliding_window_have_the_losses_of_each_alone(config_of, rng):
    torch.manual_seed(0)
    config = config_of(**LENGTH_DEPENDENT, sliding_window=8)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    documents = documents_of(rng, [5, 30, 12, 40])
    assert_losses_of_each_alone(model, documents)
