import importlib.util
import sys
from dataclasses import replace

import pytest
import torch

from tests.ranks import in_ranks
from weft import artifacts
from weft.config import load_recipe
from weft.errors import UserError
from weft.lm import pretrain
from weft.lm.lora import LoraConfig, adapt, merge
from weft.lm.model import LanguageModel, extend_lm
from weft.lm.packing import pack, token_losses
from weft.vocab import SpeechVocab

from .families import DOCUMENTS, NUM_CODES, all_cases, extended_lm, phi_with_head_bias, text_lm
from .runs import interrupted, run_jobs

pytestmark = pytest.mark.usefixtures("short_run")
needs_peft = pytest.mark.skipif(not importlib.util.find_spec("peft"), reason="peft is not installed")


def adapted(family, tied, **settings):
    model, vocab = extended_lm(family, tied)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    return adapt(model, vocab, LoraConfig(rank=4, **settings), seed=0), vocab, weights


@needs_peft
@all_cases
def test_adapters_and_speech_rows_are_trained_and_merged_into_a_plain_model(case):
    family, tied = case
    model, vocab, weights = adapted(family, tied)
    plain, _ = text_lm(family, tied)
    num_old = plain.config.vocab_size
    batch = pack([vocab.document_ids(d) for d in DOCUMENTS])
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
def test_only_target_layers_have_adapters():
    model, _, _ = adapted("qwen2", True, targets=("q_proj",))
    names = {name.split(".lora_")[0].split(".")[-1] for name, _ in model.named_parameters() if ".lora_" in name}
    assert names == {"q_proj"}
    with pytest.raises(UserError, match=r"lora\.targets"):
        adapted("qwen2", True, targets=("query",))


def short(config, precision):
    train = replace(config.train, steps=5, lr=1e-3, checkpoint_every_steps=2, precision=precision)
    return replace(config, lora=LoraConfig(rank=2), train=train)


@needs_peft
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_interrupted_run_with_adapters_resumes_to_the_same_weights(config, precision):
    config = replace(short(config, precision), activation_checkpointing=True)
    whole = pretrain.run(config)
    assert whole.counts["trained_parameters"] < whole.counts["parameters"]
    again = replace(config, out=config.out.with_name("again"))
    interrupted(again, 3)
    assert pretrain.run(again).fingerprint == whole.fingerprint
    assert type(LanguageModel.from_pretrained(config.out).model).__name__ == "LlamaForCausalLM"
    cards = [(out / "README.md").read_bytes() for out in (config.out, again.out)]
    assert cards[0] == cards[1]
    assert b"(LoRA), which are merged into its weights" in cards[0]


@needs_peft
def test_adapters_of_a_sharded_model_get_the_weights_of_a_whole_one(config, tmp_path):
    """In bf16, frozen weights are bf16 and adapters fp32."""
    runs = {precision: replace(short(config, precision), out=tmp_path / precision) for precision in ("fp32", "bf16")}
    sharded = {name: replace(run, out=tmp_path / f"{name}-sharded", parallel="fsdp") for name, run in runs.items()}
    jobs = [(pretrain.run, run) for run in sharded.values()]
    assert in_ranks(run_jobs, tmp_path, *jobs) == [True, True]
    for name, tolerance in {"fp32": 1e-6, "bf16": 3e-3}.items():
        whole, counts = pretrain.run(runs[name]), artifacts.read(sharded[name].out).counts
        assert counts["loss.speech"] == pytest.approx(whole.counts["loss.speech"], abs=tolerance)
        found, weights = (LanguageModel.from_pretrained(r[name].out).model.state_dict() for r in (sharded, runs))
        for key in weights:
            torch.testing.assert_close(found[key], weights[key], rtol=0, atol=tolerance, msg=f"{name} {key}")


@needs_peft
def test_an_output_head_with_a_bias_is_rejected():
    model, tokenizer = phi_with_head_bias()
    vocab = SpeechVocab.of(extend_lm(model, tokenizer, NUM_CODES, seed=0))
    with pytest.raises(UserError, match="head has a bias"):
        adapt(model, vocab, LoraConfig(rank=4), seed=0)


def test_a_recipe_has_a_table_of_lora_settings(tmp_path):
    recipe = tmp_path / "pretrain.toml"
    recipe.write_text('base = "b"\ntokens = ["t"]\nout = "o"\n[lora]\nrank = 8\ntargets = ["q_proj", "v_proj"]\n')
    found = load_recipe(pretrain.PretrainConfig, recipe, ["--lora.alpha", "16"]).lora
    assert found == LoraConfig(rank=8, alpha=16.0, targets=("q_proj", "v_proj"))


def test_adapters_without_peft_are_rejected(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match="needs peft"):
        pretrain.run(replace(config, lora=LoraConfig(rank=2)))
