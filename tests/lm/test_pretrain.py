import dataclasses
import math

import numpy as np
import pytest

from weft import artifacts
from weft.data.shards import TokenShards, write_tokens
from weft.errors import UserError
from weft.lm import pretrain
from weft.lm.mixture import Pieces
from weft.lm.model import KIND, LanguageModel, save
from weft.lm.pretrain import PretrainConfig, held_out_losses
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
    assert set(counts["epochs"]) == {"interleaved", "speech"}
    # Which sentence comes is a coin flip and all there is to know: ln 2 nats over the ids of a whole sentence.
    assert counts["loss.speech"] < math.log(2)
    assert counts["loss.text"] < math.log(2)
    assert {"loss", "loss_text", "loss_speech", "lr"} <= set(next(read_metrics(config.out / "log")))
    assert not (config.out / "checkpoints").exists()
    LanguageModel.load(config.out)


def test_a_killed_run_continues_to_the_same_weights(config, monkeypatch):
    whole = pretrain.run(config)
    again, calls = dataclasses.replace(config, out=config.out.with_name("again")), []

    def killing_pack(*args):
        calls.append(args)
        if len(calls) == 25:
            raise KeyboardInterrupt
        return packing(*args)

    packing = pretrain.pack
    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "pack", killing_pack)
        with pytest.raises(KeyboardInterrupt):
            pretrain.run(again)
    assert pretrain.run(again).fingerprint == whole.fingerprint


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
    datasets = [Pieces(TokenShards(config.held_out[0] / name), 32) for name in ("interleaved", "speech")]
    small, large = (held_out_losses(tiny_lm, vocab, datasets, tokens) for tokens in (1, 10_000))
    assert small == pytest.approx(large, rel=1e-5)
    assert set(small) == {"loss.text", "loss.speech"}
    assert small["loss.text"] == pytest.approx(math.log(vocab.size), rel=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": {"interleaved": 1.0, "speach": 1.0}}, "weights names 'speach'"),
        ({"weights": {"interleaved": 1.0}}, "weights lacks speech"),
        ({"weights": {"interleaved": 0.0, "speech": 0.0}}, "nothing to train on"),
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
    assert set(pretrain.run(config).counts["epochs"]) == {"interleaved"}
