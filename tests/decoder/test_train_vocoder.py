from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.ranks import in_ranks
from weft.artifacts import Manifest
from weft.audio import save
from weft.decoder.discriminators import DiscriminatorShape
from weft.decoder.load import load_vocoder
from weft.decoder.mel import MelConfig
from weft.decoder.train_vocoder import VocoderConfig, run
from weft.decoder.vocoder import Vocoder, VocoderShape
from weft.decoder.vocoder_loss import VocoderTraining
from weft.errors import UserError
from weft.training.config import TrainConfig
from weft.training.metrics import read_metrics


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three harmonic sounds with steps of pitch, at two sample rates."""
    folder = tmp_path_factory.mktemp("audio")
    rng = np.random.default_rng(0)
    for i, rate_hz in enumerate((16_000, 24_000, 16_000)):
        pitch = np.repeat(rng.uniform(100, 300, 8), rate_hz // 8)
        phase = 2 * np.pi * np.cumsum(pitch) / rate_hz
        sound = sum(np.sin(k * phase) / k for k in range(1, 10))
        save(folder / f"{i}.wav", (0.2 * sound).astype(np.float32), rate_hz)
    return folder


def config(audio: Path, out: Path, **train: Any) -> VocoderConfig:
    settings = {"steps": 6, "lr": 2e-3, "warmup_steps": 1, "checkpoint_every_steps": 2, "log_every_steps": 1, **train}
    return VocoderConfig(
        out=out,
        audio=(audio,),
        held_out=(audio,),
        shape=VocoderShape(width=16, layers=1),
        discriminators=DiscriminatorShape(width=2, periods=(2,), windows=(256,)),
        average_decay=0.5,
        train=TrainConfig(precision="fp32", **settings),
        adversarial_from_step=3,
        batch_clips=4,
        clip_sec=0.2,
    )


@pytest.fixture(scope="module")
def trained(audio: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[VocoderConfig, Manifest]:
    recipe = config(audio, tmp_path_factory.mktemp("trained") / "vocoder")
    return recipe, run(recipe)


def test_the_artifact_is_the_average_of_the_trained_weights(trained: tuple[VocoderConfig, Manifest]) -> None:
    recipe, manifest = trained
    assert manifest.counts["utterances"] == 3
    assert manifest.counts["seconds"] == pytest.approx(3.0)
    assert manifest.counts["mel_distance"] > 0
    vocoder = load_vocoder(recipe.out)
    assert sum(p.numel() for p in vocoder.parameters()) == manifest.counts["parameters"]
    assert vocoder(torch.zeros(1, 10, 80)).shape == (1, 2560)
    lines = list(read_metrics(recipe.out / "log"))
    assert ["discriminator" in line for line in lines] == [False] * 3 + [True] * 3


def test_training_reduces_the_mel_distance_of_recordings(audio: Path, tmp_path: Path) -> None:
    few = run(replace(config(audio, tmp_path / "few", steps=1), adversarial_from_step=1000))
    many = run(replace(config(audio, tmp_path / "many", steps=60), adversarial_from_step=1000))
    assert many.counts["mel_distance"] < 0.7 * few.counts["mel_distance"]


@pytest.mark.parametrize("step", [1, 4])
def test_an_interrupted_training_resumes_to_the_same_weights(
    step: int, trained: tuple[VocoderConfig, Manifest], tmp_path: Path
) -> None:
    """Before and after the discriminators are used."""
    recipe = replace(trained[0], out=tmp_path / "resumed")
    real, calls = VocoderTraining.losses, iter(range(100))

    def losses(self: VocoderTraining, *arguments: Any, **more: Any) -> dict[str, torch.Tensor]:
        if next(calls) == step:
            raise KeyboardInterrupt
        return real(self, *arguments, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VocoderTraining, "losses", losses)
        with pytest.raises(KeyboardInterrupt):
            run(recipe)
    assert run(replace(recipe, cache_gb=0.0)).fingerprint == trained[1].fingerprint


def metrics_of(recipe: VocoderConfig) -> list[dict[str, float]]:
    run(recipe)
    return list(read_metrics(recipe.out / "log"))


def test_two_processes_train_as_one_does(trained: tuple[VocoderConfig, Manifest], tmp_path: Path) -> None:
    alone = list(read_metrics(trained[0].out / "log"))
    together = in_ranks(metrics_of, tmp_path, replace(trained[0], out=tmp_path / "two"))[0]
    for expected, found in zip(alone, together, strict=True):
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_unreadable_recordings_are_skipped_up_to_a_limit(audio: Path, tmp_path: Path) -> None:
    for path in audio.glob("*.wav"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "bad.wav").write_bytes(b"this is no audio")
    recipe = replace(config(tmp_path, tmp_path / "out", steps=1), held_out=())
    with pytest.raises(UserError, match="1 of 4 items are bad"):
        run(recipe)
    manifest = run(replace(recipe, max_bad_fraction=0.3))
    assert (manifest.counts["utterances"], manifest.counts["skipped_utterances"]) == (3, 1)


def test_other_sample_rates_are_a_setting(audio: Path, tmp_path: Path) -> None:
    mel = MelConfig(24_000, 1024, 240, 100)
    run(replace(config(audio, tmp_path / "out", steps=4), mel=mel))
    assert load_vocoder(tmp_path / "out")(torch.zeros(1, 10, 100)).shape == (1, 2400)


def test_an_estimate_has_the_size_of_the_vocoder_and_trains_nothing(
    audio: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = replace(config(audio, tmp_path / "out"), shape=VocoderShape(), dry_run=True)
    assert run(recipe) is None
    num = sum(p.numel() for p in Vocoder(recipe.shape, recipe.mel).parameters())
    assert f"{num:,}" in capsys.readouterr().out
    assert not recipe.out.exists()


def test_held_out_recordings_are_checked_before_training_and_may_be_short(audio: Path, tmp_path: Path) -> None:
    for path in audio.glob("*.wav"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    save(tmp_path / "short.wav", np.full(10, 0.1, np.float32), 16_000)
    assert run(replace(config(audio, tmp_path / "out", steps=1), held_out=(tmp_path,))).counts["mel_distance"] > 0
    (tmp_path / "bad.wav").write_bytes(b"this is no audio")
    with pytest.raises(UserError, match="1 of 5 items are bad"):
        run(replace(config(audio, tmp_path / "other", steps=1), held_out=(tmp_path,)))
    assert not list((tmp_path / "other.partial/log").glob("metrics.jsonl"))


def test_a_clip_is_not_shorter_than_the_windows_of_the_loss(audio: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"clip_sec is 0\.1: give at least 0\.2"):
        replace(config(audio, tmp_path / "out"), clip_sec=0.1)


def test_recordings_that_cannot_be_read_are_reported_with_the_first_reason(tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_bytes(b"this is no audio")
    with pytest.raises(UserError, match=r"no recording can be read: fix it; the first is .*bad"):
        run(replace(config(tmp_path, tmp_path / "out", steps=1), held_out=()))
