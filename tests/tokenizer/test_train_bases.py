"""Training that starts from a Whisper or from a tokenizer."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import WhisperForConditionalGeneration

from tests.ranks import in_ranks
from tests.tokenizer.conftest import save_whisper
from tests.tokenizer.training import config, metrics_of
from tests.training.bases import train_from_rank_0, without_weights
from weft.audio import load
from weft.data.speech import read_manifest
from weft.errors import UserError
from weft.tokenizer.config import PartLrRatios
from weft.tokenizer.init import from_whisper
from weft.tokenizer.tokenizer import SpeechTokenizer
from weft.tokenizer.train import run


@pytest.mark.parametrize(("multilingual", "dtype"), [(True, torch.float32), (False, torch.float16)])
def test_a_whisper_is_a_base_and_its_weights_are_kept(
    speech: Path, tmp_path: Path, multilingual: bool, dtype: torch.dtype
) -> None:
    """Large Whispers are published in fp16."""
    base = save_whisper(tmp_path / "whisper", multilingual)
    whisper = WhisperForConditionalGeneration.from_pretrained(base, dtype=dtype)
    whisper.save_pretrained(base)
    recipe = replace(
        config(speech, tmp_path / "out", steps=1, lr=0.0, weight_decay=0.0), base=base, quantize_from_step=0
    )
    assert "wer" in run(recipe).counts
    tokenizer = SpeechTokenizer.from_pretrained(tmp_path / "out")
    assert set(tokenizer.prompt.languages) == ({"en", "zh"} if multilingual else set())
    weights = tokenizer.model.whisper.state_dict()
    for name, weight in whisper.state_dict().items():
        assert torch.equal(weights[name], weight.float()), name
    with pytest.raises(UserError, match="not a Hugging Face Whisper"):
        run(replace(recipe, base=speech, out=tmp_path / "other"))


def test_parts_have_their_learning_rates_and_a_part_with_0_keeps_its_weights(speech: Path, tmp_path: Path) -> None:
    base = save_whisper(tmp_path / "whisper")
    ratios = PartLrRatios(before=0.1, after=1.0, decoder=0.0)
    settings = {"steps": 1, "warmup_steps": 0, "lr": 1e-3, "weight_decay": 0.0}
    recipe = replace(config(speech, tmp_path / "out", **settings), base=base, quantize_from_step=0, lr_ratio=ratios)
    run(replace(recipe, distillation_weight=1.0))
    trained = dict(SpeechTokenizer.from_pretrained(tmp_path / "out").model.named_parameters())
    model = from_whisper(base, recipe.model).model
    largest = {"before": 0.0, "after": 0.0, "decoder": 0.0}
    for name, p in model.named_parameters():
        part = model.part_of(name)
        largest[part] = max(largest[part], float((trained[name] - p).abs().max().detach()))
    assert largest["decoder"] == 0
    assert largest["after"] == pytest.approx(1e-3, rel=0.05)  # AdamW's first update is the learning rate
    assert largest["before"] == pytest.approx(1e-4, rel=0.05)


def test_training_continues_from_a_tokenizer_and_keeps_codes_whose_layers_are_fixed(
    speech: Path, tmp_path: Path
) -> None:
    first = tmp_path / "first"
    run(replace(config(speech, first, steps=4), held_out=()))
    recipe = replace(config(speech, tmp_path / "out", steps=4), init=first, quantize_from_step=0)
    run(replace(recipe, lr_ratio=PartLrRatios(before=0.0)))
    before, after = (SpeechTokenizer.from_pretrained(folder) for folder in (first, tmp_path / "out"))
    samples = [load(u.audio) for u in read_manifest(speech)]
    assert all(map(np.array_equal, before.encode(samples), after.encode(samples)))
    changed = {n for n, p in after.model.named_parameters() if not torch.equal(p, before.model.get_parameter(n))}
    assert {after.model.part_of(name) for name in changed} == {"after", "decoder"}
    run(replace(recipe, out=tmp_path / "other"))
    other = SpeechTokenizer.from_pretrained(tmp_path / "other").model.quantizer
    assert not torch.equal(other.decode(torch.arange(16)), after.model.quantizer.decode(torch.arange(16)))
    with pytest.raises(UserError, match="init has a codebook: remove quantize_from_step"):
        run(replace(recipe, quantize_from_step=2))


def test_a_base_in_fp16_trains_as_its_copy_in_fp32(speech: Path, tmp_path: Path) -> None:
    whisper = WhisperForConditionalGeneration.from_pretrained(save_whisper(tmp_path / "fp16"), dtype=torch.float16)
    shutil.copytree(tmp_path / "fp16", tmp_path / "fp32")
    whisper.save_pretrained(tmp_path / "fp16")
    whisper.float().save_pretrained(tmp_path / "fp32")
    metrics = []
    for name in ("fp16", "fp32"):
        recipe = replace(config(speech, tmp_path / f"out-{name}", steps=4), base=tmp_path / name, quantize_from_step=2)
        metrics.append(metrics_of(replace(recipe, held_out=())))
    assert metrics[0] == metrics[1]
    assert metrics[0][-1]["loss"] != metrics[0][0]["loss"]


def test_only_rank_0_reads_the_weights_of_the_base(speech: Path, tmp_path: Path) -> None:
    """Both ranks start and end with the same weights, and the result is that of one process."""
    base = save_whisper(tmp_path / "whisper")
    empty = without_weights(base, tmp_path / "empty")
    recipe = config(speech, tmp_path / "alone", steps=3)
    recipe = replace(recipe, base=base, held_out=(), quantize_from_step=1)
    expected = train_from_rank_0(run, recipe, empty)
    for start, end in in_ranks(train_from_rank_0, tmp_path, run, replace(recipe, out=tmp_path / "both"), empty):
        assert start.keys() == expected[0].keys()
        assert all(torch.equal(start[name], weight) for name, weight in expected[0].items())
        torch.testing.assert_close(end, expected[1], rtol=0, atol=1e-4)
