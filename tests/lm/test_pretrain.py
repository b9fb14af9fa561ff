import dataclasses
import json
import math
import os
import shutil
import signal
import sys

import numpy as np
import pytest
import torch

from tests.ranks import in_ranks
from weft import artifacts
from weft.data.shards import TokenShards, write_tokens
from weft.errors import UserError
from weft.lm import pretrain, watch
from weft.lm.held_out import held_out_losses
from weft.lm.losses import Units
from weft.lm.mixture import Mixture, Pieces
from weft.lm.model import KIND, LanguageModel, save
from weft.lm.pretrain import PretrainConfig
from weft.records import Document, Segment
from weft.training.loop import TrainConfig
from weft.training.metrics import read_metrics


def documents(rng, kind, num):
    """Documents of two sentences that speech and text tell alike: what follows can be learnt."""
    said = {" the cat sat": [1, 2, 3, 4], " a bird sang": [9, 8, 7, 6]}
    for i in range(num):
        first, second = rng.choice(list(said), 2)
        spoken = Segment.of_speech(said[first], first)
        yield Document(str(i), kind, (spoken, Segment.of_text(second)) if kind == "interleaved" else (spoken,) * 3)


@pytest.fixture
def pack(tmp_path, vocab):
    def make(name, seed=0, fingerprint=vocab.fingerprint, kinds=("interleaved", "speech"), tokenizer="t0"):
        parents = {"tokenizer": artifacts.Manifest("tokenizer", tokenizer)}
        with artifacts.build(tmp_path / name, "tokens", {"vocab": fingerprint}, parents) as draft:
            for kind in kinds:
                ids = map(vocab.document_ids, documents(np.random.default_rng(seed), kind, 60))
                write_tokens(draft.folder / kind, 0, vocab.size, ids)
        return tmp_path / name

    return make


@pytest.fixture
def config(tmp_path, vocab, tiny_lm, pack):
    parents = {"tokenizer": artifacts.Manifest("tokenizer", "t0")}
    with artifacts.build(tmp_path / "base", KIND, {}, parents) as draft:
        save(tiny_lm, vocab.tokenizer, draft.folder)
        draft.counts["frame_rate_hz"] = 12.5
    return PretrainConfig(
        base=tmp_path / "base",
        tokens=(pack("tokens"),),
        held_out=(pack("held-out", seed=1),),
        out=tmp_path / "lm",
        tokens_per_step=256,
        row_tokens=32,
        train=TrainConfig(steps=40, lr=1e-2, warmup_steps=5, checkpoint_every_steps=7, log_every_steps=5),
    )


def test_training_learns_both_modalities_and_tells_what_it_measured(config):
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=100))
    manifest = pretrain.run(config)
    counts = manifest.counts
    assert manifest.parents["tokenizer"] == "t0"
    assert counts["tokens_per_sec"] > 0
    assert counts["tokens"] == pytest.approx(100 * 256, rel=0.05)
    assert set(counts["mixture"]) == {"interleaved", "speech"}
    assert sum(source["tokens_drawn"] for source in counts["mixture"].values()) == counts["tokens"]
    # Which sentence comes is a coin flip and all there is to know: ln 2 nats over the ids of a whole sentence.
    assert counts["loss.speech"] < math.log(2)
    assert counts["loss.text"] < math.log(2)
    assert counts["nats_per_sec.speech"] == 12.5 * counts["loss.speech"]
    assert counts["frame_rate_hz"] == 12.5
    assert counts["skipped_steps"] == 0
    assert not (config.out / "checkpoints").exists()
    LanguageModel.load(config.out)


def killed_at(call, config):
    """Run until the losses of that batch are asked for, and be killed there."""
    losses, calls = pretrain.token_losses, []

    def token_losses(*args):
        calls.append(args)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return losses(*args)

    pretrain.token_losses = token_losses
    pretrain.run(config)


def lines_without_speed(out):
    return [{k: v for k, v in line.items() if k not in ("tokens_per_sec", "mfu")} for line in read_metrics(out / "log")]


@pytest.mark.parametrize("kill_at", [3, 22, 25])  # before any checkpoint, at the step of the change, after it
def test_a_killed_run_continues_to_the_same_losses_and_weights(config, tmp_path, kill_at):
    """With weights that change at a step: by shares first, by epochs and the rest then."""
    config = dataclasses.replace(
        config,
        weights={"interleaved": 0.3, "speech": 0.7},
        weights_from={"21": {"interleaved": "rest", "speech": "4 epochs"}},
        train=dataclasses.replace(config.train, steps=30, log_every_steps=1),
    )
    again = dataclasses.replace(config, out=tmp_path / "again")
    assert in_ranks(killed_at, tmp_path, kill_at, again, num=1) == [None]
    assert not again.out.exists()
    assert in_ranks(finished, tmp_path, [again, config], num=1)[0]
    runs = [artifacts.read(out) for out in (again.out, config.out)]
    assert runs[0].fingerprint == runs[1].fingerprint
    assert runs[0].counts["mixture"]["speech"]["epochs"] == 4
    logs = [lines_without_speed(out) for out in (again.out, config.out)]
    assert logs[0] == logs[1]
    assert len(logs[0]) == 30
    measured = [{k: v for k, v in run.counts.items() if "loss" in k or k == "held_out"} for run in runs]
    assert measured[0] == measured[1]
    assert "base.loss.text" in measured[0]


def test_weights_of_steps_to_come_may_change_while_a_run_is_stopped(config, tmp_path):
    """It ends as one that was begun with them; steps of the checkpoint keep the weights they were trained with."""
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=30))
    then = {"interleaved": "rest", "speech": "4 epochs"}
    assert in_ranks(killed_at, tmp_path, 25, config, num=1) == [None]  # the checkpoint has steps 0 to 20
    with pytest.raises(UserError, match=r"begun with another weights_from.20.*: run it as before"):
        pretrain.run(dataclasses.replace(config, weights_from={"20": then}))
    changed = dataclasses.replace(config, weights_from={"21": then})
    pretrain.run(changed)
    whole = pretrain.run(dataclasses.replace(changed, out=tmp_path / "whole"))
    assert artifacts.read(config.out).fingerprint == whole.fingerprint
    assert artifacts.read(config.out).settings == whole.settings
    assert whole.settings["weights_from"] == {"21": then}


@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [({"precision": "fp32"}, 1e-6), ({"precision": "fp32", "accumulate": 3}, 1e-6), ({"precision": "bf16"}, 2e-3)],
)
def test_two_processes_train_what_one_trains(config, tmp_path, changes, tolerance):
    """Replicated or sharded, with tied weights: to a millionth of the weights in fp32, of which the largest is 0.1; in
    bf16 to two steps of the learning rate."""
    train = dataclasses.replace(config.train, steps=8, lr=1e-3, log_every_steps=1, **changes)
    one = dataclasses.replace(config, train=train)
    replicated = dataclasses.replace(one, out=tmp_path / "replicated")
    sharded = dataclasses.replace(one, out=tmp_path / "sharded", parallel="shard")
    whole = pretrain.run(one)
    assert all(in_ranks(finished, tmp_path, [replicated, sharded]))
    weights = LanguageModel.load(one.out).model.state_dict()
    for out in (replicated.out, sharded.out):
        made = LanguageModel.load(out)
        assert type(made.model).__name__ == "LlamaForCausalLM"
        for name, found in made.model.state_dict().items():
            torch.testing.assert_close(
                found, weights[name], rtol=0, atol=tolerance, msg=lambda m, name=name, out=out: f"{out.name} {name} {m}"
            )
        assert made.manifest.counts["loss.text"] == pytest.approx(whole.counts["loss.text"], abs=10 * tolerance)
        assert made.manifest.counts["tokens"] == whole.counts["tokens"]
        for a, b in zip(read_metrics(out / "log"), read_metrics(one.out / "log"), strict=True):
            assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=10 * tolerance)
    assert sorted(p.name for p in sharded.out.iterdir()) == sorted(p.name for p in one.out.iterdir())


def stopped_at(config, step):
    """Run until the batch of that step is asked for, and be interrupted there."""
    samples = Mixture.samples

    def stop(mixture, at):
        if at == step:
            raise UserError("stop")
        return samples(mixture, at)

    Mixture.samples = stop
    with pytest.raises(UserError, match="stop"):
        pretrain.run(config)


def test_a_sharded_run_goes_on_in_any_number_of_processes_and_the_other_way(config, tmp_path):
    train = dataclasses.replace(config.train, steps=12, lr=1e-3, checkpoint_every_steps=4, precision="fp32")
    one = dataclasses.replace(config, train=train)
    sharded = dataclasses.replace(one, out=tmp_path / "sharded", parallel="shard")
    assert in_ranks(stopped_at, tmp_path, sharded, 6) == [None, None]
    begun, four = sharded.out.with_name("sharded.partial"), tmp_path / "four"
    shutil.copytree(begun, four.with_name("four.partial"))
    assert (begun / "checkpoints/step-00000004").is_dir()
    pretrain.run(one)
    pretrain.run(dataclasses.replace(sharded, parallel="replicate"))
    assert all(in_ranks(finished, tmp_path, [dataclasses.replace(sharded, out=four)], num=4))
    weights = LanguageModel.load(one.out).model.state_dict()
    for out in (sharded.out, four):
        assert next(iter(read_metrics(out / "log")))["step"] == 0
        for name, found in LanguageModel.load(out).model.state_dict().items():
            torch.testing.assert_close(
                found, weights[name], rtol=0, atol=1e-6, msg=lambda m, name=name, out=out: f"{out.name} {name} {m}"
            )


def test_what_a_run_needs_of_its_machine_may_change_while_it_is_stopped(config, tmp_path):
    train = dataclasses.replace(config.train, steps=12, checkpoint_every_steps=4, precision="fp32")
    config = dataclasses.replace(config, train=train)
    assert in_ranks(killed_at, tmp_path, 7, config, num=1) == [None]
    with pytest.raises(UserError, match=r"begun with another train\.lr"):
        pretrain.run(dataclasses.replace(config, train=dataclasses.replace(train, lr=1e-3)))
    smaller = dataclasses.replace(train, accumulate=2, checkpoint_every_steps=5, log_every_steps=1)
    pretrain.run(dataclasses.replace(config, train=smaller, recompute=True))
    whole = dataclasses.replace(config, out=tmp_path / "whole")
    pretrain.run(whole)
    for name, found in weights_of(config.out).items():
        torch.testing.assert_close(found, weights_of(whole.out)[name], rtol=0, atol=1e-5)


def finished(configs):
    return [pretrain.run(config).fingerprint for config in configs]


def test_damage_is_found_before_training(config, monkeypatch):
    def never(*_):
        raise AssertionError("training began")

    monkeypatch.setattr(pretrain, "fit", never)
    for folder in (*config.tokens, *config.held_out):
        path = folder / "speech" / "00000.ds.loss"
        whole = path.read_bytes()
        path.write_bytes(whole[:-5])
        with pytest.raises(UserError, match=rf"{path} ends at byte {len(whole) - 5}, not at {len(whole)}"):
            pretrain.run(config)
        path.write_bytes(whole)
    assert not config.out.exists()


def test_a_lost_shard_is_found_before_training(config):
    folder = config.tokens[0]
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["counts"]["datasets"] = {"speech": {"documents": 90}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="speech holds 60 documents of the 90 that were packed: copy it again"):
        pretrain.run(config)


def test_the_mixture_is_told_before_the_start(config, capsys, monkeypatch):
    weights = {"interleaved": 0.25, "speech": "rest"}
    config = dataclasses.replace(config, weights=weights, weights_from={"20": {"interleaved": 1.0, "speech": 0.0}})
    monkeypatch.setattr(pretrain.distributed, "build", lambda *_: sys.exit())
    with pytest.raises(SystemExit):
        pretrain.run(config)
    told = capsys.readouterr().err
    head, *rows = [line.split() for line in told[told.index("dataset ") :].splitlines()]
    assert head == ["dataset", "documents", "tokens", "share", "from", "step", "20", "tokens", "drawn", "epochs"]
    assert [row[:2] for row in rows] == [["interleaved", "60"], ["speech", "60"]]
    assert float(rows[0][3].rstrip("%")) == pytest.approx(25, abs=1)
    assert [row[4] for row in rows] == ["100.00%", "0.00%"]


def test_settings_of_memory_change_no_weights_and_that_of_attention_does(config, tmp_path):
    config = dataclasses.replace(config, held_out=(), train=dataclasses.replace(config.train, steps=5))
    others = {"recompute": True}, {"attention": "row"}
    runs = [config, *(dataclasses.replace(config, out=tmp_path / str(i), **o) for i, o in enumerate(others))]
    plain, recomputed, rows = (pretrain.run(run).fingerprint and weights_of(run.out) for run in runs)
    for name, weight in plain.items():
        torch.testing.assert_close(recomputed[name], weight)
    assert not all(torch.equal(weight, rows[name]) for name, weight in plain.items())


def weights_of(folder):
    return LanguageModel.load(folder).model.state_dict()


def test_a_made_model_is_left_as_it_is(config):
    config = dataclasses.replace(config, held_out=(), train=dataclasses.replace(config.train, steps=1))
    first = pretrain.run(config)
    assert pretrain.run(config) == first


def test_a_trained_model_is_a_base_for_further_training(config, tmp_path):
    short = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=1))
    pretrain.run(short)
    tuned = pretrain.run(dataclasses.replace(short, base=config.out, out=tmp_path / "tuned"))
    assert tuned.parents["base"] == artifacts.read(config.out).fingerprint


def test_held_out_losses_do_not_depend_on_the_batches(config, vocab, tiny_lm):
    names = ("interleaved", "speech")
    datasets = [(name, Pieces(TokenShards(config.held_out[0] / name), 32)) for name in names]
    small, large = (held_out_losses(tiny_lm, Units(vocab), datasets, tokens) for tokens in (1, 10_000))
    by_dataset = [figures.pop("held_out") for figures in (small, large)]
    assert small == pytest.approx(large, rel=1e-5)
    assert set(small) == {"loss.text", "loss.speech", "bits_per_byte.text"}
    assert small["loss.text"] == pytest.approx(math.log(vocab.size), rel=0.05)
    for name in names:
        assert by_dataset[0][name] == pytest.approx(by_dataset[1][name], rel=1e-5)
    assert by_dataset[0]["interleaved"]["loss.text"] == small["loss.text"]
    assert set(by_dataset[0]["speech"]) == {"loss.speech"}


def test_the_base_is_measured_beside_what_is_made_of_it(config, vocab, monkeypatch):
    """By the same ruler, and once: a run that goes on has it already."""
    calls = []
    monkeypatch.setattr(pretrain, "held_out_losses", lambda *args: calls.append(args) or held_out_losses(*args))
    config = dataclasses.replace(
        config, train=dataclasses.replace(config.train, steps=3, lr=1e-9, warmup_steps=0, weight_decay=0)
    )
    with monkeypatch.context() as broken:
        broken.setattr(pretrain, "fit", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pretrain.run(config)
    counts = pretrain.run(config).counts
    assert len(calls) == 2  # of the base, and of what was made of it
    names = ("loss.text", "loss.speech", "bits_per_byte.text", "nats_per_sec.speech")
    for found in (counts, counts["held_out"]["interleaved"]):
        assert [found[f"base.{name}"] for name in names] == pytest.approx([found[name] for name in names], rel=1e-5)
    assert counts["base.loss.text"] == pytest.approx(math.log(vocab.size), rel=0.05)


def interrupt(*_):
    raise KeyboardInterrupt


def test_losses_are_told_by_source_and_modality_on_log_steps(config, tmp_path):
    """In micro-batches, or all at once."""
    logs = []
    for accumulate in (1, 3):
        train = dataclasses.replace(config.train, steps=7, accumulate=accumulate, precision="fp32")
        out = tmp_path / str(accumulate)
        pretrain.run(dataclasses.replace(config, out=out, held_out=(), train=train))
        logs.append(lines_without_speed(out))
        assert all(line["tokens_per_sec"] > 0 < line["mfu"] for line in read_metrics(out / "log"))
        assert (out / "log/training.png").exists()
    for whole, cut in zip(*logs, strict=True):
        assert cut == pytest.approx(whole, rel=1e-3)
    assert [line["step"] for line in logs[0]] == [0, 5, 6]
    figures = {
        "loss_text",
        "loss_speech",
        "nats_per_sec_speech",
        "bits_per_byte_text",
        "loss/interleaved",
        "loss/speech",
    }
    figures |= {"loss_text/interleaved", "loss_speech/interleaved", "loss_speech/speech"}
    assert set(logs[0][0]) == figures | {"step", "loss", "lr", "grad_norm"}
    assert logs[0][0]["loss_text/interleaved"] == logs[0][0]["loss_text"]


def skip_a_step(config):
    """A run whose third step has a loss that is not finite in one process."""
    token_losses, steps = pretrain.token_losses, []

    def losses_of(model, batch):
        steps.append(batch)
        bad = len(steps) == 3 and pretrain.distributed.rank() == pretrain.distributed.world_size() - 1
        return token_losses(model, batch) + (math.nan if bad else 0)

    pretrain.token_losses = losses_of
    return pretrain.run(config)


def test_processes_together_tell_what_one_tells(config, tmp_path):
    train = dataclasses.replace(config.train, steps=7, log_every_steps=1, precision="fp32")
    runs = {}
    for num in (1, 2):
        out = tmp_path / str(num)
        in_ranks(skip_a_step, tmp_path, dataclasses.replace(config, out=out, train=train), num=num)
        runs[num] = lines_without_speed(out), artifacts.read(out).counts
    for one, two in zip(runs[1][0], runs[2][0], strict=True):
        assert two == pytest.approx(one, rel=1e-3)
    assert [line.get("skipped_steps") for line in runs[2][0]] == [None, None, 1, 1, 1, 1, 1]
    for _, counts in runs.values():
        assert counts["skipped_steps"] == 1
    assert runs[2][1]["loss.text"] == pytest.approx(runs[1][1]["loss.text"], rel=1e-3)
    assert runs[2][1]["base.loss.text"] == runs[1][1]["base.loss.text"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": {"interleaved": 1.0, "speach": 1.0}}, "weights names 'speach'"),
        ({"weights": {"interleaved": 1.0}}, "weights lacks speech"),
        ({"weights": {"interleaved": 0.0, "speech": 0.0}}, "weights sum to 0, not to 1"),
        ({"weights_from": {"40": {"interleaved": 1.0, "speech": 0}}}, "weights_from.40 is no step of the run"),
        ({"weights_from": {"9": {"interleaved": 1.0}}}, "weights_from.9 lacks speech"),
        ({"max_epochs": 2.0}, 'the run would pass interleaved .* times .* and max_epochs is 2: give them "2 epochs"'),
        ({"row_tokens": 100_000}, "row_tokens is 100000: give 2 to 256"),
    ],
)
def test_wrong_settings_are_refused(config, change, message):
    with pytest.raises(UserError, match=message):
        pretrain.run(dataclasses.replace(config, **change))
    assert not config.out.exists()


def test_shards_that_do_not_fit_are_refused(config, pack):
    with pytest.raises(UserError, match="another vocabulary"):
        pretrain.run(dataclasses.replace(config, tokens=(pack("foreign", fingerprint="0"),)))
    with pytest.raises(UserError, match="different tokenizers"):
        pretrain.run(dataclasses.replace(config, tokens=(pack("other", tokenizer="t1"),)))
    with pytest.raises(UserError, match="two folders"):
        pretrain.run(dataclasses.replace(config, tokens=(config.tokens[0], pack("twice"))))


def test_a_dataset_of_weight_0_is_left_out(config):
    config = dataclasses.replace(config, weights={"interleaved": 1.0, "speech": 0.0})
    config = dataclasses.replace(config, held_out=(), train=dataclasses.replace(config.train, steps=1))
    assert pretrain.run(config).counts["mixture"]["speech"]["tokens_drawn"] == 0


@pytest.mark.parametrize(("every_sec", "drawn"), [(0.0, 6), (1e9, 1)])
def test_the_picture_is_drawn_at_checkpoints_but_not_too_often(config, monkeypatch, every_sec, drawn):
    pictures = []
    monkeypatch.setattr(watch, "plot", lambda folder: pictures.append(len(list(read_metrics(folder)))))
    monkeypatch.setattr(watch, "_PLOT_EVERY_SEC", every_sec)
    pretrain.run(dataclasses.replace(config, held_out=()))
    assert len(pictures) == drawn
    assert pictures == sorted(pictures)
    assert pictures[-1] == 9  # lines, of steps 0, 5, ..., 35 and 39
