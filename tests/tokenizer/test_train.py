import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.ranks import in_ranks
from tests.tokenizer.conftest import write_speech
from tests.tokenizer.training import SENTENCES, config, metrics_of
from weft.artifacts import Manifest
from weft.audio import load, save
from weft.config import settings_of
from weft.data.speech import read_manifest
from weft.errors import UserError
from weft.tokenizer import train
from weft.tokenizer.augment import AugmentConfig
from weft.tokenizer.codebook import CodebookMonitor
from weft.tokenizer.config import PartLrRatios, TokenizerConfig
from weft.tokenizer.quantizer import VectorQuantizer
from weft.tokenizer.tokenizer import SpeechTokenizer
from weft.tokenizer.train import run
from weft.training.metrics import read_metrics


@pytest.fixture(scope="module")
def trained(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TokenizerConfig, Manifest]:
    """A configuration and the manifest of the tokenizer that it has trained."""
    recipe = config(speech, tmp_path_factory.mktemp("trained") / "tokenizer")
    return recipe, run(recipe)


@contextmanager
def interrupted_at(*calls: int) -> Iterator[None]:
    """Interrupt the training inside at these computations of the loss, counted from 0."""
    real, numbers = train.AsrObjective.losses, iter(range(1000))

    def losses(self: train.AsrObjective, *arguments: Any) -> dict[str, torch.Tensor]:
        if next(numbers) in calls:
            raise KeyboardInterrupt
        return real(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.AsrObjective, "losses", losses)
        yield


def test_a_run_interrupted_at_any_step_resumes_to_the_same_weights(
    trained: tuple[TokenizerConfig, Manifest], tmp_path: Path
) -> None:
    recipe = replace(trained[0], out=tmp_path / "resumed")
    with interrupted_at(1, 5, 9):
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                run(recipe)
        resumed = run(recipe)
    assert resumed.fingerprint == trained[1].fingerprint
    steps = [json.loads(line)["step"] for line in (tmp_path / "resumed/log/metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(8))


def test_the_saved_tokenizer_is_the_trained_one(trained: tuple[TokenizerConfig, Manifest], speech: Path) -> None:
    recipe, manifest = trained
    assert {"wer", "cer", "codes_used_share", "parameters"} <= manifest.counts.keys()
    tokenizer = SpeechTokenizer.from_pretrained(recipe.out)
    codes = tokenizer.encode([load(u.audio) for u in read_manifest(speech)])
    assert all(c.max() < 16 for c in codes)
    assert len(tokenizer.transcribe(codes)) == len(SENTENCES)
    with pytest.raises(UserError, match="code 16"):
        tokenizer.transcribe([[3, 16]])
    assert not recipe.out.with_name("tokenizer.partial").exists()
    assert not (recipe.out / "checkpoints").exists()


def test_settings_that_cannot_change_the_result_never_block_a_resume(
    trained: tuple[TokenizerConfig, Manifest], speech: Path, tmp_path: Path
) -> None:
    """Nor do other paths of the same speech."""
    recipe, manifest = trained
    shutil.copytree(speech, tmp_path / "moved")
    changed = replace(
        recipe,
        speech=(tmp_path / "moved",),
        held_out=(tmp_path / "moved/manifest.jsonl",),
        cache_gb=0.0,
        load_threads=1,
        licence="CC0",
        max_bad_fraction=0.5,
        train=replace(
            recipe.train,
            grad_accum_steps=2,
            checkpoint_every_steps=5,
            keep_checkpoints=1,
            log_every_steps=3,
            max_skipped_steps=9,
        ),
    )
    assert settings_of(changed) == settings_of(recipe)
    assert run(replace(changed, licence=None)) == manifest
    out = tmp_path / "interrupted"
    with interrupted_at(5), pytest.raises(KeyboardInterrupt):
        run(replace(recipe, out=out))
    resumed = run(replace(changed, out=out))
    assert resumed.settings == manifest.settings
    assert [line["step"] for line in read_metrics(out / "log")] == [0, 1, 2, 3, 6, 7]
    assert resumed.notes["licences"] == "CC0"


CHANGES: dict[str, Callable[[TokenizerConfig], TokenizerConfig]] = {
    r"train\.lr = 0\.002 \(now 0\.003\)": lambda c: replace(c, train=replace(c.train, lr=3e-3)),
    r"recase = False \(now True\)": lambda c: replace(c, recase=True),
    r"batch_sec = 4\.0 \(now 5\.0\)": lambda c: replace(c, batch_sec=5.0),
    r"model\.quantizer\.num_codes = 16 \(now 8\)": lambda c: replace(
        c, model=replace(c.model, quantizer=replace(c.model.quantizer, num_codes=8))
    ),
    r"augment\.time_masks = 0 \(now 1\), whisper\.width = 32 \(now 64\)": lambda c: replace(
        c, augment=AugmentConfig(time_masks=1), whisper=replace(c.whisper, width=64)
    ),
    "other contents of held_out": lambda c: replace(c, held_out=()),
}


@pytest.mark.parametrize("message", CHANGES)
def test_another_setting_blocks_a_resume_and_both_values_are_reported(
    message: str, trained: tuple[TokenizerConfig, Manifest]
) -> None:
    recipe, manifest = trained
    with pytest.raises(UserError, match=f"was created with {message}: choose another --out, or delete"):
        run(CHANGES[message](recipe))
    assert run(recipe) == manifest


def test_edited_speech_and_settings_block_the_resume_of_a_partial_tokenizer(speech: Path, tmp_path: Path) -> None:
    shutil.copytree(speech, tmp_path / "speech")
    (tmp_path / "speech/manifest.json").unlink()  # otherwise it is an artifact, in which nothing may be edited
    recipe = replace(config(tmp_path / "speech", tmp_path / "out"), held_out=())
    with interrupted_at(3), pytest.raises(KeyboardInterrupt):
        run(recipe)
    with pytest.raises(UserError, match=r"out\.partial was started with train\.lr = 0\.002 \(now 0\.1\): restore"):
        run(replace(recipe, train=replace(recipe.train, lr=0.1)))
    audio = Path(read_manifest(tmp_path / "speech")[0].audio)
    original = audio.read_bytes()
    save(audio, 0.5 * load(audio), 16_000)
    with pytest.raises(UserError, match=r"out\.partial was started with other contents of speech: restore"):
        run(recipe)
    audio.write_bytes(original)
    assert run(recipe).counts["utterances"] == len(SENTENCES)


def test_a_run_with_pseudo_labels_augmentation_and_no_cache_resumes_exactly(speech: Path, tmp_path: Path) -> None:
    plain = config(speech, tmp_path / "whole", steps=5, grad_accum_steps=2)
    recipe = replace(
        plain,
        held_out=(),
        pseudo=(speech,),
        supervised_fraction=0.5,
        cache_gb=0.0,
        augment=AugmentConfig(1, 10, 1, 10, speeds=(0.9, 1.1)),
    )
    whole = run(recipe)
    assert whole.fingerprint != run(replace(recipe, augment=AugmentConfig(), out=tmp_path / "plain")).fingerprint
    with interrupted_at(7), pytest.raises(KeyboardInterrupt):
        run(replace(recipe, out=tmp_path / "resumed"))
    assert run(replace(recipe, out=tmp_path / "resumed", cache_gb=1.0)).fingerprint == whole.fingerprint


def test_noise_resumes_exactly_and_belongs_to_the_plan(speech: Path, tmp_path: Path) -> None:
    recipe = replace(
        config(speech, tmp_path / "whole", steps=5),
        held_out=(),
        noise=(speech,),
        augment=AugmentConfig(babble_probability=0.5, recording_probability=0.5, reverberation_probability=0.5),
    )
    whole = run(recipe)
    with interrupted_at(4), pytest.raises(KeyboardInterrupt):
        run(replace(recipe, out=tmp_path / "resumed"))
    assert run(replace(recipe, out=tmp_path / "resumed", cache_gb=0.0)).fingerprint == whole.fingerprint
    write_speech(tmp_path / "noise", 1)
    with pytest.raises(UserError, match="other contents of noise"):
        run(replace(recipe, noise=(tmp_path / "noise",)))
    with pytest.raises(UserError, match="consistency_weight needs distortions"):
        run(replace(recipe, noise=(), augment=AugmentConfig(), consistency_weight=1.0))
    for bad in (replace(recipe, noise=()), replace(recipe, augment=AugmentConfig(babble_probability=0.5))):
        with pytest.raises(UserError, match="belong together"):
            run(bad)


def test_two_processes_train_on_augmented_speech_as_one_does(speech: Path, tmp_path: Path) -> None:
    """And as one does in micro-batches, with the same losses, codes and restarts."""
    recipe = replace(
        config(speech, tmp_path / "one", steps=6),
        held_out=(),
        pseudo=(speech,),
        supervised_fraction=0.5,
        augment=AugmentConfig(1, 10, 1, 10, speeds=(0.9, 1.1), noise_probability=0.5, babble_probability=0.5),
        consistency_weight=1.0,
        quantize_from_step=2,
    )
    alone = metrics_of(recipe)
    in_parts = metrics_of(replace(recipe, out=tmp_path / "parts", train=replace(recipe.train, grad_accum_steps=3)))
    together = in_ranks(metrics_of, tmp_path, replace(recipe, out=tmp_path / "two"))[0]
    assert len(alone) == len(in_parts) == len(together) == 6
    assert alone[-1]["restarts"] > 0
    for expected, *others in zip(alone, in_parts, together, strict=True):
        assert {"cross_entropy", "ctc"} <= expected.keys()
        for name in ("commitment", "consistency", "code_agreement"):
            assert (name in expected) == (expected["step"] >= 2)
        for found in others:
            assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_contradicting_settings_are_rejected_before_anything_is_read(tmp_path: Path) -> None:
    recipe = config(tmp_path / "missing", tmp_path / "out")
    with pytest.raises(UserError, match="quantize_from_step is 8: give less than 8 steps"):
        run(replace(recipe, quantize_from_step=8))
    with pytest.raises(UserError, match="encoder_only is true: set it to false"):
        run(replace(recipe, model=replace(recipe.model, encoder_only=True)))
    with pytest.raises(UserError, match="distillation_weight is set without base"):
        run(replace(recipe, distillation_weight=1.0))
    with pytest.raises(UserError, match="lr_ratio is 0 for all parts"):
        run(replace(recipe, lr_ratio=PartLrRatios(0.0, 0.0, 0.0)))


def test_a_collapsed_codebook_is_reported_with_the_settings_to_change(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(CodebookMonitor, "MIN_STEPS", 2)
    monkeypatch.setattr(CodebookMonitor, "MIN_USES_PER_CODE", 1)
    healthy = replace(config(speech, tmp_path / "healthy"), held_out=())
    assert "warnings" not in run(healthy).notes
    quantizer = replace(healthy.model.quantizer, restart_every_steps=0, decay=0.0)
    monkeypatch.setattr(VectorQuantizer, "encode", lambda self, hidden: torch.zeros(hidden.shape[:-1]).long())
    collapsed = run(replace(healthy, out=tmp_path / "collapsed", model=replace(healthy.model, quantizer=quantizer)))
    assert "has collapsed: only 1 of 16 codes" in collapsed.notes["warnings"]
    assert re.search(r"weft: step \d: the codebook has collapsed.*restart_every_steps", capsys.readouterr().err)
