import errno
import json
import math
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.ranks import in_ranks
from tests.training.skipped import changed_steps
from weft.errors import UserError
from weft.lm import pretrain
from weft.lm.model import LanguageModel
from weft.lm.pretrain import PretrainConfig
from weft.training.config import TrainConfig
from weft.training.metrics import read_metrics

from .runs import (
    RESUMABLE,
    assert_close_weights,
    call_at,
    interrupted,
    metrics_without_speed,
    skip_plot_and_peak,
    weights_of,
)

CHANGED_WEIGHTS = {"interleaved": "rest", "speech": "1.75 epochs"}

pytestmark = pytest.mark.usefixtures("short_run")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, base, tokens, held_out):
    """A finished run, which tests must not change: its configuration and manifest."""
    config = PretrainConfig(
        base=base,
        tokens=(tokens,),
        held_out=(held_out,),
        out=tmp_path_factory.mktemp("trained") / "lm",
        batch_tokens=256,
        max_seq_len=32,
        train=TrainConfig(steps=70, lr=1e-2, warmup_steps=5, log_every_steps=20),
    )
    return config, pretrain.run(config)


def test_training_learns_both_modalities_and_reports_counts(trained):
    config, manifest = trained
    counts = manifest.counts
    assert manifest.parents["tokenizer"] == "t0"
    assert counts["tokens_per_sec"] > 0
    assert counts["tokens"] == pytest.approx(70 * 256, rel=0.05)
    assert set(counts["mixture"]) == {"interleaved", "speech"}
    assert sum(source["tokens_drawn"] for source in counts["mixture"].values()) == counts["tokens"]
    # All that cannot be predicted is which of two sentences comes: ln 2 nats over the ids of a sentence.
    assert counts["loss.speech"] < math.log(2)
    assert counts["loss.text"] < math.log(2)
    assert counts["nats_per_sec.speech"] == 12.5 * counts["loss.speech"]
    assert counts["frame_rate_hz"] == 12.5
    assert counts["skipped_steps"] == 0
    assert not (config.out / "checkpoints").exists()
    LanguageModel.from_pretrained(config.out)


def test_metrics_and_a_plot_are_in_the_log(trained):
    config, _ = trained
    lines = list(read_metrics(config.out / "log"))
    assert [line["step"] for line in lines] == [0, 20, 40, 60, 69]
    names = {"step", "loss", "lr", "grad_norm", "tokens_per_sec", "mfu", "loss_text", "loss_speech/speech"}
    assert all(names <= set(line) for line in lines)
    assert (config.out / "log/training.png").exists()


def test_the_base_is_evaluated_on_the_same_data(trained, vocab):
    counts = trained[1].counts
    names = ("loss.text", "loss.speech", "bits_per_byte.text", "nats_per_sec.speech")
    for found in (counts, counts["held_out"]["interleaved"]):
        assert all(found[f"base.{name}"] > found[name] for name in names)
    assert counts["base.loss.text"] == pytest.approx(math.log(vocab.size), rel=0.05)


def test_an_interrupted_run_does_not_evaluate_its_base_again(config, monkeypatch):
    """A model that training does not change has the losses of its base."""
    calls = []
    evaluate = pretrain.held_out_losses
    monkeypatch.setattr(pretrain, "held_out_losses", lambda *args: calls.append(args) or evaluate(*args))
    config = replace(config, train=replace(config.train, steps=3, lr=1e-9, warmup_steps=0, weight_decay=0))
    interrupted(config, 0)
    counts = pretrain.run(config).counts
    assert len(calls) == 2  # of the base, and of the result
    names = ("loss.text", "loss.speech", "bits_per_byte.text", "nats_per_sec.speech")
    for found in (counts, counts["held_out"]["interleaved"]):
        assert [found[f"base.{name}"] for name in names] == pytest.approx([found[name] for name in names], rel=1e-5)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, trained):
    """A finished run whose weights change at a step, which tests must not change: its configuration and manifest."""
    config = replace(
        trained[0],
        out=tmp_path_factory.mktemp("whole") / "lm",
        weights={"interleaved": 0.3, "speech": 0.7},
        weights_from={"9": CHANGED_WEIGHTS},
        train=RESUMABLE,
    )
    with pytest.MonkeyPatch.context() as patch:
        skip_plot_and_peak(patch)
        return config, pretrain.run(config)


@pytest.mark.parametrize("step", [1, 9, 10])  # before any checkpoint, at the change of weights, after it
def test_an_interrupted_run_resumes_to_the_same_losses_and_weights(whole, tmp_path, step):
    config = replace(whole[0], out=tmp_path / "lm")
    interrupted(config, step)
    assert_equal_runs(pretrain.run(config), config, *whole)


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def killed(config, step):
    with call_at(step, kill):
        pretrain.run(config)


def test_a_killed_run_resumes_to_the_same_losses_and_weights(whole, tmp_path):
    config = replace(whole[0], out=tmp_path / "lm")
    assert in_ranks(killed, tmp_path, config, 8, num=1) == [None]
    assert (tmp_path / "lm.partial/checkpoints/step-00000006").is_dir()
    assert_equal_runs(pretrain.run(config), config, *whole)


def assert_equal_runs(manifest, config, whole_config, whole_manifest):
    assert manifest.fingerprint == whole_manifest.fingerprint
    assert manifest.counts["mixture"]["speech"]["epochs"] == 1.75
    logs = [metrics_without_speed(c.out) for c in (config, whole_config)]
    assert logs[0] == logs[1]
    assert len(logs[0]) == 12
    losses = [{k: v for k, v in m.counts.items() if "loss" in k or k == "held_out"} for m in (manifest, whole_manifest)]
    assert losses[0] == losses[1]
    assert "base.loss.text" in losses[0]


def test_weights_of_later_steps_may_change_in_an_interrupted_run(whole, tmp_path):
    """The result is that of a run with the new weights; steps before the checkpoint keep theirs."""
    changed = replace(whole[0], out=tmp_path / "lm")
    interrupted(replace(changed, weights_from={}), 10)  # the checkpoint contains steps 0 to 8
    with pytest.raises(UserError, match=r"started with weights_from.8 = None \(now .*: restore the settings"):
        pretrain.run(replace(changed, weights_from={"8": CHANGED_WEIGHTS}))
    manifest = pretrain.run(changed)
    assert manifest.fingerprint == whole[1].fingerprint
    assert manifest.settings == whole[1].settings
    assert manifest.settings["weights_from"] == {"9": CHANGED_WEIGHTS}


def test_a_failure_while_saving_loses_no_step(whole, tmp_path, monkeypatch):
    config = replace(whole[0], out=tmp_path / "lm")

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "save", fail)
        with pytest.raises(OSError, match="No space left"):
            pretrain.run(config)
    with call_at(0, lambda: pytest.fail("trained again")):
        manifest = pretrain.run(config)
    assert_equal_runs(manifest, config, *whole)
    assert manifest.counts["tokens_per_sec"] > 0
    assert not (config.out / "checkpoints").exists()


HOUSEKEEPING = {
    "parallel": "fsdp",
    "activation_checkpointing": True,
    "compile": True,
    "max_epochs": 100.0,
    "train.grad_accum_steps": 2,
    "train.log_every_steps": 7,
    "train.checkpoint_every_steps": 7,
    "train.keep_checkpoints": 7,
    "train.max_skipped_steps": 7,
}


def with_setting(config, name, value):
    if name.startswith("train."):
        return replace(config, train=replace(config.train, **{name.removeprefix("train."): value}))
    return replace(config, **{name: value})


@pytest.mark.parametrize("name", HOUSEKEEPING)
def test_settings_that_cannot_change_the_result_may_differ(trained, name):
    config, manifest = trained
    assert pretrain.run(with_setting(config, name, HOUSEKEEPING[name])) == manifest


def test_paths_of_inputs_may_differ(trained, tmp_path):
    config, manifest = trained
    moved = {
        "base": Path(shutil.copytree(config.base, tmp_path / "base")),
        "tokens": (Path(shutil.copytree(config.tokens[0], tmp_path / "tokens")),),
        "held_out": (Path(shutil.copytree(config.held_out[0], tmp_path / "held-out")),),
    }
    assert pretrain.run(replace(config, **moved)) == manifest


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("batch_tokens", 128, r"batch_tokens = 256 \(now 128\)"),
        ("attention", "sequence", r"attention = document \(now sequence\)"),
        ("train.lr", 1e-3, r"train.lr = 0.01 \(now 0.001\)"),
        ("weights", {"interleaved": 0.5, "speech": 0.5}, r"weights.interleaved = None \(now 0.5\)"),
    ],
)
def test_settings_that_change_the_result_must_not_differ(trained, name, value, message):
    config, _ = trained
    with pytest.raises(UserError, match=rf"{config.out} was created with {message}.*: choose another --out"):
        pretrain.run(with_setting(config, name, value))


def test_the_order_of_datasets_is_part_of_the_plan(trained, tmp_path):
    """It determines the samples, although the token shards are the same."""
    config, manifest = trained
    assert manifest.settings["datasets"] == ["interleaved", "speech"]
    tokens = Path(shutil.copytree(config.tokens[0], tmp_path / "tokens"))
    packed = json.loads((tokens / "manifest.json").read_text())
    packed["counts"]["datasets"] = dict(reversed(packed["counts"]["datasets"].items()))
    (tokens / "manifest.json").write_text(json.dumps(packed))
    with pytest.raises(UserError, match=r"datasets = \['interleaved', 'speech'\] \(now \['speech', 'interleaved'\]\)"):
        pretrain.run(replace(config, tokens=(tokens,)))


def test_an_interrupted_run_may_resume_with_other_settings_of_the_machine(config, tmp_path):
    config = replace(config, train=RESUMABLE)
    interrupted(config, 7)
    with pytest.raises(UserError, match=r"started with train\.lr = 0.01 \(now 0.001\)"):
        pretrain.run(replace(config, train=replace(RESUMABLE, lr=1e-3)))
    smaller = replace(RESUMABLE, grad_accum_steps=2, checkpoint_every_steps=5, log_every_steps=5)
    base = Path(shutil.copytree(config.base, tmp_path / "base"))
    others = {"activation_checkpointing": True, "parallel": "fsdp", "max_epochs": 100.0, "base": base}
    pretrain.run(replace(config, train=smaller, **others))
    whole = replace(config, out=tmp_path / "whole")
    pretrain.run(whole)
    assert_close_weights(config.out, weights_of(whole.out), 1e-5)


def test_activation_checkpointing_changes_no_weights_and_row_attention_does(config, tmp_path):
    config = replace(config, held_out=(), train=replace(config.train, steps=5))
    others = {"activation_checkpointing": True}, {"attention": "sequence"}
    runs = [config, *(replace(config, out=tmp_path / str(i), **o) for i, o in enumerate(others))]
    plain, recomputed, rows = (pretrain.run(run).fingerprint and weights_of(run.out) for run in runs)
    for name, weight in plain.items():
        torch.testing.assert_close(recomputed[name], weight)
    assert not all(torch.equal(weight, rows[name]) for name, weight in plain.items())


def test_damaged_shards_are_found_before_training(config, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "fit", lambda *_: pytest.fail("training began"))
    damaged = Path(shutil.copytree(config.tokens[0], tmp_path / "damaged"))
    path = damaged / "speech" / "00000.ds.loss"
    content = path.read_bytes()
    path.write_bytes(content[:-5])
    found = rf"damaged.*speech/00000.ds.loss has {len(content) - 5} bytes, expected {len(content)}"
    for name in ("tokens", "held_out"):
        with pytest.raises(UserError, match=found):
            pretrain.run(replace(config, **{name: (damaged,)}))
    assert not config.out.exists()


def test_the_mixture_is_shown_before_training(config, capsys):
    interrupted(config, 0)
    assert "dataset      documents  tokens  weight" in capsys.readouterr().err


def test_a_trained_model_is_a_base_for_further_training(trained, tmp_path):
    config, manifest = trained
    train = replace(config.train, steps=1)
    tuned = pretrain.run(replace(config, base=config.out, out=tmp_path / "tuned", held_out=(), train=train))
    assert tuned.parents["base"] == manifest.fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": {"interleaved": 1.0, "speach": 1.0}}, "weights lists 'speach'"),
        ({"weights": {"interleaved": 1.0}}, "weights lacks speech"),
        ({"weights": {"interleaved": 0.0, "speech": 0.0}}, "weights sum to 0 instead of 1"),
        ({"weights_from": {"40": {"interleaved": 1.0, "speech": 0}}}, "weights_from.40 is not a step of the run"),
        ({"weights_from": {"9": {"interleaved": 1.0}}}, "weights_from.9 lacks speech"),
        ({"max_epochs": 2.0}, "the run would read interleaved .* times .* max_epochs 2: reduce train.steps"),
        ({"max_seq_len": 100_000}, "max_seq_len is 100000: give 2 to 256"),
    ],
)
def test_invalid_settings_are_rejected(config, change, message):
    with pytest.raises(UserError, match=message):
        pretrain.run(replace(config, **change))
    assert not config.out.exists()


def test_token_shards_that_do_not_fit_are_rejected(config, pack_tokens):
    with pytest.raises(UserError, match="was packed for another vocabulary"):
        pretrain.run(replace(config, tokens=(pack_tokens(fingerprint="0"),)))
    with pytest.raises(UserError, match="different tokenizers"):
        pretrain.run(replace(config, tokens=(pack_tokens(tokenizer="t1"),)))
    with pytest.raises(UserError, match="two directories"):
        pretrain.run(replace(config, tokens=(config.tokens[0], pack_tokens())))


def test_a_dataset_of_weight_0_is_left_out(config):
    config = replace(config, weights={"interleaved": 1.0, "speech": 0.0})
    config = replace(config, held_out=(), train=replace(config.train, steps=1))
    assert pretrain.run(config).counts["mixture"]["speech"]["tokens_drawn"] == 0


def test_a_skipped_step_changes_neither_model_nor_optimizer(config):
    config = replace(config, train=replace(config.train, steps=4, grad_accum_steps=2))
    assert changed_steps(pretrain, lambda: pretrain.run(config), {(0, 0, 0), (2, 1, 0)}) == [False, True, False, True]
