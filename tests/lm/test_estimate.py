import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, GlmConfig, LlamaConfig

from weft import cli
from weft.errors import UserError
from weft.lm import pretrain
from weft.lm.estimate import config_of, estimate_lm, lora_parameters
from weft.lm.lora import LoraConfig
from weft.plan import Plan
from weft.text_to_token import train as text_to_token
from weft.text_to_token.train import TextToTokenConfig
from weft.training import estimate as training_estimate
from weft.training.config import TrainConfig
from weft.training.cross_entropy import GPU_BLOCK_LOGITS
from weft.training.estimate import Memory

from .conftest import TINY
from .families import FAMILIES, NUM_CODES, text_lm

SMALL = LlamaConfig(
    vocab_size=100, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=48, max_position_embeddings=64, tie_word_embeddings=False,
)  # fmt: skip
PARAMETERS = 2 * 100 * 32 + 3 * (32 * (2 * 32 + 2 * 16) + 3 * 32 * 48 + 2 * 32) + 32
TRAIN = TrainConfig(steps=10)


@pytest.fixture(autouse=True)
def _speed(monkeypatch):
    """The speed of this machine, which takes long to measure."""
    monkeypatch.setattr(training_estimate, "matmul_flops_per_sec", lambda device, dtype: 1e12)


def small_estimate(adapters=lambda model: 0, **changes):
    """Return the estimate of training SMALL."""
    return estimate_lm(SMALL, replace(TRAIN, **changes), 1024, 64, 10 * 1024, adapters, can_shard=True)[0]


def printed(capsys) -> tuple[dict[str, str], dict[int, list[str]]]:
    """Return the printed values by name, and the rows of the table by the number of GPUs."""
    values, table, _ = capsys.readouterr().out.split("\n\n")
    rows = {int(line.split()[0]): line.split() for line in table.splitlines()[1:]}
    return dict(line.split(maxsplit=1) for line in values.splitlines()), rows


def test_a_dry_run_prints_the_figures_of_the_model_of_the_paper_and_writes_nothing(tmp_path, capsys):
    """From a config.json, and without token shards. All figures can be computed by hand."""
    GlmConfig().save_pretrained(tmp_path / "glm-4-9b")  # its defaults are the shape of that model
    (tmp_path / "r.toml").write_text(
        f'out = "{tmp_path}/out"\ntokens = ["missing"]\nbase = "{tmp_path}/glm-4-9b"\n'
        "batch_tokens = 4_000_000\nmax_seq_len = 8192\n[train]\nsteps = 250_000\ngrad_accum_steps = 8\n"
    )
    before = sorted(tmp_path.rglob("*"))
    assert cli.run(["pretrain", str(tmp_path / "r.toml"), "--dry-run"]) == 2  # because of the token shards
    values, rows = printed(capsys)
    # 32 query heads and 2 key-value heads of size 128
    matrices = 4096 * (4096 + 2 * 256) + 4096 * 4096 + 4096 * 2 * 13696 + 13696 * 4096
    layer = matrices + (4096 + 2 * 256) + 2 * 4096  # biases, norms
    embeddings = 151_552 * 4096
    assert 2 * embeddings + 40 * layer + 4096 == 9_399_951_360  # as published
    assert values["parameters"] == "9,399,951,360"
    assert values["embeddings"] == "620,756,992 (151,552 rows, and as many in the head: 620,756,992)"
    assert values["tokens"] == "1,000,000,000,000 (250,000 steps of 4,000,000)"
    token_flops = 6 * (40 * layer + 4096 + embeddings) + 12 * 40 * 4096 * 8192
    assert values["token_flops"] == f"{token_flops:.3g}"
    assert values["step_flops"] == f"{4e6 * token_flops:.3g}"
    assert values["training_flops"] == f"{1e12 * token_flops:.3g} in 250,000 steps"
    assert values["weights_gb"] == values["gradients_gb"] == "37.6"
    assert values["optimizer_gb"] == "75.2"
    assert values["checkpoint_gb"] == "113 (the finished model: 37.6)"
    copies_gb = float(values["copies_gb"].split()[0])  # with the angles of the positions
    assert copies_gb == pytest.approx(2 * (40 * matrices + embeddings) / 1e9, rel=0.01)
    loss = 12 * GPU_BLOCK_LOGITS + 8192 * (2 + 4) * 4096
    assert values["loss_gb"] == f"{loss / 1e9:.3g} per sequence of 8,192 tokens"
    hours = 1e12 * token_flops / (0.4 * 1e12) / 3600
    assert values["training_hours"].startswith(f"{hours:.3g} (at 40% of the 1 TFLOP/s of ")
    days = 1e12 * token_flops / (64 * 0.4 * 989e12) / 86400
    assert rows[64][1] == "1"  # sequence
    assert rows[64][-1] == f"{days:.3g}"
    assert sorted(tmp_path.rglob("*")) == before


def forward_of(model):
    return lambda items: model.base_model(input_ids=torch.zeros(items, 40, dtype=torch.int64), use_cache=False)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fake_tensors_take_the_memory_of_real_ones(family, precision):
    model, _ = text_lm(family, tied=False)
    config = TrainConfig(steps=10, precision=precision)
    real = Memory.of(model, forward_of(model), config)
    with FakeTensorMode():
        fake = type(model)._from_config(model.config).eval()
        assert Memory.of(fake, forward_of(fake), config) == real
    inputs, largest, layers, outside = training_estimate._saved(model, forward_of(model), 2, precision == "bf16")
    assert layers > largest > 0 < outside
    assert inputs == len(training_estimate._layers(model)) * 2 * 40 * 32 * 4


def test_checkpointed_layers_save_only_their_inputs():
    """The estimate is their inputs, everything in the largest layer, and what is saved outside of layers."""
    model, _ = text_lm("llama3", tied=False)
    whole = training_estimate._saved(model.train(), forward_of(model), 2, bf16=False)
    model.activation_checkpointing_enable()
    checkpointed = training_estimate._saved(model, forward_of(model), 2, bf16=False)
    assert checkpointed[2] < whole[2] / 20
    assert checkpointed[3] == whole[3]


def test_the_parts_of_memory_add_up_and_are_sharded():
    found = small_estimate()
    memory = found.memory
    assert found.parameters == PARAMETERS
    assert memory.gradients == memory.optimizer / 2 == 4 * PARAMETERS
    assert 0 <= memory.weights - 4 * PARAMETERS < 100  # the frequencies of the positions
    state = memory.weights + memory.gradients + memory.optimizer
    item = memory.item + memory.loss(1)
    assert memory.loss(1) == 12 * 64 * 100 + 64 * (2 + 4) * 32
    assert memory.on_device(1) == state + memory.copies + item
    assert memory.on_device(1, devices=8) == state / 8 + memory.gathered + item
    assert memory.on_device(1, checkpointing=True) < memory.on_device(1)
    logits = memory.loss(10**5) - 10**5 * 64 * (2 + 4) * 32
    assert logits == 12 * GPU_BLOCK_LOGITS  # at most a block of the vocabulary
    assert found.flops == 10 * 1024 * small_token_flops()
    assert found.days(8) == pytest.approx(found.days(1) / 8)
    assert found.items_on_device(1) == 16
    assert found.items_on_device(8) == 2
    assert found.items_on_device(512) == 1


def test_memory_is_that_of_the_largest_micro_batch():
    """One process does not divide a step, whose tokens vary; others keep to the limit, except for a long document."""
    found, _ = estimate_lm(SMALL, TRAIN, 1024, 64, 10 * 1024, largest_step_tokens=1280)
    assert [found.items_on_device(devices) for devices in (1, 8, 64)] == [20, 2, 1]
    parts, _ = estimate_lm(SMALL, replace(TRAIN, grad_accum_steps=2), 1024, 64, 10 * 1024, largest_step_tokens=1280)
    assert [parts.items_on_device(devices) for devices in (1, 8, 64)] == [8, 1, 1]


def small_token_flops(trained=None):
    matrices = PARAMETERS - 100 * 32  # all but the embeddings, which are only looked up
    attention = 12 * 3 * 32 * 64
    return 6 * matrices + attention if trained is None else 4 * matrices + 6 * trained + attention


def test_settings_change_the_memory():
    half = small_estimate(grad_accum_steps=2)
    assert half.items_on_device(1) == small_estimate().items_on_device(1) / 2
    assert small_estimate(optimizer="muon").memory.optimizer < half.memory.optimizer
    fp32 = small_estimate(precision="fp32").memory
    assert fp32.copies == 0 < half.memory.copies
    assert fp32.item > half.memory.item


def test_adapters_train_few_parameters_and_keep_the_weights_in_bf16(base):
    no_base = Path("missing")
    found = small_estimate(partial(lora_parameters, no_base, LoraConfig(rank=4)))
    q, k, up = 2 * 32, 32 + 16, 32 + 48  # sides of query and output, key and value, and the three feed-forward layers
    trained = 3 * 4 * (2 * q + 2 * k + 3 * up)
    assert 0 <= found.memory.weights - (2 * PARAMETERS + 4 * trained) < 100
    assert found.memory.gradients == found.memory.optimizer / 2 == 4 * trained
    assert found.flops == pytest.approx(10 * 1024 * small_token_flops(trained))
    model = AutoModelForCausalLM.from_config(SMALL)
    assert lora_parameters(no_base, LoraConfig(rank=4), model) == trained
    assert lora_parameters(no_base, LoraConfig(rank=0), model) == 0
    some = LoraConfig(rank=4, targets=("q_proj", "v_proj"))
    assert lora_parameters(no_base, some, model) == 3 * 4 * (q + k)
    with pytest.raises(UserError, match=r"lora.targets .* match no linear layer of LlamaForCausalLM"):
        lora_parameters(no_base, LoraConfig(rank=4, targets=("nothing",)), model)


def test_embedding_rows_of_speech_tokens_are_trained_with_adapters(base):
    """Of a base with a tokenizer: codes, markers and roles."""
    with FakeTensorMode():
        model = AutoModelForCausalLM.from_config(config_of(base))
    without = lora_parameters(Path("missing"), LoraConfig(rank=4), model)
    assert lora_parameters(base, LoraConfig(rank=4), model) == without + (NUM_CODES + 2 + 3) * TINY.hidden


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_have_the_parameters_that_peft_creates(family):
    peft = pytest.importorskip("peft")
    model, _ = text_lm(family, tied=False)
    found = lora_parameters(Path("missing"), LoraConfig(rank=4), model)
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"))
    assert found == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_a_dry_run_reads_the_mixture_from_token_shards(config, capsys):
    pretrain.run(replace(config, dry_run=True))
    out, err = capsys.readouterr()
    values = dict(line.split(maxsplit=1) for line in out.split("\n\n")[0].splitlines())
    drawn = [int(line.split()[5].replace(",", "")) for line in err.splitlines()[1:-1]]
    assert values["tokens"] == f"{sum(drawn):,} (of the shards, in 40 steps of 256)"
    assert sum(drawn) == pytest.approx(40 * 256, rel=0.05)
    assert not config.out.exists()


def test_a_dry_run_has_the_memory_of_the_largest_step(config, capsys):
    mixture = pretrain._mixture(config)
    tokens = [sum(len(mixture[j][0]) for j in mixture.samples(step)) for step in range(config.train.steps)]
    assert max(tokens) > config.batch_tokens
    pretrain.run(replace(config, dry_run=True))
    _, rows = printed(capsys)
    assert rows[1][1] == f"{max(tokens) / config.max_seq_len:.3g}"
    assert rows[8][1] == "1"


def test_a_dry_run_shows_adapters(config, capsys):
    pretrain.run(replace(config, lora=LoraConfig(rank=4), dry_run=True))
    values, _ = printed(capsys)
    adapters = 2 * 4 * (4 * 2 * 32 + 3 * (32 + 64))
    assert values["trained_parameters"] == f"{adapters + (NUM_CODES + 2 + 3) * 32:,}"


def test_a_dry_run_has_a_row_for_each_number_of_gpus(config, capsys):
    pretrain.run(replace(config, dry_run=True))
    lines = capsys.readouterr().out.splitlines()
    head, *rows = lines[lines.index("") + 1 : -2]
    columns = ["gpus", "items per gpu", "GB", "GB checkpointing", "GB fsdp", "GB fsdp+checkpointing", "days"]
    assert re.split(r"\s{2,}", head.strip()) == columns
    assert [row.split()[0] for row in rows] == ["1", "8", "64", "512"]
    assert "An item is one sequence of 32 tokens." in lines[-1]


def test_a_dry_run_rejects_what_a_run_rejects(config, tmp_path, capsys):
    config = replace(config, dry_run=True)
    with pytest.raises(UserError, match="max_epochs"):
        pretrain.run(replace(config, max_epochs=0.01))
    assert "parameters" in printed(capsys)[0]  # of a model that more data will be for
    with pytest.raises(UserError, match="weights lacks"):
        pretrain.run(replace(config, weights={"speech": 1.0}))
    with pytest.raises(UserError, match="max_seq_len is 257: give 2 to 256"):
        pretrain.run(replace(config, max_seq_len=257))
    with pytest.raises(UserError, match=r"has no config.json.*\(this file is enough\)"):
        pretrain.run(replace(config, base=tmp_path))


def test_a_dry_run_is_not_part_of_the_plan(config):
    assert "dry_run" not in Plan.of("language_model", replace(config, dry_run=True)).settings


def test_a_dry_run_of_a_text_to_token_model_prints_its_estimate(tmp_path, speech_tokenizer, capsys):
    """Without codes; a tokenizer artifact is enough."""
    config = TextToTokenConfig(
        tmp_path / "out", (Path("missing"),), speech_tokenizer, model=TINY, vocab_size=320, train=TRAIN, dry_run=True
    )
    assert text_to_token.run(config) is None
    values, rows = printed(capsys)
    embeddings = (320 + NUM_CODES) * 32
    parameters = embeddings + 2 * (4 * 32 * 32 + 3 * 32 * 64 + 2 * 32) + 32
    assert values["parameters"] == f"{parameters:,}"
    assert values["embeddings"] == f"{embeddings:,} ({320 + NUM_CODES} rows, tied to the head)"
    assert values["tokens"] == f"{10 * 24 * 256:,} (at most)"
    token_flops = 6 * parameters + 12 * 2 * 32 * 256  # the head is the embeddings
    assert values["token_flops"] == f"{token_flops:.3g}"
    assert values["training_flops"] == f"{10 * 24 * 256 * token_flops:.3g} in 10 steps"
    assert values["activations_gb"].endswith(" per sequence of 256 tokens")
    assert (rows[1][1], rows[8][1], rows[64][1]) == ("24", "3", "1")
    assert not (tmp_path / "out").exists()


def test_a_dry_run_of_a_text_to_token_model_reads_the_shape_of_its_base(tmp_path, speech_tokenizer, base, capsys):
    config = TextToTokenConfig(
        tmp_path / "out", (Path("missing"),), speech_tokenizer, base=base, train=TRAIN, dry_run=True
    )
    text_to_token.run(config)
    values, _ = printed(capsys)
    assert values["parameters"] == f"{AutoModelForCausalLM.from_pretrained(base).num_parameters():,}"
