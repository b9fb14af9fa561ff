import dataclasses
import importlib.util
import sys

import pytest
import torch
from transformers import PhiConfig, PhiForCausalLM

from tests.ranks import in_ranks
from weft import artifacts
from weft.config import load_recipe
from weft.errors import UserError
from weft.lm import pretrain
from weft.lm.lora import LoraConfig, adapt, merge
from weft.lm.model import LanguageModel, extend_lm
from weft.lm.packing import pack as pack_rows
from weft.lm.packing import token_losses
from weft.vocab import SpeechVocab

from .families import FAMILIES, text_lm
from .test_families import DOCUMENTS, NUM_CODES
from .test_pretrain import config, finished, pack  # noqa: F401, fixtures

needs_peft = pytest.mark.skipif(not importlib.util.find_spec("peft"), reason="peft is not installed")


def adapted(family, tied, **settings):
    model, tokenizer = text_lm(family, tied)
    vocab = SpeechVocab.of(extend_lm(model, tokenizer, NUM_CODES, seed=0))
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    return adapt(model, vocab, LoraConfig(rank=4, **settings), seed=0), vocab, weights


@needs_peft
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_and_speech_rows_train_and_merge_into_a_plain_model(family, tied):
    model, vocab, weights = adapted(family, tied)
    plain, _ = text_lm(family, tied)
    num_old = plain.config.vocab_size
    batch = pack_rows([vocab.document_ids(d) for d in DOCUMENTS])
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(8):
        loss = token_losses(model, batch).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3
    with torch.no_grad():
        expected = token_losses(model, batch)
        merged = merge(model)
        torch.testing.assert_close(token_losses(merged, batch), expected, rtol=1e-4, atol=1e-4)
    assert merged.state_dict().keys() == weights.keys()
    inputs, outputs = merged.get_input_embeddings().weight, merged.get_output_embeddings().weight
    assert (inputs is outputs) == tied
    roles = set(vocab.role_start_ids.values())  # GLM's own tokens
    old = [i for i in range(num_old) if i not in roles]
    for name, matrix in merged.named_parameters():
        if matrix is not inputs and matrix is not outputs:
            continue
        before = weights[name]
        assert torch.equal(matrix[old], before[old]), name
        assert not torch.isclose(matrix[vocab.begin_of_audio_id], before[vocab.begin_of_audio_id]).all(), name
        assert torch.equal(matrix[vocab.size :], before[vocab.size :]), name


@needs_peft
def test_targets_are_the_matrices_that_have_adapters():
    model, _, _ = adapted("qwen2", True, targets=("q_proj",))
    names = {name.split(".lora_")[0].split(".")[-1] for name, _ in model.named_parameters() if ".lora_" in name}
    assert names == {"q_proj"}
    with pytest.raises(UserError, match=r"lora\.targets"):
        adapted("qwen2", True, targets=("query",))


@needs_peft
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_killed_run_with_adapters_continues_to_the_same_weights(config, monkeypatch, precision):  # noqa: F811
    train = dataclasses.replace(config.train, steps=12, checkpoint_every_steps=4, precision=precision)
    config = dataclasses.replace(config, lora=LoraConfig(rank=2), train=train, recompute=True)
    whole = pretrain.run(config)
    assert whole.counts["trained_parameters"] < whole.counts["parameters"]
    again, calls = dataclasses.replace(config, out=config.out.with_name("again")), []

    def killing_pack(*args):
        calls.append(args)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return packing(*args)

    packing = pretrain.pack
    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "pack", killing_pack)
        with pytest.raises(KeyboardInterrupt):
            pretrain.run(again)
    assert pretrain.run(again).fingerprint == whole.fingerprint
    assert type(LanguageModel.load(config.out).model).__name__ == "LlamaForCausalLM"


@needs_peft
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-6), ("bf16", 3e-3)])
def test_adapters_of_a_sharded_model_train_as_of_a_whole_one(config, tmp_path, precision, tolerance):  # noqa: F811
    """Frozen weights are in bf16 beside adapters in fp32 there."""
    train = dataclasses.replace(config.train, steps=6, lr=1e-3, precision=precision)
    config = dataclasses.replace(config, lora=LoraConfig(rank=2), train=train)
    sharded = dataclasses.replace(config, out=tmp_path / "sharded", parallel="shard")
    whole = pretrain.run(config)
    assert all(in_ranks(finished, tmp_path, [sharded]))
    made = artifacts.read(sharded.out)
    assert made.counts["loss.speech"] == pytest.approx(whole.counts["loss.speech"], abs=tolerance)
    found, weights = (LanguageModel.load(c.out).model.state_dict() for c in (sharded, config))
    for name in weights:
        torch.testing.assert_close(found[name], weights[name], rtol=0, atol=tolerance, msg=name)


@needs_peft
def test_a_head_with_a_bias_is_refused():
    _, tokenizer = text_lm("gpt2", tied=True)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = PhiForCausalLM(PhiConfig(vocab_size=len(tokenizer), **shape))
    vocab = SpeechVocab.of(extend_lm(model, tokenizer, NUM_CODES, seed=0))
    with pytest.raises(UserError, match="head has a bias"):
        adapt(model, vocab, LoraConfig(rank=4), seed=0)


def test_a_recipe_has_a_table_of_them(tmp_path):
    recipe = tmp_path / "pretrain.toml"
    recipe.write_text('base = "b"\ntokens = ["t"]\nout = "o"\n[lora]\nrank = 8\ntargets = ["q_proj", "v_proj"]\n')
    found = load_recipe(pretrain.PretrainConfig, recipe, ["--lora.alpha", "16"]).lora
    assert found == LoraConfig(rank=8, alpha=16.0, targets=("q_proj", "v_proj"))


def test_adapters_without_peft_are_refused(config, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match="needs peft"):
        pretrain.run(dataclasses.replace(config, lora=LoraConfig(rank=2)))
