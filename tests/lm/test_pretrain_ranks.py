"""Pre-training in several processes gives the weights of one process."""

import math
import shutil
from dataclasses import replace

import pytest

from tests.ranks import in_ranks
from tests.training.bases import train_from_rank_0, without_weights
from weft import artifacts
from weft.lm import pretrain
from weft.lm.micro_batches import MicroBatches
from weft.lm.model import LanguageModel
from weft.lm.pretrain import PretrainConfig
from weft.training import distributed
from weft.training.metrics import read_metrics

from .runs import (
    RESUMABLE,
    assert_close_weights,
    interrupted,
    metrics_without_speed,
    run_jobs,
    skip_plot_and_peak,
    weights_of,
)

pytestmark = pytest.mark.usefixtures("short_run")


def skip_a_step(config):
    """Run with a loss that is not finite in the third step of the last rank."""
    token_losses, parts_of, steps = pretrain.token_losses, MicroBatches.parts_of, []

    def losses_of(model, batch):
        is_bad = steps and steps[-1] == 2 and distributed.rank() == distributed.world_size() - 1
        return token_losses(model, batch) + (math.nan if is_bad else 0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "token_losses", losses_of)
        patch.setattr(MicroBatches, "parts_of", lambda parts, step: steps.append(step) or parts_of(parts, step))
        pretrain.run(config)


@pytest.fixture(scope="module")
def rank_runs(tmp_path_factory, base, tokens, held_out):
    """Runs of two ranks, which tests must not change: their configurations by name, each after that of one rank.

    The second rank cannot read the weights of the base. By DDP and FSDP in fp32, with micro-batches, and in bf16; with
    a skipped step; and interrupted in step 3.
    """
    folder = tmp_path_factory.mktemp("two-ranks")
    train = replace(RESUMABLE, steps=5, lr=1e-3, checkpoint_every_steps=2)
    config = PretrainConfig(
        base=base, tokens=(tokens,), held_out=(held_out,), out=folder / "lm", batch_tokens=256, max_seq_len=32
    )
    empty = without_weights(base, folder / "empty")
    runs, jobs = {}, []
    for name, changes in {"fp32": {}, "parts": {"grad_accum_steps": 3}, "bf16": {"precision": "bf16"}}.items():
        one = replace(config, train=replace(train, **changes), out=folder / name)
        two = [replace(one, parallel=p, out=folder / f"{name}-{p}") for p in ("ddp", "fsdp")]
        runs[name] = [one, *two]
        jobs += [(train_from_rank_0, pretrain.run, sharded, empty) for sharded in two]
    runs["skipped"] = [replace(runs["fp32"][0], out=folder / f"skipped-{num}") for num in (1, 2)]
    runs["interrupted"] = [runs["fp32"][0], replace(runs["fp32"][2], out=folder / "interrupted")]
    jobs += [(skip_a_step, runs["skipped"][1]), (interrupted, runs["interrupted"][1], 3)]
    with pytest.MonkeyPatch.context() as patch:
        skip_plot_and_peak(patch)
        for name in ("fp32", "parts", "bf16"):
            pretrain.run(runs[name][0])
        skip_a_step(runs["skipped"][0])
    assert in_ranks(run_jobs, folder, *jobs) == [True, True]
    return runs


@pytest.mark.parametrize(("name", "tolerance"), [("fp32", 1e-6), ("parts", 1e-6), ("bf16", 2e-3)])
def test_two_ranks_train_the_weights_of_one(rank_runs, name, tolerance):
    """With tied weights: to a millionth of the weights in fp32, of which the largest is 0.1; in bf16 to two steps of
    the learning rate."""
    one, *two = rank_runs[name]
    weights, expected = weights_of(one.out), artifacts.read(one.out)
    for config in two:
        assert_close_weights(config.out, weights, tolerance)
        lm = LanguageModel.from_pretrained(config.out)
        assert type(lm.model).__name__ == "LlamaForCausalLM"
        assert lm.manifest.counts["loss.text"] == pytest.approx(expected.counts["loss.text"], abs=10 * tolerance)
        assert lm.manifest.counts["tokens"] == expected.counts["tokens"]
        for a, b in zip(read_metrics(config.out / "log"), read_metrics(one.out / "log"), strict=True):
            assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=10 * tolerance)
        assert sorted(p.name for p in config.out.iterdir()) == sorted(p.name for p in one.out.iterdir())


def test_a_sharded_run_resumes_with_any_number_of_ranks_and_unsharded(rank_runs, tmp_path):
    one, partial = rank_runs["interrupted"]
    draft = partial.out.with_name("interrupted.partial")
    assert (draft / "checkpoints/step-00000002").is_dir()
    whole, sharded = (replace(partial, out=tmp_path / name) for name in ("whole", "sharded"))
    for config in (whole, sharded):
        shutil.copytree(draft, config.out.with_name(f"{config.out.name}.partial"))
    pretrain.run(replace(whole, parallel="ddp"))
    assert in_ranks(run_jobs, tmp_path, (pretrain.run, sharded), num=3) == [True] * 3
    weights = weights_of(one.out)
    for config in (whole, sharded):
        assert next(iter(read_metrics(config.out / "log")))["step"] == 0
        assert_close_weights(config.out, weights, 1e-6)


def test_two_ranks_log_the_metrics_of_one(rank_runs):
    one, two = rank_runs["skipped"]
    for a, b in zip(metrics_without_speed(one.out), metrics_without_speed(two.out), strict=True):
        assert b == pytest.approx(a, rel=1e-3)
    assert [line.get("skipped_steps") for line in read_metrics(two.out / "log")] == [None, None, 1, 1, 1]
    counts = [artifacts.read(c.out).counts for c in (one, two)]
    assert counts[0]["skipped_steps"] == counts[1]["skipped_steps"] == 1
    assert counts[1]["loss.text"] == pytest.approx(counts[0]["loss.text"], rel=1e-3)
    assert counts[1]["base.loss.text"] == counts[0]["base.loss.text"]
