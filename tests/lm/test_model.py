import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from weft import artifacts
from weft.errors import UserError
from weft.lm.model import KIND, LanguageModel, LmConfig, extend_lm, load_hf, new_lm, save
from weft.training.loop import quickest_attention
from weft.vocab import SpeechVocab

NUM_CODES = 16


def text_lm(tokenizer, tied, spare_rows=0):
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


@pytest.fixture
def folder(tmp_path, vocab, tiny_lm):
    out = tmp_path / "lm"
    with artifacts.build(out, KIND, {}) as draft:
        save(tiny_lm, vocab.tokenizer, draft.folder)
    return out


def test_a_saved_model_is_a_plain_hugging_face_folder(folder, vocab, tiny_lm):
    ids = torch.arange(20)[None]
    plain = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.allclose(plain(ids).logits, tiny_lm(ids).logits, atol=1e-5)
    assert SpeechVocab.of(AutoTokenizer.from_pretrained(folder)).fingerprint == vocab.fingerprint
    assert plain.config.eos_token_id == vocab.eos_id


def test_loading_gives_back_model_vocabulary_and_manifest(folder, vocab, tiny_lm):
    lm = LanguageModel.load(folder)
    assert lm.vocab.fingerprint == vocab.fingerprint
    assert lm.manifest.kind == KIND
    assert not lm.model.training
    assert lm.model.config._attn_implementation == quickest_attention()
    for name, value in tiny_lm.state_dict().items():
        assert torch.equal(lm.model.state_dict()[name], value)


def test_a_new_model_has_a_row_for_every_id_and_depends_on_its_seed_alone(vocab):
    config = LmConfig(hidden=32, layers=1, heads=2, ffn=64)
    weights = [new_lm(config, vocab.tokenizer, seed).get_input_embeddings().weight for seed in (0, 0, 1)]
    assert len(weights[0]) == vocab.size
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_width_that_heads_do_not_divide_is_refused(vocab):
    with pytest.raises(UserError, match="heads"):
        new_lm(LmConfig(hidden=32, heads=3), vocab.tokenizer, seed=0)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("spare_rows", [0, 5, 100])
def test_extending_keeps_old_rows_and_draws_new_ones_near_their_mean(text_tokenizer, tied, spare_rows):
    model = text_lm(text_tokenizer, tied, spare_rows)
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


def test_new_rows_spread_as_the_old_ones_do(text_tokenizer):
    model = text_lm(text_tokenizer, tied=True)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(torch.linspace(0.1, 3.0, 32))
    size = SpeechVocab.of(extend_lm(model, text_tokenizer, 2000, seed=0)).size
    weight = model.get_input_embeddings().weight
    old, new = weight[: len(text_tokenizer)].std(0), weight[len(text_tokenizer) : size].std(0)
    torch.testing.assert_close(new / old, (new / old).mean().expand(32), rtol=0.2, atol=0)


def test_extending_twice_changes_nothing(text_tokenizer):
    model = text_lm(text_tokenizer, tied=True)
    tokenizer = extend_lm(model, text_tokenizer, NUM_CODES, seed=0)
    before = model.get_input_embeddings().weight.clone()
    extend_lm(model, tokenizer, NUM_CODES, seed=1)
    assert torch.equal(model.get_input_embeddings().weight, before)


def test_folders_that_are_no_whole_model_are_refused(folder, tmp_path, text_tokenizer):
    with pytest.raises(UserError, match="does not exist"):
        LanguageModel.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no config"):
        load_hf(tmp_path, torch.float32)
    text_only = tmp_path / "text-only"
    save(text_lm(text_tokenizer, tied=True), text_tokenizer, text_only)
    with pytest.raises(UserError, match="no manifest"):
        LanguageModel.load(text_only)
    load_hf(text_only, torch.float32)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"does not load|no weights"):
        LanguageModel.load(folder)
    weights.unlink()
    with pytest.raises(UserError, match=r"does not load|no weights"):
        LanguageModel.load(folder)


def test_missing_weights_are_refused_and_not_made_up(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(UserError, match="no weights for"):
        LanguageModel.load(folder)


def test_codes_that_sound_alike_begin_alike(vocab, text_tokenizer):
    codebook = torch.randn(NUM_CODES, 8, generator=torch.Generator().manual_seed(1))
    codebook[1] = codebook[0] + 0.01
    tiny = LmConfig(hidden=32, layers=1, heads=2, ffn=48)
    new = new_lm(tiny, vocab.tokenizer, 0, codebook)
    base = text_lm(text_tokenizer, tied=True)
    extended = SpeechVocab.of(extend_lm(base, text_tokenizer, NUM_CODES, 0, codebook))
    for model, known in ((new, vocab), (base, extended)):
        rows = model.get_input_embeddings().weight[known.codes_to_ids(range(NUM_CODES))]
        distances = torch.cdist(rows, rows)
        assert distances[0, 1] < 0.2 * distances[0, 2:].min()
