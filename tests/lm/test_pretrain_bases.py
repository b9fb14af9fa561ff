"""Pre-training of bases of any dtype and family."""

import importlib.util
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from weft import artifacts
from weft.artifacts import Manifest
from weft.data.datasets import write_document_part
from weft.engine.generate import Engine, Request, Sampling
from weft.interleave import pack
from weft.interleave.pack import PackConfig
from weft.lm import init, packing, pretrain
from weft.lm.init import InitLmConfig
from weft.lm.lora import LoraConfig
from weft.lm.model import KIND, LanguageModel, save
from weft.lm.pretrain import PretrainConfig
from weft.plan import Plan, open_draft
from weft.training.config import TrainConfig

from .families import DOCUMENTS, save_text_lm, text_lm
from .runs import metrics_without_speed

pytestmark = pytest.mark.usefixtures("short_run")


def stored_dtypes(folder):
    with safe_open(folder / "model.safetensors", "pt") as weights:
        return {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118


@pytest.fixture(scope="module")
def copies(tmp_path_factory, base):
    """One base, stored in bf16 and in fp32."""
    lm, folder, found = LanguageModel.from_pretrained(base), tmp_path_factory.mktemp("copies"), {}
    for name, dtype in (("BF16", torch.bfloat16), ("F32", torch.float32)):  # after the first, values are those of bf16
        found[name] = folder / name
        with open_draft(found[name], Plan(KIND, {}, {"tokenizer": Manifest("tokenizer", "t0")})) as draft:
            save(lm.model, lm.tokenizer, draft.folder, dtype)
    return found


@pytest.mark.parametrize("rank", [0, 2])
def test_a_base_in_bf16_is_trained_and_measured_as_its_copy_in_fp32(config, copies, tmp_path, rank):
    """Weights are trained in fp32 and saved in the dtype of the base."""
    if rank and not importlib.util.find_spec("peft"):
        pytest.skip("peft is not installed")
    config = replace(config, lora=LoraConfig(rank=rank), train=replace(config.train, steps=6, precision="bf16"))
    runs = {dtype: replace(config, base=copy, out=tmp_path / dtype) for dtype, copy in copies.items()}
    counts = {dtype: pretrain.run(run).counts for dtype, run in runs.items()}
    logs = [metrics_without_speed(run.out) for run in runs.values()]
    assert logs[0] == logs[1]
    assert logs[0][-1]["loss"] < logs[0][0]["loss"] - 0.1
    assert counts["BF16"]["base.loss.text"] == counts["F32"]["base.loss.text"]
    assert counts["BF16"]["loss.text"] == pytest.approx(counts["F32"]["loss.text"], rel=1e-2)
    for dtype, run in runs.items():
        assert stored_dtypes(run.out) == {dtype}


def test_all_ways_to_train_a_base_measure_the_same_loss_of_it(config, copies, tmp_path):
    pytest.importorskip("peft")
    config = replace(config, base=copies["BF16"], train=replace(config.train, steps=1, precision="bf16"))
    whole = pretrain.run(config).counts
    adapted = pretrain.run(replace(config, out=tmp_path / "adapted", lora=LoraConfig(rank=2))).counts
    assert adapted["base.loss.text"] == whole["base.loss.text"]
    again = pretrain.run(replace(config, base=config.out, out=tmp_path / "again")).counts
    assert again["base.loss.text"] == whole["loss.text"]


@pytest.mark.parametrize(("setting", "stored"), [("fp32", "F32"), ("bf16", "BF16"), ("fp16", "F16")])
def test_a_model_is_saved_in_the_chosen_dtype(config, copies, setting, stored):
    config = replace(config, base=copies["BF16"], held_out=(), train=replace(config.train, steps=1))
    pretrain.run(replace(config, save_dtype=setting))
    assert stored_dtypes(config.out) == {stored}


@pytest.mark.parametrize("family", ["llama2", "qwen2", "glm4", "gemma2", "gemma3", "gpt2"])
def test_a_base_of_any_family_can_be_extended_and_trained(family, tmp_path, speech_tokenizer):
    base, text_tokenizer = text_lm(family, tied=family != "llama2")
    save_text_lm(base, text_tokenizer, tmp_path / "base")
    initial = init.run(InitLmConfig(tmp_path / "initial", speech_tokenizer, tmp_path / "base"))
    plan = Plan("documents", {}, {"tokenizer": artifacts.read(speech_tokenizer)})
    with open_draft(tmp_path / "documents", plan) as draft:
        write_document_part(draft.folder, 0, DOCUMENTS * 5)
    pack.run(PackConfig((tmp_path / "documents",), tmp_path / "initial", tmp_path / "tokens"))
    train = TrainConfig(steps=12, lr=1e-2, warmup_steps=1)
    shards = (tmp_path / "tokens",)
    config = PretrainConfig(
        tmp_path / "initial", shards, tmp_path / "lm", batch_tokens=256, max_seq_len=64, train=train
    )
    assert pretrain.run(config).parents["base"] == initial.fingerprint
    before, after = (LanguageModel.from_pretrained(tmp_path / name) for name in ("initial", "lm"))
    assert type(after.model) is type(base)
    assert after.vocab.fingerprint == before.vocab.fingerprint
    assert after.model.generation_config.suppress_tokens == before.model.generation_config.suppress_tokens
    batch = packing.pack([before.vocab.document_ids(d) for d in DOCUMENTS])
    with torch.no_grad():
        losses = [packing.token_losses(lm.model, batch).mean() for lm in (before, after)]
    assert losses[1] < 0.8 * losses[0]
    prompt = after.vocab.document_ids(DOCUMENTS[0])[0].tolist()
    sampled = Engine(after.model).generate([Request(prompt, 30)], Sampling())[0].ids
    assert max(sampled) < after.vocab.size
