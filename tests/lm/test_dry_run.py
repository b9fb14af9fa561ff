from dataclasses import replace
from pathlib import Path

import pytest
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import GlmConfig, LlamaConfig

from tests.lm.families import FAMILIES, text_lm
from tests.lm.test_pretrain import config, pack  # noqa: F401 (fixtures)
from weft import cli
from weft.errors import UserError
from weft.lm import dry_run, pretrain
from weft.lm.dry_run import estimate
from weft.lm.lora import LoraConfig
from weft.lm.pretrain import PretrainConfig
from weft.training.loop import TrainConfig


@pytest.fixture
def small(tmp_path):
    """A plan for a small Llama of which there is a config.json alone."""
    LlamaConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, max_position_embeddings=64, tie_word_embeddings=False,
    ).save_pretrained(tmp_path / "small")  # fmt: skip
    return PretrainConfig(
        tmp_path / "small", (Path("gone"),), tmp_path / "out",
        tokens_per_step=1024, row_tokens=64, train=TrainConfig(steps=10),
    )  # fmt: skip


def told_by(capsys) -> dict[str, str]:
    lines = capsys.readouterr().out.split("\n\n")[0].splitlines()
    return dict(line.split(maxsplit=1) for line in lines)


def test_a_dry_run_tells_and_makes_nothing(tmp_path, capsys):
    """For the paper's 9B, from a config.json alone, with shards that are elsewhere; all of it can be done by hand."""
    GlmConfig().save_pretrained(tmp_path / "glm-4-9b")  # whose defaults are that model's shape
    (tmp_path / "r.toml").write_text(
        f'out = "{tmp_path}/out"\ntokens = ["elsewhere"]\nbase = "{tmp_path}/glm-4-9b"\n'
        "tokens_per_step = 4_000_000\nrow_tokens = 8192\n[train]\nsteps = 250_000\naccumulate = 8\n"
    )
    before = sorted(tmp_path.rglob("*"))
    assert cli.run(["pretrain", str(tmp_path / "r.toml"), "--dry-run"]) == 0
    out = capsys.readouterr().out
    told = dict(line.split(maxsplit=1) for line in out.split("\n\n")[0].splitlines())
    matrices = (
        4096 * (4096 + 2 * 256) + 4096 * 4096 + 4096 * 2 * 13696 + 13696 * 4096
    )  # heads of 128: 32, and 2 of keys
    layer = matrices + (4096 + 2 * 256) + 2 * 4096  # biases, norms
    embeddings = 151_552 * 4096
    assert 2 * embeddings + 40 * layer + 4096 == 9_399_951_360  # as published
    assert told["parameters"].startswith("9,399,951,360 (embeddings 620,756,992 of 151,552 rows, 40 layers ")
    assert told["tokens"].startswith("1,000,000,000,000 ")
    token_flops = 6 * (40 * layer + 4096 + embeddings) + 12 * 40 * 4096 * 8192
    assert told["token_flops"] == f"{token_flops:.3g}"
    assert told["weights_gb"] == told["gradients_gb"] == "37.6"
    assert told["optimizer_gb"] == "75.2"
    assert told["checkpoint_gb"].startswith("113 ")
    copies_gb = float(told["copies_gb"].split()[0])  # and the positions' angles
    assert copies_gb == pytest.approx(2 * (40 * matrices + embeddings) / 1e9, rel=0.01)
    days = 1e12 * token_flops / (64 * 0.4 * 989e12) / 86400
    (row,) = (line.split() for line in out.splitlines() if line.split()[:1] == ["64"])
    assert row[1] == "8,192"
    assert row[-1] == f"{days:.3g}"
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("half", [False, True])
def test_tensors_without_contents_tell_what_real_ones_would(family, half):
    model, _ = text_lm(family, tied=False)
    real = dry_run._kept(model, 2, 40, half)
    with FakeTensorMode():
        fake = type(model)._from_config(model.config).eval()
        assert dry_run._kept(fake, 2, 40, half) == real
    assert real.layers > real.largest > 0 < real.outside
    assert real.inputs == len(dry_run._layers(model)) * 2 * 40 * 32 * 4


def test_layers_that_are_computed_again_keep_nothing():
    """Of their inside; what a dry run takes for it is their inputs, all of the largest, and what is outside."""
    model, _ = text_lm("llama3", tied=False)
    whole = dry_run._kept(model.train(), 2, 40, half=False)
    model.gradient_checkpointing_enable()
    again = dry_run._kept(model, 2, 40, half=False)
    assert again.layers < whole.layers / 20
    assert again.outside == whole.outside


def test_parts_add_up_and_are_shared(small):
    told = estimate(small)
    of, memory = told.parameters, told.memory
    assert of.total == of.embeddings + of.layers + of.head + of.rest == of.trained
    assert of.embeddings == of.head == 100 * 32
    assert memory.weights == memory.gradients == memory.optimizer / 2 == 4 * of.total
    state = 16 * of.total
    per_token = memory.token_activations + memory.token_losses + 12 * 100
    assert memory.on_gpu(64) == state + memory.copies + 64 * per_token
    assert memory.on_gpu(64, gpus=8) == state / 8 + memory.gathered + 64 * per_token
    assert memory.on_gpu(64, recomputed=True) < memory.on_gpu(64)
    assert told.tokens == 10 * 1024
    assert told.flops == told.tokens * told.token_flops
    assert told.days(8) == pytest.approx(told.days(1) / 8)
    assert told.tokens_at_once(1) == 1024
    assert told.tokens_at_once(8) == 128
    assert told.tokens_at_once(512) == 64  # a row
    assert memory.logits(10**6) == 12 * 2**26  # a block of them at most


def test_half_as_many_tokens_at_once_leave_half_as_much(small):
    half = estimate(replace(small, train=TrainConfig(steps=10, accumulate=2)))
    assert half.tokens_at_once(1) == estimate(small).tokens_at_once(1) / 2
    muon = estimate(replace(small, train=TrainConfig(steps=10, optimizer="muon"))).memory
    assert muon.optimizer < half.memory.optimizer
    fp32 = estimate(replace(small, train=TrainConfig(steps=10, precision="fp32"))).memory
    assert fp32.copies == 0 < half.memory.copies
    assert fp32.token_activations > half.memory.token_activations


def test_adapters_train_few_and_keep_the_weights_in_bf16(config, small):  # noqa: F811
    whole = estimate(small)
    told = estimate(replace(small, lora=LoraConfig(rank=4)))
    q, k, up = 2 * 32, 32 + 16, 32 + 48  # sides of query and output, key and value, and the three of the feed-forward
    assert told.parameters.trained == 3 * 4 * (2 * q + 2 * k + 3 * up)
    assert told.memory.weights == 2 * told.parameters.total + 4 * told.parameters.trained
    assert told.memory.gradients == told.memory.optimizer / 2 == 4 * told.parameters.trained
    products = 2 * (told.parameters.total - told.parameters.embeddings)
    assert whole.token_flops - told.token_flops == products - 6 * told.parameters.trained
    some = estimate(replace(small, lora=LoraConfig(rank=4, targets=("q_proj", "v_proj"))))
    assert some.parameters.trained == 3 * 4 * (q + k)
    with pytest.raises(UserError, match=r"lora.targets .* do not fit"):
        estimate(replace(small, lora=LoraConfig(rank=4, targets=("nothing",))))
    with_speech = estimate(replace(config, lora=LoraConfig(rank=4))).parameters
    without = dry_run._adapter_parameters(text_lm_of(config), LoraConfig(rank=4))
    assert with_speech.trained == without + (16 + 2 + 3) * 32  # codes, markers and roles of a tied matrix


def text_lm_of(config):  # noqa: F811
    with FakeTensorMode():
        return dry_run._model(config.base)


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_are_as_many_as_peft_makes(family):
    peft = pytest.importorskip("peft")
    model, _ = text_lm(family, tied=False)
    told = dry_run._adapter_parameters(model, LoraConfig(rank=4))
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"))
    assert told == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_shards_that_are_here_are_counted(config, capsys):  # noqa: F811
    manifest = pretrain.run(config)
    capsys.readouterr()
    pretrain.command(replace(config, dry_run=True))
    told = told_by(capsys)
    assert told["tokens"] == f"{manifest.counts['tokens']:,} (of the shards, in 40 steps of 256)"
    assert told["parameters"].startswith(f"{manifest.counts['parameters']:,} ")


def test_what_a_run_would_refuse_a_dry_run_refuses(config, small):  # noqa: F811
    with pytest.raises(UserError, match="max_epochs"):
        pretrain.command(replace(config, max_epochs=0.01, dry_run=True))
    with pytest.raises(UserError, match="weights lacks"):
        pretrain.command(replace(config, weights={"speech": 1.0}, dry_run=True))
    with pytest.raises(UserError, match="row_tokens is 65"):
        estimate(replace(small, row_tokens=65))
    with pytest.raises(UserError, match=r"no config.json.*that file is enough"):
        estimate(replace(small, base=Path("nowhere")))


def test_a_dry_run_is_no_part_of_the_plan(config):  # noqa: F811
    manifest = pretrain.run(config)
    assert "dry_run" not in manifest.settings
    assert pretrain.run(replace(config, dry_run=True)).fingerprint == manifest.fingerprint
