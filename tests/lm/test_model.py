import json

import pytest
import torch
from tokenizers import normalizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tests.format1 import as_format_1
from weft.device import attn_implementation
from weft.engine.generate import Engine, Request, Sampling
from weft.errors import UserError
from weft.lm import model as lm_model
from weft.lm.model import KIND, LanguageModel, LmConfig, extend_lm, load_causal_lm, new_lm, save
from weft.plan import Plan, open_draft
from weft.records import Document, Segment
from weft.vocab import SpeechVocab

from .families import DOCUMENTS, FAMILIES, NUM_CODES, all_cases, extended_lm, phi_with_head_bias, save_text_lm, text_lm


def small_llama(tokenizer, tied, spare_rows=0):
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer) + spare_rows,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=2,
            tie_word_embeddings=tied,
        )
    )


def rows_of(model):
    return model.get_input_embeddings().weight, model.get_output_embeddings().weight


@pytest.fixture
def folder(tmp_path, vocab, tiny_lm):
    out = tmp_path / "lm"
    with open_draft(out, Plan(KIND, {})) as draft:
        save(tiny_lm, vocab.tokenizer, draft.folder)
    return out


def test_a_saved_model_is_a_hugging_face_model_directory(folder, vocab, tiny_lm):
    ids = torch.arange(20)[None]
    plain = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.allclose(plain(ids).logits, tiny_lm(ids).logits, atol=1e-5)
    assert SpeechVocab.of(AutoTokenizer.from_pretrained(folder)).fingerprint == vocab.fingerprint
    assert plain.config.eos_token_id == vocab.eos_id


def test_loading_returns_model_vocabulary_and_manifest(folder, vocab, tiny_lm):
    lm = LanguageModel.from_pretrained(folder)
    assert lm.vocab.fingerprint == vocab.fingerprint
    assert lm.manifest.kind == KIND
    assert not lm.model.training
    assert lm.model.config._attn_implementation == attn_implementation()
    for name, value in tiny_lm.state_dict().items():
        assert torch.equal(lm.model.state_dict()[name], value)


def test_a_new_model_has_a_row_for_every_id_and_depends_only_on_its_seed(vocab):
    config = LmConfig(hidden=32, layers=1, heads=2, ffn=64)
    weights = [new_lm(config, vocab.tokenizer, seed).get_input_embeddings().weight for seed in (0, 0, 1)]
    assert len(weights[0]) == vocab.size
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_hidden_size_that_is_not_a_multiple_of_the_heads_is_rejected(vocab):
    with pytest.raises(UserError, match="heads"):
        new_lm(LmConfig(hidden=32, heads=3), vocab.tokenizer, seed=0)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("spare_rows", [0, 5, 100])
def test_extending_keeps_old_rows_and_initializes_new_ones_near_their_mean(text_tokenizer, tied, spare_rows):
    model = small_llama(text_tokenizer, tied, spare_rows)
    num_old = len(text_tokenizer)
    before = [w.detach().clone() for w in (model.get_input_embeddings().weight, model.get_output_embeddings().weight)]
    vocab = SpeechVocab.of(extend_lm(model, text_tokenizer, NUM_CODES, seed=0))
    after = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    assert (after[0] is after[1]) == tied
    grown = -(-vocab.size // 64) * 64
    assert model.config.vocab_size == len(after[0]) == max(num_old + spare_rows, grown if spare_rows < 100 else 0)
    for old, new in zip(before, after, strict=True):
        assert torch.equal(new[:num_old], old[:num_old])
        added, kept = new[num_old : vocab.size].detach(), old[:num_old]
        distance = (added - kept.mean(0)).norm(dim=1)
        usual = (kept - kept.mean(0)).norm(dim=1).mean()
        assert (distance < 0.3 * usual).all()
        assert len(added.unique(dim=0)) == len(added) == NUM_CODES + 5
    assert model(torch.tensor([[0, vocab.first_audio_id]])).logits.shape[-1] == len(after[0])


def test_new_rows_have_the_covariance_of_the_old_ones(text_tokenizer):
    model = small_llama(text_tokenizer, tied=True)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(torch.linspace(0.1, 3.0, 32))
    size = SpeechVocab.of(extend_lm(model, text_tokenizer, 2000, seed=0)).size
    weight = model.get_input_embeddings().weight
    old, new = weight[: len(text_tokenizer)].std(0), weight[len(text_tokenizer) : size].std(0)
    torch.testing.assert_close(new / old, (new / old).mean().expand(32), rtol=0.2, atol=0)


def test_extending_twice_changes_nothing(text_tokenizer):
    model = small_llama(text_tokenizer, tied=True)
    tokenizer = extend_lm(model, text_tokenizer, NUM_CODES, seed=0)
    before = model.get_input_embeddings().weight.clone()
    extend_lm(model, tokenizer, NUM_CODES, seed=1)
    assert torch.equal(model.get_input_embeddings().weight, before)


def test_missing_partial_and_damaged_models_are_rejected(folder, tmp_path, text_tokenizer):
    with pytest.raises(UserError, match="does not exist"):
        LanguageModel.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no config"):
        load_causal_lm(tmp_path, torch.float32)
    text_only = tmp_path / "text-only"
    save_text_lm(small_llama(text_tokenizer, tied=True), text_tokenizer, text_only)
    with pytest.raises(UserError, match="no manifest"):
        LanguageModel.from_pretrained(text_only)
    load_causal_lm(text_only, torch.float32)
    weights = as_format_1(folder) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"cannot be loaded|no weights"):
        LanguageModel.from_pretrained(folder)
    weights.unlink()
    with pytest.raises(UserError, match=r"cannot be loaded|no weights"):
        LanguageModel.from_pretrained(folder)


def test_missing_weights_are_rejected(folder):
    config = json.loads((folder / "config.json").read_text())
    (as_format_1(folder) / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(UserError, match="no weights for"):
        LanguageModel.from_pretrained(folder)


def test_similar_codes_get_similar_rows(vocab, text_tokenizer):
    codebook = torch.randn(NUM_CODES, 8, generator=torch.Generator().manual_seed(1))
    codebook[1] = codebook[0] + 0.01
    tiny = LmConfig(hidden=32, layers=1, heads=2, ffn=48)
    new = new_lm(tiny, vocab.tokenizer, 0, codebook)
    base = small_llama(text_tokenizer, tied=True)
    extended = SpeechVocab.of(extend_lm(base, text_tokenizer, NUM_CODES, 0, codebook))
    for model, model_vocab in ((new, vocab), (base, extended)):
        rows = model.get_input_embeddings().weight[model_vocab.codes_to_ids(range(NUM_CODES))]
        distances = torch.cdist(rows, rows)
        assert distances[0, 1] < 0.2 * distances[0, 2:].min()


@all_cases
def test_an_extended_model_has_a_multiple_of_64_rows_and_samples_no_unused_one(case):
    model, vocab = extended_lm(*case)
    inputs, outputs = rows_of(model)
    assert (inputs is outputs) == case[1]
    assert len(inputs) == len(outputs) == model.config.vocab_size == -(-vocab.size // 64) * 64 > vocab.size
    with torch.no_grad():
        outputs[vocab.size :] *= 50  # unused rows would be sampled often if they were not suppressed
    prompt = vocab.document_ids(DOCUMENTS[0])[0].tolist()
    requests = [Request(prompt, 20, seed=i) for i in range(8)]
    engine = Engine(model)
    sampled = {i for g in engine.generate(requests, Sampling(temperature=3.0)) for i in g.ids}
    session = engine.session()
    session.feed(prompt)
    sampled |= {session.sample(Sampling(temperature=3.0)) for _ in range(20)}
    by_transformers = model.generate(
        torch.tensor([prompt] * 8), max_new_tokens=20, do_sample=True, pad_token_id=0, temperature=3.0
    )
    sampled |= set(by_transformers[:, len(prompt) :].flatten().tolist())
    assert len(sampled) > 20
    assert max(sampled) < vocab.size


@all_cases
def test_an_unused_row_has_at_most_the_mean_probability_of_the_old_tokens(case):
    model, vocab = extended_lm(*case)
    num_old = len(FAMILIES[case[0]][2]())
    with torch.no_grad():
        probabilities = model(torch.arange(vocab.size - 200, vocab.size)[None]).logits.softmax(-1)[0]
    mean = probabilities[:, :num_old].mean(1, keepdim=True)
    # The soft cap of Gemma 2 changes the logits of the mean row.
    assert (probabilities[:, vocab.size :] <= mean * (1.001 if case[0] != "gemma2" else 1.1)).all()


@all_cases
def test_transformers_loads_a_saved_model(case, tmp_path):
    model, vocab = extended_lm(*case)
    save(model, vocab.tokenizer, tmp_path)
    # as lm-evaluation-harness does
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=False).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=False)
    loaded = SpeechVocab.of(tokenizer)
    assert loaded.fingerprint == vocab.fingerprint
    assert (rows_of(plain)[0] is rows_of(plain)[1]) == case[1]
    for document in DOCUMENTS:
        ids = vocab.document_ids(document)[0]
        assert loaded.document_ids(document)[0].tolist() == ids.tolist()
        tensor = torch.from_numpy(ids)[None]
        torch.testing.assert_close(plain(tensor).logits, model(tensor).logits, rtol=1e-4, atol=1e-4)
    requests = [Request(ids.tolist(), 10, seed=1)]
    ours, _ = load_causal_lm(tmp_path, torch.float32)
    assert Engine(ours).generate(requests, Sampling()) == Engine(model).generate(requests, Sampling())


@pytest.mark.parametrize("family", FAMILIES)
def test_text_is_decoded_exactly_and_splits_before_spaces_change_no_id(family):
    _, vocab = extended_lm(family, tied=True)
    newline = vocab.tokenizer.decode(vocab.turn_start_ids("user"), skip_special_tokens=True)
    assert newline == "\n"
    for text in ("The cat", " sat", "\n", "  two  spaces ", "", "猫 é", "a<|user|><eos></s><|endoftext|>b"):
        ids = vocab.text_ids(text)
        assert not (vocab.is_audio(ids) | vocab.is_control(ids)).any()
        # after another segment, as in a document
        assert vocab.tokenizer.decode([*vocab.text_ids("a"), *ids]) == "a" + text
    parts = ["The cat", " sat on", " the mat,", " and slept.", "猫", "猫"]
    assert [i for p in parts for i in vocab.text_ids(p)] == vocab.text_ids("".join(parts)).tolist()


def test_unused_rows_of_a_base_are_used_first_and_the_others_do_not_change():
    model, tokenizer = text_lm("qwen2", tied=True, spare_rows=100)
    before = rows_of(model)[0].detach().clone()
    vocab = SpeechVocab.of(extend_lm(model, tokenizer, NUM_CODES, seed=0))
    assert torch.equal(rows_of(model)[0][vocab.size :], before[vocab.size :])
    assert model.generation_config.suppress_tokens == list(range(vocab.size, len(before)))


def test_suppressed_tokens_of_a_base_stay_suppressed_unless_they_are_speech_tokens_now():
    model, tokenizer = text_lm("llama3", tied=False)
    model.generation_config.suppress_tokens = [len(tokenizer) + 1, 7_000]
    vocab = SpeechVocab.of(extend_lm(model, tokenizer, NUM_CODES, seed=0))
    assert model.generation_config.suppress_tokens == [*range(vocab.size, len(rows_of(model)[0])), 7_000]


def test_the_bias_of_an_output_head_is_extended():
    model, tokenizer = phi_with_head_bias()
    old = model.lm_head.bias.detach().clone()
    extend_lm(model, tokenizer, NUM_CODES, seed=0)
    assert torch.equal(model.lm_head.bias[: len(old)], old)
    torch.testing.assert_close(model.lm_head.bias[len(old) :], old.mean().expand(len(model.lm_head.bias) - len(old)))


def test_a_family_without_a_fused_attention_kernel_can_be_loaded(tmp_path, monkeypatch):
    save_text_lm(*text_lm("gemma2", tied=True), tmp_path)
    monkeypatch.setattr(lm_model, "attn_implementation", lambda: "sdpa")
    assert load_causal_lm(tmp_path, torch.float32)[0].config._attn_implementation == "eager"


def test_a_tokenizer_that_drops_characters_is_rejected():
    model, tokenizer = text_lm("llama2", tied=True)
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\x01", "")
    with pytest.raises(UserError, match="drops characters"):
        SpeechVocab.of(extend_lm(model, tokenizer, NUM_CODES, seed=0)).text_ids("a")


@pytest.mark.parametrize("family", ["llama2", "glm4", "gemma3", "gpt2"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_model_without_weights_is_the_same_otherwise(family, tied, tmp_path):
    """On the meta device: its parameters and buffers, the ties between them, and its generation config."""
    model, text_tokenizer = text_lm(family, tied)
    model.generation_config.suppress_tokens = [1, 2]
    save_text_lm(model, text_tokenizer, tmp_path)
    loaded, empty = (load_causal_lm(tmp_path, torch.bfloat16, on_meta)[0] for on_meta in (False, True))
    assert_equal_shapes(loaded, empty, tied)
    assert empty.generation_config.suppress_tokens == [1, 2]
    vocabs = [SpeechVocab.of(extend_lm(model, text_tokenizer, NUM_CODES, seed=0)) for model in (loaded, empty)]
    assert_equal_shapes(loaded, empty, tied)
    assert vocabs[0].fingerprint == vocabs[1].fingerprint


def assert_equal_shapes(loaded, empty, tied):
    tensors = [{n: (t.shape, t.dtype) for n, t in [*m.named_parameters(), *m.named_buffers()]} for m in (loaded, empty)]
    assert tensors[0] == tensors[1]
    assert all(t.is_meta for t in (*empty.parameters(), *empty.buffers()))
    assert (empty.get_input_embeddings().weight is empty.get_output_embeddings().weight) == tied
    assert empty.generation_config.suppress_tokens == loaded.generation_config.suppress_tokens
    assert empty.config._attn_implementation == loaded.config._attn_implementation
    assert empty.training == loaded.training


MESSAGES = [
    {"role": "system", "content": "You are nice."},
    {"role": "user", "content": "The cat sat, twice?"},
    {"role": "assistant", "content": "A bird sang to the cat."},
    {"role": "user", "content": "And 猫?\nThe dog slept."},
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("first", [0, 1])
def test_the_chat_template_gives_the_ids_of_training(family, first, tmp_path):
    """With and without a system turn and a prompt for an answer. The template of the base is replaced."""
    model, vocab = extended_lm(family, tied=True)
    vocab.tokenizer.chat_template = "{{ 'another' }}"
    save(model, vocab.tokenizer, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for end in range(first + 1, len(MESSAGES) + 1):
        segments = tuple(Segment.of_text(m["content"], m["role"]) for m in MESSAGES[first:end])
        ids = vocab.document_ids(Document("0", "dialogue", segments))[0].tolist()
        assert loaded.apply_chat_template(MESSAGES[first:end], return_dict=False) == ids
        prompt = [*ids[:-1], *vocab.turn_start_ids("assistant")]
        found = loaded.apply_chat_template(MESSAGES[first:end], add_generation_prompt=True, return_dict=False)
        assert found == prompt
