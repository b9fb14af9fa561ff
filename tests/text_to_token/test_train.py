"""Training: the loss falls, the artifact describes its inputs, and unusable data is an error before any training."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.lm.families import save_text_lm, text_lm
from tests.ranks import in_ranks
from tests.text_to_token.conftest import new_codes, new_tokenizer
from tests.training.bases import train_from_rank_0, without_weights
from tests.training.skipped import changed_steps
from weft import artifacts
from weft.errors import UserError
from weft.records import CodedUtterance
from weft.text_to_token import train
from weft.text_to_token.train import TextToTokenConfig, run
from weft.training.metrics import read_metrics


def test_training_reduces_the_loss(trained):
    losses = [line["loss"] for line in read_metrics(trained.out / "log")]
    assert losses[-1] < 0.2 * losses[0]


def test_a_base_in_bf16_is_trained_as_its_copy_in_fp32(trained, tmp_path):
    """Small updates would be rounded away in bf16. The model is saved in the dtype of the base."""
    model, text_tokenizer = text_lm("qwen2", tied=True)
    losses, stored = [], []
    for dtype in (torch.bfloat16, torch.float32):  # after the first, the values are those of bf16
        base, out = tmp_path / f"base {dtype}", tmp_path / f"out {dtype}"
        save_text_lm(model.to(dtype), text_tokenizer, base)
        train = replace(trained.train, steps=8, lr=1e-4, warmup_steps=0, log_every_steps=1)
        run(replace(trained, base=base, out=out, train=train))
        losses.append([line["loss"] for line in read_metrics(out / "log")])
        stored.append(AutoModelForCausalLM.from_pretrained(out).dtype)
    assert losses[0] == losses[1]
    assert stored == [torch.bfloat16, torch.float32]


def test_only_rank_0_reads_the_weights_of_the_base(trained, tmp_path):
    """Both ranks start and end with the same weights, and the result is that of one process."""
    save_text_lm(*text_lm("qwen2", tied=True), tmp_path / "base")
    empty = without_weights(tmp_path / "base", tmp_path / "empty")
    alone, both = (
        replace(trained, base=tmp_path / "base", out=tmp_path / name, train=replace(trained.train, steps=3))
        for name in ("alone", "both")
    )
    expected = train_from_rank_0(run, alone, empty)
    for start, end in in_ranks(train_from_rank_0, tmp_path, run, both, empty):
        assert start.keys() == expected[0].keys()
        assert all(torch.equal(start[name], weight) for name, weight in expected[0].items())
        torch.testing.assert_close(end, expected[1], rtol=0, atol=1e-4)


def test_the_manifest_describes_the_training_data(trained, synthesizer):
    manifest = artifacts.read(trained.out)
    artifacts.require_parent(manifest, "tokenizer", artifacts.read(trained.tokenizer))
    assert (manifest.counts["utterances"], manifest.counts["left_out_utterances"]) == (400, 2)
    assert synthesizer.frame_rate_hz == 12.5
    assert run(trained) == manifest


def test_speakers_are_counted_and_utterances_without_one_are_left_out(trained_with_speakers):
    counts = artifacts.read(trained_with_speakers.out).counts
    assert counts["speakers"] == {"low": 80, "high: up": 60}
    assert (counts["utterances"], counts["left_out_utterances"]) == (140, 9)


def test_a_dry_run_prints_an_estimate_and_creates_nothing(trained, tmp_path, capsys):
    config = TextToTokenConfig(tmp_path / "out", trained.codes, trained.tokenizer, model=trained.model, dry_run=True)
    assert run(config) is None
    assert "parameters" in capsys.readouterr().out
    assert not [*tmp_path.iterdir()]


def test_unusable_codes_are_errors(trained, tmp_path):
    other = new_tokenizer(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="was made with tokenizer"):
        run(TextToTokenConfig(tmp_path / "out", trained.codes, other))
    without_texts = [CodedUtterance(str(i), [1, 2, 3], None) for i in range(50)]
    codes = new_codes(tmp_path / "codes", trained.tokenizer, without_texts)
    with pytest.raises(UserError, match="has no utterances with transcripts: tokenize"):
        run(TextToTokenConfig(tmp_path / "out", (codes,), trained.tokenizer))
    short = [CodedUtterance(str(i), [1, 2, 3], "etc.") for i in range(50)]
    codes = new_codes(tmp_path / "short", trained.tokenizer, short)
    with pytest.raises(UserError, match="has no utterances with transcripts"):  # no text is left
        run(TextToTokenConfig(tmp_path / "out", (codes,), trained.tokenizer, abbreviations=(("etc.", ""),)))
    with pytest.raises(UserError, match="abbreviations contain an empty written form for 'x'"):
        run(TextToTokenConfig(tmp_path / "out", (codes,), trained.tokenizer, abbreviations=(("", "x"),)))
    with pytest.raises(UserError, match="max_seq_len is 4096: give 2 to 2048"):
        run(TextToTokenConfig(tmp_path / "out", trained.codes, trained.tokenizer, max_seq_len=4096))
    assert not (tmp_path / "out").exists()


def test_a_skipped_step_changes_neither_model_nor_optimizer(trained, tmp_path):
    config = replace(trained, out=tmp_path / "out", train=replace(trained.train, steps=4, grad_accum_steps=2))
    assert changed_steps(train, lambda: run(config), {(1, 0, 0), (3, 1, 0)}) == [True, False, True, False]
